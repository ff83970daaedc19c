"""Draws of a distribution as functions of uniform numbers, one by one where it factorizes."""

from collections.abc import Callable

import pyro.distributions as dist
import torch
from scipy import special
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

_AROUND = (dist.Independent, dist.ExpandedDistribution, dist.MaskedDistribution)


def uniforms_shape(fn: Distribution) -> torch.Size:
    """The shape of the uniform numbers that make one draw."""
    if isinstance(fn, dist.ExpandedDistribution):
        inner = uniforms_shape(fn.base_dist)
        return fn.batch_shape + inner[len(fn.base_dist.batch_shape) :]
    if isinstance(fn, _AROUND):
        return uniforms_shape(fn.base_dist)
    if isinstance(fn, TransformedDistribution) and _is_pushed(fn):
        return uniforms_shape(fn.base_dist)
    return fn.batch_shape + fn.event_shape  # the base of a transformed one may be none of Pyro's


def draw_at(fn: Distribution, v: Tensor) -> Tensor:
    """The draw that uniform numbers make: distributed as `fn` if these are uniform.

    By quantile functions, torch's or SciPy's; a transformed distribution by its base, whose draws
    are transformed; a multivariate normal by standard normals, a Dirichlet by gammas.

    Args:
        fn: the distribution.
        v: in (0, 1), of shape `uniforms_shape(fn)`.

    Raises:
        NotImplementedError: none of these is known of it.
    """
    if isinstance(fn, _AROUND):
        return draw_at(fn.base_dist, v)
    for kind, quantile in _QUANTILES.items():
        if isinstance(fn, kind):
            return quantile(fn, v)
    if isinstance(fn, TransformedDistribution) and _is_pushed(fn):
        value = draw_at(fn.base_dist, v)
        for transform in fn.transforms:
            value = transform(value)
        return value
    return fn.icdf(v)


def _is_pushed(fn: TransformedDistribution) -> bool:
    """Whether it has no quantiles of its own, as `HalfNormal` has."""
    return type(fn).icdf is TransformedDistribution.icdf


def _of_gamma(concentration: Tensor, v: Tensor) -> Tensor:
    # SciPy has no derivatives, and needs none here.
    found = special.gammaincinv(concentration.double().cpu().numpy(), v.cpu().numpy())
    return torch.as_tensor(found, dtype=v.dtype, device=v.device)


def _gamma(fn: dist.Gamma, v: Tensor) -> Tensor:
    return _of_gamma(fn.concentration, v) / fn.rate


def _beta(fn: dist.Beta, v: Tensor) -> Tensor:
    ends = (fn.concentration1.double().cpu().numpy(), fn.concentration0.double().cpu().numpy())
    found = special.betaincinv(*ends, v.cpu().numpy())
    return torch.as_tensor(found, dtype=v.dtype, device=v.device)


def _student(fn: dist.StudentT, v: Tensor) -> Tensor:
    found = special.stdtrit(fn.df.double().cpu().numpy(), v.cpu().numpy())
    return fn.loc + fn.scale * torch.as_tensor(found, dtype=v.dtype, device=v.device)


def _dirichlet(fn: dist.Dirichlet, v: Tensor) -> Tensor:
    gammas = _of_gamma(fn.concentration, v)
    return gammas / gammas.sum(-1, keepdim=True)


def _normal(fn: dist.MultivariateNormal, v: Tensor) -> Tensor:
    standard = torch.special.ndtri(v)
    factor = torch.as_tensor(fn.scale_tril, dtype=v.dtype)
    return fn.loc + (factor @ standard.unsqueeze(-1)).squeeze(-1)


_QUANTILES: dict[type, Callable[..., Tensor]] = {
    torch.distributions.Gamma: _gamma,
    torch.distributions.Beta: _beta,
    torch.distributions.StudentT: _student,
    torch.distributions.Dirichlet: _dirichlet,
    torch.distributions.MultivariateNormal: _normal,
    torch.distributions.LowRankMultivariateNormal: _normal,
}
