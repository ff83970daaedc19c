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
    SigmoidTransform,
    SoftplusTransform,
    Transform,
)
from torch import Tensor
from torch.distributions import TransformedDistribution

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.sites import Site


def whitening(fn: TorchDistribution) -> Transform | None:
    """T, where fn is the distribution of T(ε) and neither location nor scale move that of ε.

    None of a distribution without them. ε is unconstrained: of a positive fn it is a logarithm.
    """
    fn = base_distribution(fn)
    return next((make(fn) for kinds, make in _MAPS if isinstance(fn, kinds)), None)


class _ByFactor(LowerCholeskyAffine):
    """x ↦ L x + loc, of as many L `[*batch, D, D]` as there are: Pyro's has the Jacobian of one."""

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log|det L| `[*batch]`."""
        log_det = self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return log_det.expand(x.shape[:-1])


def _scaled(scale: Tensor) -> Transform:
    return ComposeTransform([ExpTransform(), AffineTransform(0.0, scale)])


def _of_transformed(fn: Any) -> Transform | None:
    """Of what whitens the distribution before its transforms, and these."""
    before = whitening(fn.base_dist)
    if before is None or not all(isinstance(part, _INVERTIBLE) for part in fn.transforms):
        return None
    return ComposeTransform([before, *fn.transforms])


# Of others the inverse may be slow, or not known.
_INVERTIBLE = (
    AffineTransform,
    ExpTransform,
    LowerCholeskyAffine,
    SigmoidTransform,
    SoftplusTransform,
)

_MAPS: list[tuple[Any, Callable[[Any], Transform | None]]] = [
    (
        (
            dist.Normal,
            dist.StudentT,
            dist.Cauchy,
            dist.Laplace,
            dist.Gumbel,
            dist.Logistic,
            dist.SkewLogistic,
            dist.AsymmetricLaplace,
            dist.SoftLaplace,
            dist.SoftAsymmetricLaplace,
        ),
        lambda fn: AffineTransform(fn.loc, fn.scale),
    ),
    (
        (dist.MultivariateNormal, dist.MultivariateStudentT, dist.LowRankMultivariateNormal),
        lambda fn: _ByFactor(fn.loc, fn.scale_tril),
    ),
    ((dist.HalfNormal, dist.HalfCauchy, dist.Weibull), lambda fn: _scaled(fn.scale)),
    (dist.InverseGamma, lambda fn: _scaled(fn.rate)),
    ((dist.Exponential, dist.Gamma), lambda fn: _scaled(1 / fn.rate)),
    (TransformedDistribution, _of_transformed),  # the last: many of those above are some
]


def moves_with_others(site: Site, again: Site) -> bool:
    """Whether what whitens a site differs between two runs, whose other draws differ.

    At the ε of one of them: at a number of ours some location and scale might make up for another.
    """
    first, second = (whitening(run["fn"]) for run in (site, again))
    if first is None or second is None:
        return False
    epsilon = first.inv(site["value"])
    return not torch.equal(first(epsilon), second(epsilon))
