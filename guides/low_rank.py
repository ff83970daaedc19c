"""The Gaussian posterior with a low-rank covariance on top of a diagonal one."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.guides.base import AbstractGuide


class LowRank(AbstractGuide):
    """q(z | x) = N(μ(x), W(x)W(x)ᵀ + diag σ²(x)) with W of r columns; the encoder gives all three.

    Between `MeanField` and `FullRank`: r Z numbers per datum describe correlations, where the
    latter takes Z(Z − 1)/2.

    Reference: V. M.-H. Ong, D. J. Nott, M. S. Smith, "Gaussian Variational Approximation with a
    Factor Covariance Structure", 2017, https://arxiv.org/abs/1701.03208.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        rank: r, the number of columns of W.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(self, latent_dim: int, data_dim: int, *, rank: int = 4, **encoder: Any) -> None:
        if rank < 1:
            raise ValueError(f"expected rank of at least 1, got {rank}")
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim, latent_dim, rank * latent_dim),
            **encoder,
        )
        self.rank = rank

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, log_scale, factor = self.encode(x)
        factor = factor.unflatten(-1, (self.latent_dim, self.rank))
        return dist.LowRankMultivariateNormal(loc, factor, (2 * log_scale).exp())
