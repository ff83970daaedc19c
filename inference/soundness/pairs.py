"""What must hold of a pair for its weights to average to p(x): checked before any are drawn."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from pyro import poutine
from pyro.distributions import ImproperUniform
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.checks import base_distribution, check_data
from evidence.inference.programs.data import Batch, in_memory
from evidence.inference.programs.enumeration import prior_of
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.masking import counted
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import (
    is_subsample,
    latent_sites,
    observed_sites,
    plates_of,
    sites_of,
)
from evidence.inference.programs.stored import StoredData
from evidence.inference.programs.traces import (
    Program,
    Traces,
    common_dims,
    layout_of,
    random_sites,
    trace_pair,
)
from evidence.inference.programs.unconstrained import is_point
from evidence.inference.soundness.auxiliary import check_auxiliary
from evidence.inference.soundness.coverage import Coverage
from evidence.inference.soundness.findings import Finding
from evidence.inference.soundness.leaks import check_leaks, check_positions

# Enough to see what is wrong with a program.
_NUM_DATA = 64


class Sound(NamedTuple):
    """What there is to know of a pair that is sound.

    Args:
        is_joint: whether all data have one weight.
        on_edge: the share of the posterior on the edge of supports, of the few data looked at,
            for `reliability.edge_caveat`.
    """

    is_joint: bool
    on_edge: Tensor


def expect_sound_pair(model: Program, guide: Program, x: Batch | StoredData) -> Sound:
    """Refuse a pair whose weights do not average to p(x), though each of them is a number.

    A prior without a density, a guide that misses a part of the posterior, auxiliary draws that
    the latents do not determine, masks that differ, rows that depend on other data, a plate that
    draws some of the rows.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`, of which the first few, b, are looked at.

    Raises:
        ValueError: the first fault found, with the remedy; or as `traces.layout_of`.
    """
    if not isinstance(x, StoredData):
        check_data(x)
    with isolated_rng(device=x.device), evaluation_mode(model, guide), torch.no_grad():
        x = _few(model, guide, x)
        layout = layout_of(model, guide, x, require_density=True)
        coverage = Coverage(model, guide, x, layout)
        for finding in _faults(coverage):
            raise ValueError(str(finding))
        return Sound(layout.is_joint, coverage.share_on_edge())


def expect_sound_draws(model: Program, guide: Program, x: Batch, traces: Traces) -> None:
    """Refuse a guide with auxiliary draws that the latents do not determine: no ELBO is a bound.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: a batch.
        traces: of the pair on it.

    Raises:
        ValueError: it has such draws.
    """
    if random_sites(traces.guide).keys() <= random_sites(traces.model).keys():
        return
    with isolated_rng(device=x.device), evaluation_mode(model, guide), torch.no_grad():
        layout = layout_of(model, guide, x, require_density=False)
        for finding in check_auxiliary(guide, traces, x, layout):
            raise ValueError(str(finding))


def _few(model: Program, guide: Program, x: Batch | StoredData) -> Batch:
    """The first data, or all of them where they share latents or the pair runs on no others."""
    few = x[:_NUM_DATA]
    try:
        traces = trace_pair(model, guide, few)
    except Exception:  # what is wrong shows, or does not, with all data
        return in_memory(x)
    return few if common_dims(traces, len(few)) else in_memory(x)


def _faults(coverage: Coverage) -> Iterator[Finding]:
    model, guide, x = coverage.model, coverage.guide, coverage.x
    yield from check_subsamples(model, x, coverage.traces.model)
    yield from check_priors(coverage.traces)
    yield from check_masks(coverage.traces, coverage.layout.in_full)
    yield from check_auxiliary(guide, coverage.traces, x, coverage.layout)
    yield from coverage.faults()
    yield from _dependent_rows(model, guide, x)


def _dependent_rows(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """A guide may have parameters of each row; to score others with them is its own affair."""
    yield from check_leaks(model, guide, x)
    yield from check_positions(model, guide, x, roles=["model"])


def expect_sound_model(model: Program, x: Batch) -> None:
    """Refuse a model whose rows depend on other data, or that takes some of them by itself.

    Of a model alone nothing else is asked.

    Raises:
        ValueError: they do, or it does; or as `traces.layout_of`.
    """
    prior = prior_of(model)
    with isolated_rng(device=x.device), evaluation_mode(model), torch.no_grad():
        few = _few(model, prior, x)
        for finding in check_subsamples(model, x, poutine.trace(model).get_trace(x)):
            raise ValueError(str(finding))
        for finding in _dependent_rows(model, prior, few):
            raise ValueError(str(finding))


def check_subsamples(model: Program, x: Batch, trace: Trace) -> Iterator[Finding]:
    """Plates that draw some rows of the data, others in every run: log p(x) is of all of them.

    A plate may be larger than the data that it is given, and take them all.

    Args:
        model: called with the data.
        x: the data.
        trace: of the model on them.
    """
    drawn = {
        name: site["fn"]
        for name, site in sites_of(trace).items()
        if site["type"] == "sample" and is_subsample(site)
    }
    partial = {n: fn for n, fn in drawn.items() if fn.subsample_size not in (None, -1, fn.size)}
    if not partial:
        return
    again = observed_sites(poutine.trace(model).get_trace(x))
    for name, site in observed_sites(trace).items():
        plates = [plate.name for plate in plates_of(site) if plate.name in partial]
        if plates and (name not in again or not torch.equal(site["value"], again[name]["value"])):
            rows = partial[plates[0]]
            problem = f"draws {rows.subsample_size} of {rows.size} rows, and log p(x) is of all"
            remedy = "leave subsample_size out: fit takes minibatches by itself (batch_size)"
            yield Finding("scale", plates[0], problem, remedy)
            return


def check_priors(traces: Traces) -> Iterator[Finding]:
    """Latents whose prior is no density."""
    for name, site in latent_sites(traces.model).items():
        if isinstance(base_distribution(site["fn"]), ImproperUniform):
            problem = "an improper prior (ImproperUniform), under which no evidence exists"
            yield Finding("prior", name, problem, "give it a proper one, however wide")


def check_masks(traces: Traces, in_full: Collection[str]) -> Iterator[Finding]:
    """Latents whose density is masked out in one of the two programs alone.

    Args:
        traces: of the pair.
        in_full: latents whose mask in the model does not count; see `masks`.
    """
    guided = random_sites(traces.guide)
    for name, site in latent_sites(traces.model).items():
        if name not in guided or name in in_full:
            continue
        # What a Delta repeats was drawn, and counted, at an auxiliary site without its mask.
        theirs = torch.tensor(True) if is_point(guided[name]) else counted(guided[name])
        if not _broadcast_equal(counted(site), theirs):
            problem = "masked out otherwise in the model than in the guide"
            remedy = "mask its prior and its guide alike (poutine.mask, .mask), or neither"
            yield Finding("mask", name, problem, remedy)


def _broadcast_equal(a: Tensor, b: Tensor) -> bool:
    a, b = torch.broadcast_tensors(a.cpu(), b.cpu())
    return torch.equal(a, b)
