"""What all guides have in common: local parameters, the data plate and the latent site."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.models.networks import RegisteredModule


class AbstractPosterior(RegisteredModule, ABC):
    """A Pyro guide q(z | x) with local parameters λ of its own for every datum.

    λ is what amortization is about: an encoder gives λ(x) at once, `Refined` improves it by
    gradient steps, `Unamortized` stores it.

    Args:
        latent_dim: Z, the number of entries of one latent vector.
        data_dim: D, the number of entries of one datum.
        site: the model's latent site.
    """

    # Whether it tells of other data than those it was made with.
    is_amortized: bool = True

    def __init__(self, latent_dim: int, data_dim: int, *, site: str = "z") -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.data_dim = data_dim
        self.site = site

    @classmethod
    def for_model(cls, model: Callable[..., Any], data: Any, **options: Any) -> "AbstractPosterior":
        """A guide of this kind for any Pyro model, called with the same arguments as the model."""
        raise NotImplementedError(f"{cls.__name__} is made for one model: it has no for_model")

    @abstractmethod
    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) for `x` of shape `[B, D]`: batch shape `[B]`, event shape `[Z]`.

        It scores any z in its support, not only what it drew.
        """

    @abstractmethod
    def local_parameters(self, x: Tensor) -> Tensor:
        """λ(x) for `x` of shape `[B, D]`, flat and unconstrained: `[B, P]`."""

    @abstractmethod
    def given(self, local_parameters: Tensor) -> Self:
        """This guide for one batch whose λ, `[B, P]`, is given; all else is shared with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Sample z given the batch `x` of shape `[B, D]`: `[B, Z]`."""
        self.register()
        posterior = self.posterior(x)
        with pyro.plate("data", len(x)):
            return self.sample_sites(posterior)

    def sample_sites(self, posterior: TorchDistribution) -> Tensor:
        """Draw z at the model's latent sites, inside the data plate: `[B, Z]`."""
        return pyro.sample(self.site, posterior)

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The values of the model's latent sites in `z` of shape `[..., Z]`."""
        return {self.site: z}

    @torch.no_grad()
    def posterior_mean(self, x: Tensor, *, num_samples: int = 100) -> Tensor:
        """E_q[z | x] for `x` of shape `[B, D]`: `[B, Z]`.

        Exact where the posterior knows its mean, else the average of `num_samples` draws.
        """
        posterior = self.posterior(x)
        try:
            return posterior.mean
        except NotImplementedError:
            return posterior.sample(torch.Size([num_samples])).mean(0)
