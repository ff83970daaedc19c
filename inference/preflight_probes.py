"""Checks of how a pair behaves: other data, another order, another size, gradients, weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor

from inference.evaluation import evaluation_mode
from inference.findings import Finding, from_error
from inference.parameters import named_parameters
from inference.random_state import isolated_rng
from inference.traces import Program, layout_of, log_prob_per_datum, random_sites
from inference.weights import log_weights

_JITTER = 0.01  # added to parameters to tell a dead one from one whose gradient is 0 at the start

Scores = dict[tuple[str, str], Tensor]  # (role, site) -> log-probability of every row, [B]


def _check_leaks(model: Program, guide: Program, x: Tensor) -> Iterator[Finding]:
    """Row j of the pair, at the same latents, when another datum changes."""
    changed = _with_another_first_row(x)
    if changed is None:
        return
    mend = "let row j depend on x[j] only: no statistics across the batch"
    for mode in (evaluation_mode(model, guide), nullcontext()):
        with mode, torch.no_grad():
            scores = _Scores(model, guide, x)
            before, after = scores.at(x), scores.at(changed)
        leaks = [key for key in before if not _same(before[key][1:], after[key][1:])]
        for role, site in leaks:
            row = 1 + int((before[role, site] - after[role, site])[1:].abs().nan_to_num().argmax())
            yield Finding("leak", site, f"row {row} of the {role} changes with x[0]", mend)
        if leaks:
            return
        mend += ", as BatchNorm takes them while training"


def _check_positions(model: Program, guide: Program, x: Tensor) -> Iterator[Finding]:
    """Rows and latents rolled by one: the scores must follow."""
    if len(x) < 2:
        return
    with evaluation_mode(model, guide), torch.no_grad():
        scores = _Scores(model, guide, x)
        before, after = scores.at(x), scores.rolled().at(x.roll(1, 0))
    for role, site in before:
        if not _same(before[role, site].roll(1), after[role, site]):
            problem = f"a row of the {role} depends on its place in the batch, not on x alone"
            mend = "let row j depend on x[j] only: keep no parameter per row, shuffle nothing"
            yield Finding("leak", site, problem, mend)


def _check_batch_size(model: Program, guide: Program, x: Tensor) -> Iterator[Finding]:
    """A batch with one datum less."""
    if len(x) < 2:
        return
    with evaluation_mode(model, guide), torch.no_grad():
        try:
            layout_of(model, guide, x[:-1], require_density=False)
        except Exception as error:
            found = from_error("batch", error, f"fails on {len(x) - 1} of the {len(x)} data")
            mend = "take every size from len(x), the plate's too"
            yield Finding("batch", found.site, found.problem, mend)


def _check_gradients(model: Program, guide: Program, x: Tensor) -> Iterator[Finding]:
    """Trainable parameters that the ELBO does not move."""
    with evaluation_mode(model, guide):
        loss = Trace_ELBO().differentiable_loss(model, guide, x)
        named = {n: p for n, p in named_parameters(model, guide).items() if p.requires_grad}
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


def _check_weights(model: Program, guide: Program, x: Tensor) -> Iterator[Finding]:
    """What `log_weights` itself says."""
    try:
        log_w = log_weights(model, guide, x, 2)
    except Exception as error:
        log_w = log_weights(model, guide, x, 2, vectorize_particles=False)
        found = from_error("weights", error, "cannot draw several particles in one call")
        mend = "count dims from the right, for latents [..., B, Z]; or vectorize_particles=False"
        yield Finding("weights", found.site, found.problem, mend)
    if not torch.isfinite(log_w).all():
        mend = "look at the parameters of the distributions"
        yield Finding("weights", None, "a log-weight that is NaN or infinite", mend)


PROBES: tuple[tuple[str, Callable[[Program, Program, Tensor], Iterator[Finding]]], ...] = (
    ("weights", _check_weights),
    ("batch", _check_batch_size),
    ("leak", _check_leaks),
    ("leak", _check_positions),
    ("gradient", _check_gradients),
)


class _Scores:
    """Log-probabilities of every row, given latents that are drawn once.

    The latents are held fixed rather than drawn anew from the same random numbers: a rejection
    sampler uses up more or fewer of these when another row changes.
    """

    def __init__(self, model: Program, guide: Program, x: Tensor) -> None:
        self.model, self.guide = model, guide
        self.layout = layout_of(model, guide, x, require_density=False)
        self.latents = poutine.trace(guide).get_trace(x)

    def at(self, x: Tensor) -> Scores:
        """Of the sites of guide and model, each `[B]`."""
        with isolated_rng(0, x.device):  # what the programs draw besides, such as dropout
            traces = {
                role: poutine.trace(poutine.replay(program, trace=self.latents)).get_trace(x)
                for role, program in (("guide", self.guide), ("model", self.model))
            }
        return {
            (role, name): log_prob_per_datum(site, 1, len(x), self.layout)[0].expand(len(x))
            for role, trace in traces.items()
            for name, site in random_sites(trace).items()
        }

    def rolled(self) -> "_Scores":
        """The same latents, each one row further."""
        for site in random_sites(self.latents).values():
            dim = self.layout.data_dim - site["fn"].event_dim
            if -dim <= site["value"].ndim:
                site["value"] = site["value"].roll(1, dim)
        return self


def _with_another_first_row(x: Tensor) -> Tensor | None:
    """`x` with its first row replaced by one that differs, or None if all rows are equal."""
    others = (x != x[:1]).flatten(1).any(1) if x.ndim > 1 else x != x[0]
    if not others.any():
        return None
    changed = x.clone()
    changed[0] = x[int(others.nonzero()[0])]
    return changed


def _same(a: Tensor, b: Tensor) -> bool:
    relative = 1e-5 if a.dtype == torch.float32 else 1e-9
    return torch.allclose(a, b, rtol=relative, atol=relative, equal_nan=True)


def _gradients(loss: Tensor, named: dict[str, Tensor]) -> dict[str, Tensor | None]:
    grads: Sequence[Tensor | None] = [None] * len(named)
    if loss.requires_grad:
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return dict(zip(named, grads, strict=True))


def _idle(grads: dict[str, Tensor | None], x: Tensor) -> set[str]:
    """Parameters without a gradient; one of 0 says nothing if what it multiplies is 0, as x is."""
    return {n for n, grad in grads.items() if grad is None or (x.any() and not grad.any())}


def _idle_when_jittered(
    model: Program, guide: Program, x: Tensor, named: dict[str, Tensor]
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
