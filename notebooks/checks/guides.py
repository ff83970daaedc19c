"""Exercises of notebook 4: both divergences on a grid, contours by mass, a guide of one's own."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Laplace, Normal, StudentT

from evidence.notebooks.checks.exercise import Case, Exercise, Function, WrongAnswerError, shape_of

_SIZE = 24


def _grid(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """A density p up to a constant, and a normalized q, at the cells of a square."""
    axis = torch.linspace(-3.0, 3.0, _SIZE, dtype=dtype)
    z = torch.cartesian_prod(axis, axis)
    area = float((axis[1] - axis[0]) ** 2)
    means = torch.randn(2, 2, generator=generator, dtype=dtype) / 2
    log_p, log_q = (
        -(z - mean).square().sum(-1) / (2 * scale**2)
        for mean, scale in zip(means, (0.8, 1.1), strict=True)
    )
    log_q = log_q - log_q.logsumexp(0) - math.log(area)
    return {"log_p": log_p + 1.7, "log_q": log_q, "cell_area": area}


def _normalized(log_p: Tensor, area: float) -> Tensor:
    return log_p - log_p.logsumexp(0) - math.log(area)


def _kl(log_a: Tensor, log_b: Tensor, area: float) -> Tensor:
    """KL(a ‖ b) of normalized densities."""
    return (log_a.exp() * (log_a - log_b)).sum() * area


def _reverse(log_p: Tensor, log_q: Tensor, area: float) -> Tensor:
    return _kl(log_q, _normalized(log_p, area), area)


def _forward(log_p: Tensor, log_q: Tensor, area: float) -> Tensor:
    return _kl(_normalized(log_p, area), log_q, area)


def _mistakes(right: Function, other: Function, which: str) -> dict[str, Function]:
    is_reverse = right is _reverse
    weights = (lambda p, q: q) if is_reverse else (lambda p, q: p)
    return {
        f"this is the other divergence: {which}": other,
        "the sign is flipped: a KL divergence is never negative": lambda *a: -right(*a),
        "log_p is not normalized: subtract its log-sum-exp over the cells, and log(cell_area)": (
            lambda p, q, a: (weights(p, q).exp() * ((q - p) if is_reverse else (p - q))).sum() * a
        ),
        "the cell area is missing: an integral is a sum times the area of a cell": (
            lambda p, q, a: right(p, q, a) / a
        ),
        "this is the mean over the cells: an integral is a sum times the area of a cell": (
            lambda p, q, a: right(p, q, a) / (a * len(p))
        ),
        "the log-densities are not exponentiated where they weigh": (
            lambda p, q, a: (
                (weights(_normalized(p, a), q) * (_normalized(p, a) - q) * (-1) ** is_reverse).sum()
                * a
            )
        ),
        "nothing weighs the difference of the logs: it is an expectation": (
            lambda p, q, a: ((_normalized(p, a) - q) * (-1) ** is_reverse).sum() * a
        ),
        "this is in bits (log to base 2): expected nats": lambda *a: right(*a) / math.log(2),
        "one number per cell: sum them": (
            lambda p, q, a: (
                weights(_normalized(p, a), q).exp()
                * (_normalized(p, a) - q)
                * (-1) ** is_reverse
                * a
            )
        ),
    }


reverse_kl = Exercise(
    "reverse_kl",
    right=_reverse,
    cases=_grid,
    has_gradients=False,
    mistakes=_mistakes(_reverse, _forward, "KL(q ‖ p) weighs log q − log p by q"),
)
forward_kl = Exercise(
    "forward_kl",
    right=_forward,
    cases=_grid,
    has_gradients=False,
    mistakes=_mistakes(_forward, _reverse, "KL(p ‖ q) weighs log p − log q by p"),
)


def _densities(generator: torch.Generator, dtype: torch.dtype) -> Case:
    axis = torch.linspace(-3.0, 3.0, _SIZE, dtype=dtype)
    z = torch.cartesian_prod(axis, axis)
    noise = 1 + 0.3 * torch.rand(len(z), generator=generator, dtype=dtype)
    share = 0.3 + 0.6 * torch.rand((), generator=generator).item()
    return {"density": (-z.square().sum(-1) / 2).exp() * noise, "share": share}


def _level(density: Tensor, share: float) -> Tensor:
    descending = density.sort(descending=True).values
    mass = descending.cumsum(0) / descending.sum()
    return descending[int(torch.searchsorted(mass, share))]


mass_level = Exercise(
    "mass_level",
    right=_level,
    cases=_densities,
    has_gradients=False,
    mistakes={
        "this is a quantile of the heights: so many of the *cells* lie above, not so much of the "
        "mass": lambda density, share: density.sort(descending=True).values[
            int(share * len(density))
        ],
        "this counts cells from below: torch.quantile(density, share) knows nothing of mass": (
            lambda density, share: density.quantile(share)
        ),
        "the contour holds 1 − share of the mass: begin to add up at the highest cell": (
            lambda density, share: _level(density, 1 - share)
        ),
        "this is the share of the maximum's height, whatever mass lies above": (
            lambda density, share: share * density.max()
        ),
        "this is 1 − share of the maximum's height, whatever mass lies above": (
            lambda density, share: (1 - share) * density.max()
        ),
        "this is the number of cells above the contour; expected the height of the contour": (
            lambda density, share: (density >= _level(density, share)).sum().to(density)
        ),
    },
)

_NUM_DATA, _NUM_LATENTS = 5, 3


def _bells(generator: torch.Generator, dtype: torch.dtype) -> Case:
    shape = (_NUM_DATA, _NUM_LATENTS)
    loc, log_scale = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return {"loc": loc, "log_scale": log_scale / 2}


def _density(out: Any, case: Case) -> Tensor:
    """Its log-density at fixed places `[N, Z]`."""
    if not isinstance(out, Distribution) and not hasattr(out, "log_prob"):
        raise WrongAnswerError(
            f"student_t: expected a distribution, got {shape_of(out)}: return the distribution "
            "itself, not a draw of it"
        )
    loc = case["loc"]
    shift = torch.linspace(-2.0, 2.0, loc.numel(), dtype=loc.dtype).reshape(loc.shape)
    return out.log_prob(loc.detach() + shift)


def _of(distribution: Function) -> Function:
    """The log-density of a posterior that has one number per datum."""

    def log_prob(loc: Tensor, log_scale: Tensor) -> Tensor:
        return _density(Independent(distribution(loc, log_scale), 1), {"loc": loc})

    return log_prob


student_t = Exercise(
    "student_t",
    right=_of(lambda loc, s: StudentT(4.0, loc, s.exp())),
    cases=_bells,
    has_gradients=False,
    read=_density,
    mistakes={
        "one density per latent: their product is .to_event(1)": (
            lambda loc, s: _density(StudentT(4.0, loc, s.exp()), {"loc": loc})
        ),
        "log_scale is taken for the scale itself: the scale is log_scale.exp()": _of(
            lambda loc, s: StudentT(4.0, loc, s.abs())
        ),
        "log_scale is the logarithm of the scale, not of its square": _of(
            lambda loc, s: StudentT(4.0, loc, (s / 2).exp())
        ),
        "this is a normal distribution: StudentT(4.0, …) has the heavy tails": _of(
            lambda loc, s: Normal(loc, s.exp())
        ),
        "this is a Laplace distribution: StudentT(4.0, …) has the heavy tails": _of(
            lambda loc, s: Laplace(loc, s.exp())
        ),
        "the location is missing: the bell does not follow x": _of(
            lambda loc, s: StudentT(4.0, torch.zeros_like(loc), s.exp())
        ),
        "the scale is missing": _of(lambda loc, s: StudentT(4.0, loc, torch.ones_like(s))),
        "the degrees of freedom are 1 (a Cauchy distribution); expected 4": _of(
            lambda loc, s: StudentT(1.0, loc, s.exp())
        ),
        "location and scale are swapped": _of(lambda loc, s: StudentT(4.0, s, loc.abs())),
    },
)
