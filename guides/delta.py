"""A point per datum: no posterior, a code."""

from collections.abc import Sequence

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from guides.base import AbstractGuide


class Delta(AbstractGuide):
    """All mass on one point, z = encoder(x): the encoder of a plain autoencoder, an amortized MAP.

    A point has no density, so a model fitted with it has an optimum but no evidence.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        hidden_dims: sizes of the encoder's hidden layers, from x to z.
        activation: nonlinearity between the layers.
        site: the model's latent site.
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        site: str = "z",
    ) -> None:
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim,),
            hidden_dims=hidden_dims,
            activation=activation,
            site=site,
        )

    def posterior(self, x: Tensor) -> TorchDistribution:
        """The point mass at encoder(x): batch shape `[B]`, event shape `[Z]`."""
        (loc,) = self.encode(x)
        return dist.Delta(loc, event_dim=1)
