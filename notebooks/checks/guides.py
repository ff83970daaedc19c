"""Exercises of notebook 4: both divergences on a grid, contours by mass, a guide of one's own."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import MultivariateStudentT
from torch import Tensor
from torch.distributions import Independent, Laplace, Normal, StudentT

from evidence.notebooks.checks.cases import size
from evidence.notebooks.checks.comparison import shape_of
from evidence.notebooks.checks.diagnosis import FLOAT32_DIGITS
from evidence.notebooks.checks.exercise import Case, Exercise, Function, WrongAnswerError


def _grid(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """A density p up to a constant, and a normalized q, at the cells of a square."""
    axis = torch.linspace(-3.0, 3.0, size(generator, 20, 28), dtype=dtype)
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

    def unnormalized(p: Tensor, q: Tensor, area: float) -> Tensor:
        """As if log p were normalized."""
        return _kl(q, p, area) if is_reverse else _kl(p, q, area)

    def minus_log(p: Tensor, q: Tensor, a: float) -> Tensor:
        """The expectation of −log of the density that does not weigh."""
        p = _normalized(p, a)
        return -(q.exp() * p if is_reverse else p.exp() * q).sum() * a

    def weighted(values: Tensor, p: Tensor, q: Tensor, a: float) -> Tensor:
        return (weights(_normalized(p, a), q).exp() * values).sum() * a

    return {
        "this is the mean of both divergences: expected one of them": (
            lambda *a: (right(*a) + other(*a)) / 2
        ),
        "this is the sum of both divergences: expected one of them": (
            lambda *a: right(*a) + other(*a)
        ),
        "log_p is normalized without the cell area: subtract log(cell_area) too": (
            lambda p, q, a: unnormalized(p - p.logsumexp(0), q, a)
        ),
        "log(cell_area) is added to log_p: it is subtracted, so that exp(log_p) · area sums to "
        "one": lambda p, q, a: unnormalized(p - p.logsumexp(0) + math.log(a), q, a),
        "log_p is divided by its largest value, not by its integral": (
            lambda p, q, a: unnormalized(p - p.max(), q, a)
        ),
        "this is the cross-entropy: the entropy of the density that weighs is missing": minus_log,
        "this is the entropy of the density that weighs: the other density is missing": (
            lambda p, q, a: minus_log(p, q, a) - right(p, q, a)
        ),
        "the cell area is there twice": lambda p, q, a: right(p, q, a) * a,
        "this is the difference of the densities: expected that of their logs": (
            lambda p, q, a: weighted(
                (q.exp() - _normalized(p, a).exp()) * (1 if is_reverse else -1), p, q, a
            )
        ),
        "the difference of the logs has lost its sign: leave out abs()": (
            lambda p, q, a: weighted((q - _normalized(p, a)).abs(), p, q, a)
        ),
        "this is the total variation: expected an expectation of log-densities": (
            lambda p, q, a: (q.exp() - _normalized(p, a).exp()).abs().sum() * a / 2
        ),
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
    axis = torch.linspace(-3.0, 3.0, size(generator, 20, 28), dtype=dtype)
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
        "this is the quantile 1 − share of the heights: it counts cells, not their mass": (
            lambda density, share: density.quantile(1 - share)
        ),
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
        "this is one cell too low: stop at the first that reaches the share": (
            lambda density, share: density[density < _level(density, share)].max()
        ),
        "this is one cell too high: the cell that reaches the share belongs to it": (
            lambda density, share: density[density > _level(density, share)].min()
        ),
        "the running sum is not divided by the sum of all: the share is one of the mass": (
            lambda density, share: density.sort(descending=True).values[
                int((density.sort(descending=True).values.cumsum(0) < share).sum())
            ]
        ),
        "the cells are not sorted: add up from the highest down": (
            lambda density, share: density[
                int(torch.searchsorted(density.cumsum(0) / density.sum(), share))
            ]
        ),
        "this is the number of the cell: expected its height": (
            lambda density, share: (density > _level(density, share)).sum().to(density)
        ),
        "this is the mass above the contour: expected the height of the contour": (
            lambda density, share: density[density >= _level(density, share)].sum() / density.sum()
        ),
        "the heights are divided by their sum: expected a height of the density as it came": (
            lambda density, share: _level(density, share) / density.sum()
        ),
        "softmax of the heights is no density: divide by their sum": (
            lambda density, share: density.sort(descending=True).values[
                int(
                    torch.searchsorted(
                        density.sort(descending=True).values.softmax(0).cumsum(0), share
                    )
                )
            ]
        ),
        "this is the mean height, whatever the share is": lambda density, share: density.mean(),
        "this says of each cell whether it lies above the contour: expected one height": (
            lambda density, share: density >= _level(density, share)
        ),
        "this is the number of cells above the contour; expected the height of the contour": (
            lambda density, share: (density >= _level(density, share)).sum().to(density)
        ),
    },
)


def _bells(generator: torch.Generator, dtype: torch.dtype) -> Case:
    shape = size(generator, 4, 8), size(generator, 2, 6)
    loc, log_scale = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return {"loc": loc, "log_scale": log_scale / 2}


def _density(out: Any, case: Case) -> Tensor:
    """Its log-density at fixed places `[N, Z]`."""
    if isinstance(out, type) or not hasattr(out, "log_prob"):
        raise WrongAnswerError(
            f"student_t: expected a distribution, got {shape_of(out)}: return the distribution "
            "itself, not a draw of it, its density or its class"
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
    read=_density,
    tolerance=FLOAT32_DIGITS,  # torch.tensor(4.0) is a float32
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
        "the degrees of freedom are 3; expected 4": _of(lambda loc, s: StudentT(3.0, loc, s.exp())),
        "the degrees of freedom are the number of latents; expected 4": _of(
            lambda loc, s: StudentT(float(loc.shape[-1]), loc, s.exp())
        ),
        "the scale is exp(2 log_scale), a variance: StudentT takes exp(log_scale)": _of(
            lambda loc, s: StudentT(4.0, loc, (2 * s).exp())
        ),
        "the scale is exp(−log_scale): expected exp(log_scale)": _of(
            lambda loc, s: StudentT(4.0, loc, (-s).exp())
        ),
        "the scale comes from softplus: expected log_scale.exp()": _of(
            lambda loc, s: StudentT(4.0, loc, F.softplus(s))
        ),
        "the scale is made that of a standard deviation, by √2: StudentT takes exp(log_scale)": _of(
            lambda loc, s: StudentT(4.0, loc, s.exp() / math.sqrt(2))
        ),
        "this is a multivariate Student-t, whose latents share their tails: expected independent "
        "ones": lambda loc, s: _density(
            MultivariateStudentT(
                torch.tensor(4.0, dtype=loc.dtype), loc, torch.diag_embed(s.exp())
            ),
            {"loc": loc},
        ),
        "the data are added up too, by .to_event(2): expected .to_event(1)": (
            lambda loc, s: _density(Independent(StudentT(4.0, loc, s.exp()), 2), {"loc": loc})
        ),
    },
)
