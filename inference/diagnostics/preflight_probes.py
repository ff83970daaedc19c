"""Checks of how a pair behaves: other data, another order, another size, gradients, weights."""

from collections.abc import Callable, Iterator, Sequence

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from evidence.inference.programs.data import Batch
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.parameters import trainable_parameters
from evidence.inference.programs.traces import Program, layout_of, trace_pair
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.inference.soundness.auxiliary import check_auxiliary
from evidence.inference.soundness.coverage import Coverage
from evidence.inference.soundness.findings import Finding, from_error
from evidence.inference.soundness.leaks import check_leaks, check_positions

_JITTER = 0.01  # added to parameters to tell a dead one from one whose gradient is 0 at the start


def _check_leaks(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """Rows that depend on other data, in evaluation mode or else while training."""
    with evaluation_mode(model, guide):
        found = list(check_leaks(model, guide, x))
    yield from found
    if not found:
        for leak in check_leaks(model, guide, x):
            remedy = f"{leak.mend}, as BatchNorm takes them while training"
            yield Finding(leak.check, leak.site, leak.problem, remedy)


def _check_positions(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """Rows that depend on their place in the batch."""
    with evaluation_mode(model, guide):
        yield from check_positions(model, guide, x)


def _check_batch_size(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """A batch with one datum less."""
    if len(x) < 2 or _is_joint(model, guide, x):
        return
    with evaluation_mode(model, guide), torch.no_grad():
        try:
            layout_of(model, guide, x[:-1], require_density=False)
        except Exception as error:
            found = from_error("batch", error, f"fails on {len(x) - 1} of the {len(x)} data")
            mend = "take every size from len(x), the plate's too"
            yield Finding("batch", found.site, found.problem, mend)


def _is_joint(model: Program, guide: Program, x: Batch) -> bool:
    with evaluation_mode(model, guide), torch.no_grad():
        return layout_of(model, guide, x, require_density=False).is_joint


def _check_gradients(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """Trainable parameters that the ELBO does not move."""
    with evaluation_mode(model, guide):
        loss = Trace_ELBO().differentiable_loss(model, guide, x)
        named = trainable_parameters(model, guide)
        if not named:
            return
        first = _gradients(loss, named)
        idle = _idle(first, x)
        if idle:
            idle &= _idle_when_jittered(model, guide, x, named)
    for name, grad in first.items():
        if name in idle:
            mend = "use it, do not detach what it makes, or set requires_grad_(False)"
            yield Finding("gradient", name, "a parameter that the ELBO does not depend on", mend)
        elif grad is not None and not torch.isfinite(grad).all():
            mend = "look for a log, a square root or a division at zero"
            yield Finding("gradient", name, "a gradient that is NaN or infinite", mend)


def _check_weights(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """What the weights themselves say; that particles are drawn one by one is no fault."""
    log_w = unchecked_log_weights(model, guide, x, 2)
    if not torch.isfinite(log_w).all():
        mend = "look at the parameters of the distributions"
        yield Finding("weights", None, "a log-weight that is NaN or infinite", mend)


def _check_auxiliary(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """Auxiliary draws of the guide."""
    with evaluation_mode(model, guide), torch.no_grad():
        layout = layout_of(model, guide, x, require_density=False)
        yield from check_auxiliary(guide, trace_pair(model, guide, x), x, layout)


def _check_coverage(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """What of the posterior the guide misses."""
    with evaluation_mode(model, guide), torch.no_grad():
        layout = layout_of(model, guide, x, require_density=False)
        yield from Coverage(model, guide, x, layout).faults()


PROBES: tuple[tuple[str, Callable[[Program, Program, Batch], Iterator[Finding]]], ...] = (
    ("weights", _check_weights),
    ("sites", _check_auxiliary),
    ("support", _check_coverage),
    ("batch", _check_batch_size),
    ("leak", _check_leaks),
    ("leak", _check_positions),
    ("gradient", _check_gradients),
)


def _gradients(loss: Tensor, named: dict[str, Tensor]) -> dict[str, Tensor | None]:
    grads: Sequence[Tensor | None] = [None] * len(named)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, grads, strict=True))


def _idle(grads: dict[str, Tensor | None], x: Batch) -> set[str]:
    """Parameters without a gradient; one of 0 says nothing if what it multiplies is 0, as x is."""
    return {n for n, grad in grads.items() if grad is None or (x.any() and not grad.any())}


def _idle_when_jittered(
    model: Program, guide: Program, x: Batch, named: dict[str, Tensor]
) -> set[str]:
    """Which have no gradient either when all parameters are moved a little."""
    before = {name: p.detach().clone() for name, p in named.items()}
    try:
        with torch.no_grad():
            for p in named.values():
                p.add_(_JITTER * torch.randn_like(p))
        grads = _gradients(Trace_ELBO().differentiable_loss(model, guide, x), named)
    finally:
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(before[name])
    return _idle(grads, x)
