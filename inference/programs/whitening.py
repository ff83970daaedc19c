"""Coordinates in which a latent's prior does not move with the latents that it depends on."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
    LowerCholeskyAffine,
    Transform,
)
from torch import Tensor

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.sites import Site


def whitening(fn: TorchDistribution) -> Transform | None:
    """T, where fn is the distribution of T(ε) and neither location nor scale move that of ε.

    None of a distribution without them. ε is unconstrained: of a positive fn it is a logarithm.
    """
    fn = base_distribution(fn)
    return next((make(fn) for kinds, make in _MAPS if isinstance(fn, kinds)), None)


def _scaled(scale: Tensor) -> Transform:
    return ComposeTransform([ExpTransform(), AffineTransform(0.0, scale)])


_MAPS: list[tuple[Any, Callable[[Any], Transform]]] = [
    (
        dist.LogNormal,
        lambda fn: ComposeTransform([AffineTransform(fn.loc, fn.scale), ExpTransform()]),
    ),
    (
        (dist.Normal, dist.StudentT, dist.Cauchy, dist.Laplace, dist.Gumbel),
        lambda fn: AffineTransform(fn.loc, fn.scale),
    ),
    (
        (dist.MultivariateNormal, dist.MultivariateStudentT, dist.LowRankMultivariateNormal),
        lambda fn: LowerCholeskyAffine(fn.loc, fn.scale_tril),
    ),
    ((dist.HalfNormal, dist.HalfCauchy, dist.Weibull), lambda fn: _scaled(fn.scale)),
    (dist.InverseGamma, lambda fn: _scaled(fn.rate)),
    ((dist.Exponential, dist.Gamma), lambda fn: _scaled(1 / fn.rate)),
]


def moves_with_others(site: Site, again: Site) -> bool:
    """Whether what whitens a site differs between two runs, whose other draws differ."""
    maps = [whitening(run["fn"]) for run in (site, again)]
    epsilon = torch.ones_like(site["value"])
    first, second = (None if one is None else one(epsilon) for one in maps)
    return first is not None and second is not None and not torch.equal(first, second)
