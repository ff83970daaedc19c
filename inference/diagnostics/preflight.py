"""Is this pair fit to be trained and evaluated? Everything that is wrong with it, and the mend."""

import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace

from evidence.inference.diagnostics.preflight_probes import PROBES
from evidence.inference.diagnostics.preflight_structure import (
    OF_ONE,
    OF_THE_PAIR,
    check_shapes,
    check_sites,
)
from evidence.inference.programs.checks import check_data, check_density, check_support
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.enumeration import given, trace_summed_out
from evidence.inference.programs.evaluation import modules_of
from evidence.inference.programs.masks import without_effect
from evidence.inference.programs.parameters import evaluation_store
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program, Traces, trace_pair
from evidence.inference.soundness.findings import Finding, from_error, guarded
from evidence.inference.soundness.pairs import check_masks


def check(model: Program, guide: Program, x: Batch, *, seed: int = 0) -> list[Finding]:
    """Everything that is wrong with a pair of Pyro callables on a batch; an empty list is good.

        data       NaN or infinite values; values outside the likelihood's support
        run        the guide or the model fails
        sites      latents that one of the two lacks, or does not determine; nothing observed
        shape      event shapes that differ; dimensions that belong to no plate
        support    the guide draws where the prior has no density, or misses some of the posterior
        prior      a prior that is no density
        mask       latents masked out in one of the two alone
        density    a point mass for a guide
        scale      sites scaled by poutine.scale or a subsampled plate
        finite     log-probabilities that are NaN or infinite
        weights    `log_weights` fails
        batch      the pair does not follow the size of the batch
        leak       a row that changes with another datum, or with its place in the batch
        gradient   trainable parameters without a gradient, or with one that is not finite

    How the pair behaves (from `weights` on) is checked only if nothing was found before. No
    exception escapes: what fails is a finding. Random state, parameter store and the modules'
    buffers are afterwards as they were.

    Latents that all data share make one weight for the data set: batches of it, and rows that
    leak, are then no matter.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: a batch `[B, *data_shape]`, or several tensors (see `fit`); a single datum cannot show
            whether rows leak.
        seed: of all draws.
    """
    x = as_data(x)
    model, guide = takes(model, x), takes(guide, x)
    findings = list(guarded("data", lambda: check_data(x)))
    if findings:
        return findings
    with isolated_rng(seed, x.device), _as_they_were(model, guide), evaluation_store():
        findings = list(_structure(model, guide, x))
        if findings:
            return findings
        return [
            finding
            for name, probe in PROBES
            for finding in guarded(name, lambda probe=probe: probe(model, guide, x))
        ]


def _structure(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """All that one run of the pair shows."""
    try:
        guide_trace = _trace(guide, x)
    except Exception as error:
        yield from_error("run", error, "the guide fails")
        return
    try:
        with torch.no_grad():
            model_trace = trace_summed_out(model, x, guide_trace)
    except Exception as error:
        yield from _failed_model(model, guide_trace, x, error)
        return

    def again() -> Trace:
        return trace_pair(model, guide, x).model

    yield from guarded("data", lambda: check_support(model_trace, again))
    of_guide = guarded(
        "density", lambda: check_density(guide_trace, again=lambda: _trace(guide, x))
    )
    yield from of_guide
    for name, of_pair in OF_THE_PAIR.items():
        yield from guarded(name, lambda of=of_pair: of(guide_trace, model_trace))
    in_full = without_effect(model, x, model_trace, guide_trace)
    yield from guarded("mask", lambda: check_masks(Traces(guide_trace, model_trace), in_full))
    for role, trace in (("guide", guide_trace), ("model", model_trace)):
        for name, of_one in OF_ONE.items():
            yield from guarded(name, lambda of=of_one, r=role, t=trace: of(r, t, len(x)))


def _failed_model(
    model: Program, guide_trace: Trace, x: Batch, error: Exception
) -> Iterator[Finding]:
    """Is it the model, or what the guide gave it?"""
    try:
        alone = given(_trace(model, x))
    except Exception as own:
        yield from_error("run", own, "the model fails")
        return
    found = [*check_sites(guide_trace, alone), *check_shapes(guide_trace, alone)]
    yield from found or [from_error("run", error, "the model fails on the guide's latents")]


@torch.no_grad()
def _trace(program: Program, x: Batch) -> Trace:
    return poutine.trace(program).get_trace(x)


@contextmanager
def _as_they_were(*programs: Program) -> Generator[None]:
    """No warnings, no validation; buffers, such as running statistics, restored at the end."""
    buffers = [buffer for module in modules_of(*programs) for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        with warnings.catch_warnings(), pyro.validation_enabled(False):
            warnings.simplefilter("ignore")
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
