"""The diagonal Gaussian posterior."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.guides.base import AbstractGuide


class MeanField(AbstractGuide):
    """q(z | x) = N(μ(x), diag σ²(x)); the encoder gives μ and log σ.

    Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", 2014,
    https://arxiv.org/abs/1312.6114, eq. 9.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(self, latent_dim: int, data_dim: int, **encoder: Any) -> None:
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim, latent_dim),
            **encoder,
        )

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, log_scale = self.encode(x)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
