"""The Gaussian posterior with a full covariance."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from evidence.guides.base import AbstractGuide


class FullRank(AbstractGuide):
    """q(z | x) = N(μ(x), L(x)L(x)ᵀ); the encoder gives μ, log diag L and the entries below it.

    Reference: D. P. Kingma, M. Welling, "An Introduction to Variational Autoencoders", 2019,
    https://arxiv.org/abs/1906.02691, section 2.5.1.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    unit = "dense"  # a linear map of such Gaussians gives such Gaussians

    def __init__(self, latent_dim: int, data_dim: int, **encoder: Any) -> None:
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim, latent_dim, latent_dim * (latent_dim - 1) // 2),
            **encoder,
        )
        if not data_dim:  # λ of zeros, a standard normal, is in no flow's way here
            nn.init.zeros_(self.encoder.get_parameter("0.bias"))

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, log_diagonal, below_diagonal = self.encode(x)
        row, column = torch.tril_indices(self.latent_dim, self.latent_dim, -1, device=loc.device)
        scale_tril = torch.diag_embed(log_diagonal.exp())  # [..., Z, Z]
        scale_tril[..., row, column] = below_diagonal
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)
