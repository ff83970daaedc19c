"""A point per datum: no posterior, a code."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.guides.base import AbstractGuide


class Delta(AbstractGuide):
    """All mass on one point, z = encoder(x): the encoder of a plain autoencoder, an amortized MAP.

    A point has no density, so a model fitted with it has an optimum but no evidence.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(self, latent_dim: int, data_dim: int, **encoder: Any) -> None:
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim,),
            **encoder,
        )

    def posterior(self, x: Tensor) -> TorchDistribution:
        """The point mass at encoder(x): batch shape `[B]`, event shape `[Z]`."""
        (loc,) = self.encode(x)
        return dist.Delta(loc, event_dim=1)
