"""`evidence sample`: simulate data from the model of a trained run."""

import torch
from safetensors.torch import save
from torch import Tensor

from evidence.experiments.config import Sample
from evidence.experiments.reports import plots
from evidence.experiments.reports.pictures import prior_means
from evidence.experiments.setup.assembly import Assembly, load_run
from evidence.experiments.storage.files import write
from evidence.experiments.storage.runs import RunFolder
from evidence.inference.programs.random_state import isolated_rng


@torch.no_grad()
def sample(config: Sample) -> None:
    """Draw from p(z) p(x | z) into the folder `samples` of the run."""
    folder = RunFolder(config.run)
    with folder.locked():
        assembly, _ = load_run(
            folder, device=config.device, data_root=config.data_root, trust=config.trust
        )
        model = assembly.model
        with isolated_rng(config.seed):
            x = model(None, size=config.num_samples)
        with isolated_rng(config.seed):
            means = prior_means(model, config.num_samples)
        print(f"{config.num_samples} draws, mean {x.mean():.4f}, standard deviation {x.std():.4f}")
        files = _write(folder, assembly, config, x, means)
    print(f"\nwrote {folder.path / 'samples'}: {', '.join(files)}")


def _write(
    folder: RunFolder, assembly: Assembly, config: Sample, x: Tensor, means: Tensor
) -> list[str]:
    """Put the draws into the folder `samples`; returns the names of the files."""
    target, kind = folder.path / "samples", type(assembly.model).__name__
    target.mkdir(exist_ok=True)
    tensors = {"x": x.cpu().contiguous(), "mean": means.cpu().contiguous()}
    write(target / "samples.safetensors", save(tensors))
    files = ["samples.safetensors"]
    if assembly.dataset.image_shape is not None:
        title = f"{kind}: decoded means of draws from the prior"
        figure = plots.gallery(means, assembly.dataset.image_shape, title=title)
        plots.save(figure, target / "samples.png")
        files.append("samples.png")
    row = {
        "model": kind,
        "guide": type(assembly.guide).__name__,
        "data": assembly.config.data,
        "seed": config.seed,
        "num_samples": config.num_samples,
        "weights_sha256": assembly.weights_sha256(),
        "files": files,
    }
    RunFolder(target).write_results("sample", [row])
    return files
