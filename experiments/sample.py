"""`evidence sample`: simulate data from the model of a trained run."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from experiments import plots
from experiments.assembly import load_run
from experiments.config import Sample
from experiments.pictures import prior_means
from experiments.runs import RunFolder
from inference.random_state import isolated_rng


@torch.no_grad()
def sample(config: Sample) -> None:
    """Draw from p(z) p(x | z) into the folder `samples` of the run."""
    if config.num_samples < 1:
        raise ValueError(f"expected --num_samples of at least 1, got {config.num_samples}")
    folder = RunFolder(config.run)
    assembly, _ = load_run(folder, device=config.device, data_root=config.data_root)
    model = assembly.model
    with isolated_rng(config.seed):
        x = model(None, size=config.num_samples)
    with isolated_rng(config.seed):
        means = prior_means(model, config.num_samples)
    target = Path(config.run) / "samples"
    target.mkdir(exist_ok=True)
    save_file({"x": x.cpu(), "mean": means.cpu()}, target / "samples.safetensors")
    files = ["samples.safetensors"]
    if assembly.dataset.image_shape is not None:
        title = f"{type(model).__name__}: decoded means of draws from the prior"
        figure = plots.gallery(means, assembly.dataset.image_shape, title=title)
        plots.save(figure, target / "samples.png")
        files.append("samples.png")
    row = {
        "model": type(model).__name__,
        "guide": type(assembly.guide).__name__,
        "data": assembly.config.data,
        "seed": config.seed,
        "num_samples": config.num_samples,
        "files": files,
    }
    RunFolder(target).write_results("sample", [row])
    print(f"{config.num_samples} draws, mean {x.mean():.4f}, standard deviation {x.std():.4f}")
    print(f"\nwrote {target}: {', '.join(files)}")
