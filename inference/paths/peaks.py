"""The peaks of a log-density, climbed from many points at once, and how wide each of them is.

All climbers are one batch: one evaluation of the density and its gradient moves every one of them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogDensity = Callable[[Tensor], Tensor]  # z `[C, Z]` -> `[C]`, in nats

_MOST_STEPS = 100
_LEAST_GAIN = 1e-4  # of what the slope promises (Armijo's rule)
_SHORTER = 0.25  # the next step's length, where one has led down
_SHORTEST = 1e-6  # of a full step: here the climber stays
_AT_THE_TOP = 1e-3  # the nats left to gain there, about, and on a ridge, at the most
_NO_PEAK = 0.5
_MOST_ENDS = 24  # that are looked at


class Peaks(NamedTuple):
    """Where a density is highest, and the normal approximations there.

    Args:
        z: the peaks `[K, Z]`.
        log_density: there `[K]`.
        factors: L of the covariance LLᵀ of each `[K, Z, Z]`, in float64.
    """

    z: Tensor
    log_density: Tensor
    factors: Tensor


class _Climbers(NamedTuple):
    """Points on their way up.

    Args:
        z: where they are `[C, Z]`.
        value: the log-density `[C]`.
        gradient: its gradient `[C, Z]`.
        inverse: what is known of the inverse of −H, the curvature `[C, Z, Z]`.
        length: of the next step, as a part of a full one `[C]`.
    """

    z: Tensor
    value: Tensor
    gradient: Tensor
    inverse: Tensor
    length: Tensor


def peaks_of(log_density: LogDensity, starts: Tensor, spread: Tensor, widest: Tensor) -> Peaks:
    """The peaks and the ridges that lead up from the starts, each of them once.

    What grows without end, as the density of a hierarchy may, is no peak.

    Args:
        log_density: differentiable.
        starts: `[C, Z]`.
        spread: about how wide a peak is, by entry `[Z]`; a first guess.
        widest: what no peak is wider than, by entry `[Z]`: it bounds steps, and covariances where
            the density is flat.
    """
    ends = _climb(log_density, starts, spread, widest)
    left = ends.value.argsort(descending=True)
    kept: list[Tensor] = []
    factors: list[Tensor] = []
    for _ in range(_MOST_ENDS):
        if not len(left):
            break
        row, left = left[0], left[1:]
        factor = _factor(log_density, _Climbers(*(part[row] for part in ends)), spread, widest)
        if (factor.mT @ ends.gradient[row].double()).square().sum() > _NO_PEAK:
            continue
        kept.append(row)
        factors.append(factor)
        off = (ends.z[left] - ends.z[row]).double()
        away = torch.linalg.solve_triangular(factor, off.mT, upper=False).square().mean(0)
        left = left[away > 1]  # within a standard deviation per entry they are one
    rows = torch.stack(kept) if kept else left[:0]
    square = starts.new_empty(0, starts.shape[1], starts.shape[1], dtype=torch.float64)
    found = torch.stack(factors) if factors else square
    return Peaks(ends.z[rows], ends.value[rows], found)


def _climb(log_density: LogDensity, starts: Tensor, spread: Tensor, widest: Tensor) -> _Climbers:
    """Where the method of Broyden, Fletcher, Goldfarb and Shanno leads, each climber by itself.

    Reference: J. Nocedal, S. J. Wright, "Numerical Optimization", 2006, chapter 6.
    """
    value, gradient = _with_gradient(log_density, starts)
    good = value.isfinite() & gradient.isfinite().all(-1)
    starts, value, gradient = starts[good], value[good], gradient[good]
    first = torch.diag_embed(spread.square()).expand(len(starts), -1, -1).clone()
    at = _Climbers(starts.clone(), value, gradient, first, torch.ones_like(value))
    for _ in range(_MOST_STEPS):
        promise = (at.gradient * _direction(at)).sum(-1)
        moving = (promise > _AT_THE_TOP) & (at.length > _SHORTEST)
        if not moving.any():
            break
        moved = _moved(log_density, _Climbers(*(part[moving] for part in at)), widest)
        for part, new in zip(at, moved, strict=True):
            part[moving] = new
    return at


def _direction(at: _Climbers) -> Tensor:
    """A full step `[C, Z]`, to the top of a parabola."""
    return (at.inverse @ at.gradient.unsqueeze(-1)).squeeze(-1)


def _moved(log_density: LogDensity, at: _Climbers, widest: Tensor) -> _Climbers:
    """Climbers that a step has led up are there; all others are to try a shorter one."""
    direction = _direction(at)
    share = at.length / (direction.abs() / widest).amax(-1).clamp(min=1)
    step = share.unsqueeze(-1) * direction
    value, gradient = _with_gradient(log_density, at.z + step)
    promise = share * (at.gradient * direction).sum(-1)
    higher = (value >= at.value + _LEAST_GAIN * promise) & gradient.isfinite().all(-1)
    new = _Climbers(
        at.z + step,
        value,
        gradient,
        _updated(at.inverse, step.unsqueeze(-1), (at.gradient - gradient).unsqueeze(-1)),
        torch.ones_like(value),
    )
    old = at._replace(length=_SHORTER * at.length)
    pairs = zip(new, old, strict=True)
    return _Climbers(*(torch.where(_like(higher, one), one, other) for one, other in pairs))


def _updated(inverse: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The inverse of −H `[C, Z, Z]` with what a step `[C, Z, 1]` has shown of the gradient."""
    curvature = step.mT @ change
    convex = curvature > 1e-10 * step.norm(dim=1, keepdim=True) * change.norm(dim=1, keepdim=True)
    rho, push = 1 / curvature, inverse @ change
    own = rho * (1 + rho * (change.mT @ push))
    crossed = push @ step.mT
    return torch.where(
        convex, inverse + own * (step @ step.mT) - rho * (crossed + crossed.mT), inverse
    )


def _like(condition: Tensor, part: Tensor) -> Tensor:
    """`[C]` with as many dims as a part of the climbers."""
    return condition.reshape(-1, *[1] * (part.ndim - 1))


def _factor(log_density: LogDensity, end: _Climbers, spread: Tensor, widest: Tensor) -> Tensor:
    """L of (−H)⁻¹ at one end `[Z, Z]`, H by differences of gradients.

    In no direction is it wider than `widest`: what curves less, or the other way, does not count.
    """
    relative = 1e-3 if end.z.dtype == torch.float64 else 3e-2
    sd = end.inverse.diagonal().clamp(min=0).sqrt()
    size = relative * torch.minimum(torch.where(sd > 0, sd, spread), widest)
    rows = torch.cat([end.z + size.diag(), end.z - size.diag()])
    ahead, behind = _with_gradient(log_density, rows)[1].double().chunk(2)
    curvature = (behind - ahead) / (2 * size.double()).unsqueeze(-1)
    unit = widest.double()
    scaled = unit * (curvature + curvature.mT) / 2 * unit.unsqueeze(-1)
    values, vectors = torch.linalg.eigh(scaled if scaled.isfinite().all() else 0 * unit.diag())
    root = unit.unsqueeze(-1) * vectors * values.abs().clamp(min=1.0).rsqrt()
    return torch.linalg.qr(root.mT).R.mT


def _with_gradient(log_density: LogDensity, z: Tensor) -> tuple[Tensor, Tensor]:
    """The log-density `[C]` and its gradient `[C, Z]` at `z`."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        value = log_density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z, allow_unused=True, materialize_grads=True)
    return value.detach(), gradient
