"""Coordinates relative to the prior: the non-centred form of latents whose priors are linked."""

import math

import torch
from pyro.distributions import (
    Exponential,
    HalfCauchy,
    HalfNormal,
    LogNormal,
    MultivariateNormal,
    Normal,
    StudentT,
    TorchDistribution,
    constraints,
)
from pyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    LowerCholeskyAffine,
    Transform,
    biject_to,
)
from torch import Tensor
from torch.special import log_ndtr, ndtri

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.traces import Layout
from evidence.inference.programs.unconstrained import Packing, Site

_OF_LOCATION_AND_SCALE = (Normal, StudentT, LogNormal, MultivariateNormal)
_OF_SCALES = (HalfCauchy, HalfNormal, Exponential)


class Relative(Packing):
    """Latents side by side, some of them in units of their own prior given the others.

    Centred, the effects of a hierarchy have a density that grows without end as their scale goes to
    zero, and a funnel for a posterior. In units of their prior, z = loc + scale ⊙ u, or exp of it,
    or loc + L u with L Lᵀ the covariance, they have neither. A scale itself is the quantile
    F⁻¹(Φ(u)) of its prior: where the data allow it to be zero its logarithm has an exponential
    tail, which Gaussian weights do not reach, and u a Gaussian one.

    Reference: O. Papaspiliopoulos, G. O. Roberts, M. Sköld, "A General Framework for the
    Parametrization of Hierarchical Models", 2007, https://doi.org/10.1214/088342307000000014.

    Args:
        sites: the sites, from a trace.
        layout: where the data are among the batch dimensions.
        names: of the sites in units of their prior.
    """

    def __init__(self, sites: dict[str, Site], layout: Layout, names: frozenset[str]) -> None:
        self._names = names
        super().__init__(sites, layout)

    def transform(self, site: Site) -> Transform | None:
        """T of a site, as it is drawn now."""
        if site["name"] in self._names:
            return _from_standard(site["fn"])
        return super().transform(site)


def is_of_location_and_scale(fn: TorchDistribution) -> bool:
    """Whether a standard draw makes a draw from it, by a linear map."""
    return isinstance(base_distribution(fn), _OF_LOCATION_AND_SCALE)


def is_of_scales(fn: TorchDistribution) -> bool:
    """Whether it is a prior of scales, with mass at zero."""
    return isinstance(base_distribution(fn), _OF_SCALES)


def _from_standard(fn: TorchDistribution) -> Transform:
    base = base_distribution(fn)
    if is_of_scales(fn):
        return Quantile(base)
    if isinstance(base, MultivariateNormal):
        return LowerCholeskyAffine(base.loc, base.scale_tril)
    affine = AffineTransform(base.loc, base.scale, event_dim=fn.event_dim)
    if isinstance(base, LogNormal):
        return ComposeTransform([affine, biject_to(constraints.positive)])
    return affine


class Quantile(Transform):
    """z = F⁻¹(Φ(u)) entry by entry, with F of a prior of scales; log dz/du = log φ(u) − log p(z).

    Both tails are exact: neither Φ nor F is rounded to one.

    Args:
        prior: a `HalfCauchy`, `HalfNormal` or `Exponential`.
    """

    domain = constraints.real
    codomain = constraints.positive
    bijective = True
    sign = 1

    def __init__(self, prior: TorchDistribution) -> None:
        super().__init__()
        self.prior = prior

    def _call(self, x: Tensor) -> Tensor:
        match self.prior:
            case HalfCauchy():
                size = torch.where(x < 0, -x, x)  # as abs, which has no slope at zero
                angle = 0.25 * math.pi * torch.erfc(size / math.sqrt(2))
                ratio = torch.where(x < 0, angle.tan(), 1 / angle.tan())
                return self.prior.scale * ratio
            case HalfNormal():
                return -self.prior.scale * ndtri(0.25 * torch.erfc(x / math.sqrt(2)))
        return -log_ndtr(-x) / self.prior.rate

    def _inverse(self, y: Tensor) -> Tensor:
        lower, upper = self._tails(y)
        return torch.where(lower < upper, ndtri(lower), -ndtri(upper))

    def _tails(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F(z) and 1 − F(z)."""
        match self.prior:
            case HalfCauchy():
                scale = self.prior.scale
                return torch.atan2(z, scale) * 2 / math.pi, torch.atan2(scale, z) * 2 / math.pi
            case HalfNormal():
                t = z / (math.sqrt(2) * self.prior.scale)
                return torch.erf(t), torch.erfc(t)
        return -torch.expm1(-self.prior.rate * z), torch.exp(-self.prior.rate * z)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log dz/du, as `x`."""
        return -0.5 * (x.square() + math.log(2 * math.pi)) - self.prior.log_prob(y)
