"""`evidence sample`: simulate data from the model of a trained run."""

import torch
from pyro import poutine
from safetensors.torch import save
from torch import Tensor

from evidence.experiments.config import Sample
from evidence.experiments.own.program import OwnProgram
from evidence.experiments.reports import plots
from evidence.experiments.reports.pictures import prior_means
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage.files import write
from evidence.experiments.storage.runs import RunFolder
from evidence.inference.programs.data import takes
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import random_sites
from evidence.models import AbstractModel


@torch.no_grad()
def sample(config: Sample) -> None:
    """Draw from p(z) p(x | z) into the folder `samples` of the run."""
    folder = RunFolder(config.run)
    with folder.locked():
        assembly, _ = load_run(folder, config)
        is_own = isinstance(assembly.model, OwnProgram)
        tensors = (_data_sets if is_own else _data)(assembly, config)
        x = next(iter(tensors.values())).double()
        what = f"data sets; {next(iter(tensors))}:" if is_own else "draws,"
        print(f"{config.num_samples} {what} mean {x.mean():.4f}, standard deviation {x.std():.4f}")
        files = _write(folder, assembly, config, tensors)
    print(f"\nwrote {folder.path / 'samples'}: {', '.join(files)}")


def _data(assembly: Assembly, config: Sample) -> dict[str, Tensor]:
    """Data of a model of the suite, and their means given the latents."""
    assert isinstance(assembly.model, AbstractModel)
    with isolated_rng(config.seed):
        x = assembly.model(None, size=config.num_samples)
    with isolated_rng(config.seed):
        return {"x": x, "mean": prior_means(assembly.model, config.num_samples)}


def _data_sets(assembly: Assembly, config: Sample) -> dict[str, Tensor]:
    """Data sets like that of the run, from the prior on: every site, the observed ones first."""
    x = assembly.x_test
    program = poutine.uncondition(takes(assembly.model, x))
    drawn: dict[str, list[Tensor]] = {}
    with isolated_rng(config.seed), evaluation_mode(assembly.model):
        for _ in range(config.num_samples):
            sites = random_sites(poutine.trace(program).get_trace(x))
            order = sorted(sites, key=lambda name: not sites[name]["infer"].get("was_observed"))
            for name in order:
                drawn.setdefault(name, []).append(sites[name]["value"])
    if not drawn:
        raise ValueError(f"{assembly.config.model} has no sites to draw")
    return {name: torch.stack(values) for name, values in drawn.items()}


def _write(
    folder: RunFolder, assembly: Assembly, config: Sample, tensors: dict[str, Tensor]
) -> list[str]:
    """Put the draws into the folder `samples`; returns the names of the files."""
    target, kind = folder.path / "samples", type(assembly.model).__name__
    target.mkdir(exist_ok=True)
    kept = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write(target / "samples.safetensors", save(kept))
    files = ["samples.safetensors"]
    if assembly.dataset.image_shape is not None:
        title = f"{kind}: decoded means of draws from the prior"
        figure = plots.gallery(tensors["mean"], assembly.dataset.image_shape, title=title)
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
