"""The estimates of log p(x) of a trained pair on data."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from evidence.experiments.commands.annealing import annealed
from evidence.experiments.config import Evaluate
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.double import as_dtype, in_dtype
from evidence.experiments.storage.records import Annealing
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import (
    Evidence,
    adaptive_evidence,
    bridge_evidence,
    estimate_evidence,
    nuts_reference,
    smc_evidence,
)
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng
from evidence.models import AbstractModel

_ELBO_PARTICLES = 200  # beside an adaptive number of weights


def estimate(
    assembly: Assembly, x: Batch, config: Evaluate, folder: RunFolder
) -> tuple[list[Evidence], Annealing | None, Path | None]:
    """The records asked for, the exact one among them where there is one.

    Returns:
        The records; and of the annealing, what to record and where its snapshots are.
    """
    assembly = in_dtype(assembly, config.dtype)
    x = as_dtype(x, assembly.x_test.dtype)
    records = weighted(assembly, x, config)
    details = place = None
    if config.estimator == "ais":
        record, details, place = annealed(assembly, x, config, folder)
        records.append(record)
    if config.estimator in _SAMPLED:
        records.append(_SAMPLED[config.estimator](assembly, x, config))
    known = exact(assembly, x)
    return [*records, known] if known is not None else records, details, place


def _smc(pair: Assembly, x: Batch, config: Evaluate) -> Evidence:
    """The record "smc"."""
    return smc_evidence(
        pair.model,
        x,
        guide=pair.guide if config.start == "guide" else None,
        num_chains=config.num_chains,
        num_leapfrog_steps=config.num_leapfrog_steps,
        seed=pair.config.seed,
        progress=sys.stderr.isatty(),
    )


def _bridge(pair: Assembly, x: Batch, config: Evaluate) -> Evidence:
    """The record "bridge", of draws by NUTS and of the guide as it is."""
    draws = nuts_reference(
        pair.model,
        x,
        num_samples=config.num_samples,
        num_warmup=config.num_warmup,
        seed=pair.config.seed,
        progress=sys.stderr.isatty(),
    )
    return bridge_evidence(pair.model, pair.guide, x, draws=draws, seed=pair.config.seed)


# What is sampled beside the weights, and cannot be gone on with once it is stopped.
_SAMPLED: dict[str, Callable[[Assembly, Batch, Evaluate], Evidence]] = {
    "smc": _smc,
    "bridge": _bridge,
}


def exact(pair: Assembly, x: Batch) -> Evidence | None:
    """The record of a log p(x) that the model knows."""
    is_suites = isinstance(pair.model, AbstractModel) and isinstance(x, Tensor)
    log_px = pair.model.log_evidence(x) if is_suites else None
    return None if log_px is None else Evidence.exact(log_px.detach())


@torch.no_grad()
def weighted(assembly: Assembly, x: Batch, config: Evaluate) -> list[Evidence]:
    """The records that come from the guide's importance weights."""
    pair = assembly.model, assembly.guide
    with (
        isolated_rng(assembly.config.seed, x.device),
        tqdm(total=len(x), unit="datum", disable=not sys.stderr.isatty()) as bar,
    ):
        bar.set_description("importance weights")
        if config.target_se is not None:
            iw = adaptive_evidence(
                *pair,
                x,
                target_se=config.target_se,
                max_particles=config.max_particles,
                progress=bar.update,
            )
            return [estimate_evidence(*pair, x, _ELBO_PARTICLES)["elbo"], iw]
        records = estimate_evidence(
            *pair, x, config.num_particles, defensive=config.defensive, progress=bar.update
        )
    return [records["elbo"]] if config.estimator == "elbo" else [records["elbo"], records["iw"]]
