"""Losses, gradients and parameters that are not finite: the error, and its likely cause."""

import torch
from pyro import poutine
from torch import Tensor

from evidence.inference.programs.data import Batch
from evidence.inference.programs.traces import Program, random_sites
from evidence.inference.programs.validation import advice_on_scale


class NonFiniteLossError(ValueError):
    """Training was stopped by a loss, gradient or parameter that is NaN or infinite."""


def non_finite_parameter(parameters: dict[str, Tensor]) -> str | None:
    """The first parameter that is not finite, by name."""
    return next((n for n, p in parameters.items() if not torch.isfinite(p).all()), None)


def likely_cause(
    model: Program,
    guide: Program,
    x: Batch,
    parameters: dict[str, Tensor],
    *,
    was_updated: bool,
    advice: str,
) -> str:
    """Why a step on the batch `x` failed, and what to do.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: the batch.
        parameters: leaf tensors by name.
        was_updated: whether there was an update before.
        advice: what to do about updates that are too large.
    """
    if not torch.isfinite(x.abs()).all():
        return "Likely cause: the transform makes NaN or infinite data"
    site = _non_finite_site(model, guide, x)
    on_scale = advice_on_scale(x)
    if not was_updated:
        where = f"the log-probability of site {site!r} overflows" if site else "the start"
        mend = on_scale or "start from smaller weights, or look at the data"
        return f"Likely cause, as nothing was updated yet: {where}: {mend}"
    advice += f"; {on_scale}" if on_scale else ""
    if name := non_finite_parameter(parameters):
        return f"Likely cause: parameter {name} overflowed in an earlier update: {advice}"
    if site is not None:
        return f"Likely cause: the log-probability of site {site!r} overflowed: {advice}"
    return f"Likely cause: the optimizer diverged: {advice}"


@torch.no_grad()
def _non_finite_site(model: Program, guide: Program, x: Batch) -> str | None:
    """The first site without a finite log-probability, guide before model."""
    guide_trace = poutine.trace(guide).get_trace(x)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    for trace in (guide_trace, model_trace):
        for name, site in random_sites(trace).items():
            if not torch.isfinite(site["fn"].log_prob(site["value"])).all():
                return name
    return None
