"""Densities that are hard on samplers, and what they integrate to."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import integrate, stats
from scipy.special import logsumexp
from torch import Tensor

from evidence.models.problems import modes as known
from evidence.models.problems.problem import Problem


def _in_box(low: float, high: float, dim: int, log_likelihood: Callable[[Tensor], Tensor]) -> None:
    z = pyro.sample("z", dist.Uniform(low, high).expand([dim]).to_event(1))
    pyro.factor("likelihood", log_likelihood(z))


_SHELL = 3.5  # from the middle of the cube to that of a shell


def shells(dim: int = 2) -> None:
    """Two thin Gaussian shells of radius 2 in a cube."""

    def log_likelihood(z: Tensor) -> Tensor:
        rings = []
        for centre in (-_SHELL, _SHELL):
            middle = torch.zeros(dim).to(z)
            middle[0] = centre
            rings.append(dist.Normal(2.0, 0.1).log_prob((z - middle).norm(dim=-1)))
        return torch.logaddexp(*rings)

    _in_box(-6.0, 6.0, dim, log_likelihood)


def shells_evidence(dim: int = 2) -> float:
    """One integral over the radius; the shells do not overlap, nor leave the cube."""
    log_surface = math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)
    mass, _ = integrate.quad(
        lambda r: r ** (dim - 1) * stats.norm.pdf(r, 2, 0.1), 1, 3, points=[2], epsabs=0
    )
    return math.log(2) + log_surface + math.log(mass) - dim * math.log(12)


def eggbox() -> None:
    """Eighteen modes, in a square."""
    _in_box(
        0.0,
        10 * math.pi,
        2,
        lambda z: (2 + torch.cos(z[..., 0] / 2) * torch.cos(z[..., 1] / 2)) ** 5,
    )


def eggbox_evidence() -> float:
    """The trapezoidal rule, exact for a periodic function; the square holds whole half periods."""
    angle = np.linspace(0, 5 * math.pi, 1001)
    weights = np.full(len(angle), 1 / (len(angle) - 1))
    weights[[0, -1]] /= 2
    log_f = (2 + np.cos(angle[:, None]) * np.cos(angle)) ** 5
    return float(logsumexp(log_f + np.log(weights)[:, None] + np.log(weights)))


def rosenbrock() -> None:
    """A narrow curved valley, in a square."""

    def log_likelihood(z: Tensor) -> Tensor:
        x, y = z[..., 0], z[..., 1]
        return -((1 - x) ** 2) - 100 * (y - x**2) ** 2

    _in_box(-5.0, 5.0, 2, log_likelihood)


def rosenbrock_evidence() -> float:
    """Gaussian in y, given x: error functions, and one integral over x."""
    x = np.linspace(-5, 5, 200_001)
    scale = math.sqrt(1 / 200)
    inside = stats.norm.cdf((5 - x**2) / scale) - stats.norm.cdf((-5 - x**2) / scale)
    with np.errstate(divide="ignore"):
        log_f = -((1 - x) ** 2) + math.log(scale * math.sqrt(2 * math.pi)) + np.log(inside)
    return float(logsumexp(log_f) + math.log(x[1] - x[0]) - 2 * math.log(10))


def _log_gamma(z: Tensor, loc: float) -> Tensor:
    """Log-density of the logarithm of an exponential variable, at a location."""
    return (z - loc) - torch.exp(z - loc)


def log_gamma(dim: int = 2) -> None:
    """Four modes of skewed and of Gaussian shape, the other dimensions with one each."""

    def log_likelihood(z: Tensor) -> Tensor:
        half = math.log(0.5)
        skewed = torch.logaddexp(_log_gamma(z[..., 0], 10.0), _log_gamma(z[..., 0], -10.0))
        normal = [dist.Normal(centre, 1.0).log_prob(z[..., 1]) for centre in (-10.0, 10.0)]
        total = 2 * half + skewed + torch.logaddexp(*normal)
        for i in range(2, dim):
            entry = z[..., i]
            is_skewed = i + 1 <= (dim + 2) / 2
            one = _log_gamma(entry, 10.0) if is_skewed else dist.Normal(10.0, 1.0).log_prob(entry)
            total = total + one
        return total

    _in_box(-30.0, 30.0, dim, log_likelihood)


def log_gamma_evidence(dim: int = 2) -> float:
    """Products of one-dimensional densities, cut off at the edges of the cube."""

    def skewed(centre: float) -> float:  # mass of the log of an exponential variable
        return math.exp(-math.exp(-30 - centre)) - math.exp(-math.exp(30 - centre))

    normal = 1 - 2 * stats.norm.sf(20)
    total = math.log(0.5 * (skewed(10.0) + skewed(-10.0))) + math.log(normal)
    for i in range(2, dim):
        total += math.log(skewed(10.0) if i + 1 <= (dim + 2) / 2 else normal)
    return total - dim * math.log(60)


_STUDENTS = ((1 / 3, -10.0), (2 / 3, 10.0))  # share and centre


def student_mixture() -> None:
    """Two modes with heavy tails, in a square, one twice the other."""

    def log_likelihood(z: Tensor) -> Tensor:
        parts = [
            math.log(share) + dist.StudentT(3.0, centre, 1.0).log_prob(z).sum(-1)
            for share, centre in _STUDENTS
        ]
        return torch.logaddexp(*parts)

    _in_box(-30.0, 30.0, 2, log_likelihood)


def student_mixture_evidence() -> float:
    """Distribution functions of Student's t."""
    inside = [stats.t.cdf(30 - c, 3) - stats.t.cdf(-30 - c, 3) for c in (-10.0, 10.0)]
    return math.log(inside[0] ** 2 / 3 + 2 * inside[1] ** 2 / 3) - 2 * math.log(60)


_MODES_PRIOR = 5.0
Modes = tuple[tuple[float, float, float], ...]  # share, centre in every dimension, scale
# A mode of a fifth of the width in four dimensions is there for one of 20,000 prior draws.
_TWO: Modes = ((0.3, -8.0, 0.7), (0.7, 8.0, 1.0))
_NEEDLE: Modes = ((0.2, -8.0, 0.2), (0.8, 8.0, 1.0))


def gaussian_modes(modes: Modes, dim: int) -> None:
    """Gaussian modes far apart, under a prior that holds them all."""
    z = pyro.sample("z", dist.Normal(0.0, _MODES_PRIOR).expand([dim]).to_event(1))
    parts = [
        math.log(share) + dist.Normal(centre, scale).log_prob(z).sum(-1)
        for share, centre, scale in modes
    ]
    pyro.factor("likelihood", torch.logsumexp(torch.stack(parts), 0))


def gaussian_modes_evidence(modes: Modes, dim: int) -> float:
    """Gaussian integrals."""
    masses = [
        math.log(share) + dim * stats.norm.logpdf(centre, 0, math.hypot(scale, _MODES_PRIOR))
        for share, centre, scale in modes
    ]
    return float(logsumexp(masses))


_FUNNEL_DATA = torch.zeros(9)


def funnel(y: Tensor) -> None:
    """Nine observations whose means have a scale that is not known within factors of e³."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("entries", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))
        pyro.sample("y", dist.Normal(x, 0.5), obs=y)


def funnel_evidence() -> float:
    """Gaussian given v."""
    v = np.linspace(-40, 40, 8001)
    log_p = 9 * stats.norm.logpdf(0, 0, np.sqrt(np.exp(v) + 0.25)) + stats.norm.logpdf(v, 0, 3)
    return float(logsumexp(log_p) + math.log(v[1] - v[0]))


_TRUNCATED = 3.0


def corner() -> None:
    """All of the mass in the corner of a cube of ten dimensions, against its edges."""
    _in_box(0.0, 1.0, 10, lambda z: -_TRUNCATED * 10 * z.sum(-1))


def corner_evidence() -> float:
    """Exponentials, cut off."""
    rate = 10 * _TRUNCATED
    return 10 * (math.log(-math.expm1(-rate)) - math.log(rate))


_SHELLS = "F. Feroz, M. P. Hobson, M. Bridges, 'MultiNest', 2009, https://arxiv.org/abs/0809.3437"
_BEAUJEAN = (
    "F. Beaujean, A. Caldwell, 'Initializing adaptive importance sampling with Markov chains', "
    "2013, https://arxiv.org/abs/1304.7808"
)

PROBLEMS = (
    *(
        Problem(
            f"shells-{dim}",
            partial(shells, dim),
            (),
            partial(shells_evidence, dim),
            "one integral over the radius",
            _SHELLS,
            modes=known.of_shells(dim, _SHELL),
        )
        for dim in (2, 5, 10, 20, 30)
    ),
    Problem(
        "eggbox",
        eggbox,
        (),
        eggbox_evidence,
        "the trapezoidal rule",
        _SHELLS,
        modes=known.of_eggbox(5),
    ),
    Problem(
        "rosenbrock",
        rosenbrock,
        (),
        rosenbrock_evidence,
        "error functions, one integral",
        "H. H. Rosenbrock, 'An automatic method for finding the greatest or least value of a "
        "function', 1960",
    ),
    *(
        Problem(
            f"log-gamma-{dim}",
            partial(log_gamma, dim),
            (),
            partial(log_gamma_evidence, dim),
            "distribution functions",
            _BEAUJEAN,
        )
        for dim in (2, 10)
    ),
    Problem(
        "student-mixture",
        student_mixture,
        (),
        student_mixture_evidence,
        "distribution functions",
        "two modes with heavy tails",
        modes=known.of_students(_STUDENTS, 30.0),
    ),
    *(
        Problem(
            name,
            partial(gaussian_modes, modes, dim),
            (),
            partial(gaussian_modes_evidence, modes, dim),
            "Gaussian integrals",
            source,
            modes=known.of_gaussians(modes, dim, _MODES_PRIOR),
        )
        for name, modes, dim, source in (
            ("separated-modes", _TWO, 2, "two modes, 23 standard deviations apart"),
            ("needle", _NEEDLE, 4, "a mode with a fifth of the mass that hardly any draw finds"),
        )
    ),
    Problem(
        "funnel",
        funnel,
        (_FUNNEL_DATA,),
        funnel_evidence,
        "Gaussian given the scale, one integral",
        "R. M. Neal, 'Slice sampling', 2003, https://doi.org/10.1214/aos/1056562461",
    ),
    Problem("corner", corner, (), corner_evidence, "exponentials", "a posterior on edges"),
)
