"""`evidence evaluate`: the ELBO and the importance-weighted evidence of a trained run."""

import sys
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from tqdm import tqdm

from experiments.assembly import Assembly, load_run
from experiments.config import Evaluate
from experiments.plane import mean_divergences
from experiments.report import Row, table, training_row, with_estimates
from experiments.runs import RunFolder
from guides import AbstractPosterior
from inference import Evidence, History, Snapshot, estimate_evidence
from inference.checks import check_density
from inference.estimators import active_units
from inference.random_state import isolated_rng
from models import AbstractModel, Autoencoder

_DATA_PER_BATCH = 128
_DRAWS = 100  # per datum, for posterior means


def evaluate(config: Evaluate) -> None:
    """Estimate, write results.json and print the table."""
    row = evaluate_run(config)
    print(table([row]))
    print(f"\nwrote {config.run}/results.json")


def evaluate_run(config: Evaluate) -> Row:
    """Estimate the evidence of a run on its evaluation data; returns its row of results.json."""
    for name, value in (("num_particles", config.num_particles), ("num_data", config.num_data)):
        if value is not None and value < 1:
            raise ValueError(f"expected --{name} of at least 1, got {value}")
    folder = RunFolder(config.run)
    assembly, snapshot = load_run(folder, device=config.device, data_root=config.data_root)
    expect_evidence(assembly.model, assembly.guide, assembly.x_test[:1])
    x = _some(assembly.x_test, config.num_data, assembly.config.seed)
    row = _row_so_far(folder, assembly, snapshot)
    row = with_estimates(row, estimate(assembly, x, config.num_particles), assembly)
    row |= {
        "active_units": _active_units(assembly, x),
        "divergences": mean_divergences(assembly.model, assembly.guide, x),
        "evaluation": settings(config),
    }
    folder.write_results("evaluate", [row])
    return row


def settings(config: Evaluate) -> dict[str, Any]:
    """What makes one evaluation of a run another than the next."""
    return {"num_particles": config.num_particles, "num_data": config.num_data}


def _some(x: Tensor, num_data: int | None, seed: int) -> Tensor:
    """So many rows of `x`, drawn without replacement, in their order (MNIST's come easy first)."""
    if num_data is None or num_data >= len(x):
        return x
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return x[order[:num_data].sort().values.to(x.device)]


@torch.no_grad()
def estimate(assembly: Assembly, x: Tensor, num_particles: int) -> list[Evidence]:
    """The records of a trained pair: ELBO, IW evidence and, where there is one, the exact one."""
    with (
        isolated_rng(assembly.config.seed, x.device),
        tqdm(total=len(x), unit="datum", disable=not sys.stderr.isatty()) as bar,
    ):
        bar.set_description(f"{num_particles} particles")
        records = estimate_evidence(
            assembly.model, assembly.guide, x, num_particles, progress=bar.update
        )
    exact = (
        [Evidence.exact(assembly.model.log_evidence(x))] if assembly.model.knows_evidence else []
    )
    return [records["elbo"], records["iw"], *exact]


@torch.no_grad()
def _active_units(assembly: Assembly, x: Tensor) -> dict[str, int] | None:
    """How many latents tell the data apart, of how many; None if all data are the same."""
    if (x == x[0]).all():
        return None
    parts = []
    with isolated_rng(assembly.config.seed, x.device):
        for batch in x.split(_DATA_PER_BATCH):
            z = assembly.guide.posterior(batch).sample(torch.Size([_DRAWS]))  # [S, B, Z]
            parts.append((z.mean(0), z.var(0) / _DRAWS))
    means, variances = (torch.cat(part) for part in zip(*parts, strict=True))
    active = active_units(means, variances)
    return {"count": int(active.sum()), "of": len(active)}


@torch.no_grad()
def expect_evidence(model: AbstractModel, guide: AbstractPosterior, x: Tensor) -> None:
    """Check on a datum or more, `[B, D]`, that the pair defines importance weights at all.

    Raises:
        ValueError: the model has no prior, or the guide no density.
    """
    if isinstance(model, Autoencoder):
        raise ValueError(
            "Autoencoder has no prior p(z), so there is no log p(x) to estimate: its squared error "
            "is in the results.json of its training"
        )
    check_density(poutine.trace(guide).get_trace(x))


def _row_so_far(folder: RunFolder, assembly: Assembly, snapshot: Snapshot) -> Row:
    document = folder.read_results()
    history = History.from_rows(snapshot.meta["position"]["history"])
    label = document["rows"][0]["label"] if document else assembly.config.guide
    row = training_row(assembly, history, label=label)
    row["folder"] = str(folder.path)
    return row
