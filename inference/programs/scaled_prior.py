"""A prior made wider or narrower: how much of a Bayes factor is the prior's."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions import constraints, transforms
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.random_state import isolated_rng


class ScaledPrior:
    """Multiplies the scale of the prior of one latent site: `ScaledPrior(site, factor)(model)`.

    Latents on the real line are stretched about the centre of their prior, positive ones about 0.

    Args:
        site: whose prior.
        factor: of the scale.

    Raises:
        ValueError: a factor that is not positive, or used as a context; of the model when it runs,
            a site whose support has an end at which a prior cannot be stretched.
    """

    def __init__(self, site: str, factor: float) -> None:
        if not factor > 0:
            raise ValueError(f"expected a prior scale > 0 for {site!r}, got {factor}")
        self._stretch = _Stretch(site, factor)

    def __call__(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The model with that prior."""
        return self._stretch(model)

    def meets(self, model: Callable[..., Any], x: Batch) -> bool:
        """Whether a model has the site among its latents; one run tells, whose draws are not kept.

        Raises:
            ValueError: the prior there has no scale.
        """
        x = as_data(x)
        with isolated_rng(device=x.device), torch.no_grad(), self._stretch:
            takes(model, x)(x)
        return self._stretch.was_met

    def __enter__(self) -> None:
        """It is of one program, never of all that run meanwhile."""
        raise ValueError(
            "expected ScaledPrior(site, factor)(model), got a context: around a fit or an estimate "
            "it would stretch the guide's site as well"
        )

    def __exit__(self, *_: object) -> None:
        """There is nothing to leave."""


class _Stretch(Messenger):
    def __init__(self, site: str, factor: float) -> None:
        super().__init__()
        self.site, self.factor = site, factor
        self.was_met = False

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] != self.site or msg["is_observed"]:
            return
        self.was_met = True
        if self.factor != 1:
            msg["fn"] = scaled(msg["fn"], self.factor, self.site)


def scaled(prior: Any, factor: float, site: str = "a latent") -> Any:
    """A distribution with `factor` times the scale.

    Raises:
        ValueError: its support is neither the real line nor the positive numbers.
    """
    support, event_dim = prior.support, prior.event_dim
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if base is constraints.real or (event_dim and base is constraints.real_vector):
        centre = (1 - factor) * _centre(prior)
    elif base in (constraints.positive, constraints.nonnegative):
        centre = torch.zeros(())
    else:
        raise ValueError(
            f"the prior of {site!r} has the support {support}, which has no scale: expected a "
            "latent on the real line or a positive one"
        )
    stretched = transforms.AffineTransform(centre, factor, event_dim=event_dim)
    return _Stretched(prior, [stretched])


class _Stretched(dist.TransformedDistribution):
    """A distribution that an affine transform has left its support."""

    @property
    def support(self) -> Any:
        """That of the distribution before."""
        return self.base_dist.support


def _centre(prior: Any) -> Tensor:
    """The mean, or where there is none (Cauchy) the location: `[*batch, *event]`."""
    mean = prior.mean
    if mean.isfinite().all():
        return mean
    while not hasattr(prior, "loc"):
        prior = prior.base_dist
    return prior.loc.expand_as(mean)
