"""Probabilistic PCA and factor analysis: the model whose evidence is known exactly."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from evidence.models.base import AbstractModel
from evidence.models.networks import expect_choice, expect_vectors

NOISES = ("isotropic", "diagonal")


class LinearGaussian(AbstractModel):
    """z ~ N(0, I), x | z ~ N(Wz + b, Ψ): probabilistic PCA (Ψ = σ²I) or factor analysis.

    Everything is in closed form, which makes this model the oracle of the suite:

        x     ~ N(b, WWᵀ + Ψ)
        z | x ~ N(M⁻¹WᵀΨ⁻¹(x − b), M⁻¹),    M = I + WᵀΨ⁻¹W

    Reference: M. E. Tipping, C. M. Bishop, "Probabilistic Principal Component Analysis", 1999,
    https://doi.org/10.1111/1467-9868.00196, eqs. 4-7.

    Args:
        data_dim: D, the number of entries of one datum.
        latent_dim: Z, the number of factors.
        noise: "isotropic" for one σ, "diagonal" for one per entry.
    """

    def __init__(self, data_dim: int, latent_dim: int = 2, *, noise: str = "isotropic") -> None:
        super().__init__(data_dim, latent_dim)
        self.noise = expect_choice("noise", noise, NOISES)
        self.weight = nn.Parameter(torch.empty(data_dim, latent_dim))
        self.loc = nn.Parameter(torch.zeros(data_dim))
        self.log_scale = nn.Parameter(torch.zeros(() if noise == "isotropic" else (data_dim,)))
        nn.init.xavier_uniform_(self.weight)

    def prior(self) -> TorchDistribution:
        """p(z) = N(0, I): event shape `[Z]`."""
        return self.standard_normal()

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[D]`."""
        return dist.Normal(z @ self.weight.mT + self.loc, self._scale()).to_event(1)

    def marginal(self) -> TorchDistribution:
        """p(x), exact, in float64: batch shape `[]`, event shape `[D]`."""
        variance = self._scale().double() ** 2
        return dist.LowRankMultivariateNormal(self.loc.double(), self.weight.double(), variance)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) in nats, in float64 whatever the model's type: `[..., D] -> [...]`."""
        expect_vectors("x", x, self.data_dim)
        return self.marginal().log_prob(x.double())

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Exact p(z | x) for `x` of shape `[B, D]`: batch shape `[B]`, event shape `[Z]`."""
        expect_vectors("x", x, self.data_dim)
        scaled = self.weight / self._scale().unsqueeze(-1) ** 2  # Ψ⁻¹W, [D, Z]
        precision = torch.eye(self.latent_dim).to(scaled) + self.weight.mT @ scaled  # M, [Z, Z]
        loc = torch.linalg.solve(precision, ((x - self.loc) @ scaled).mT).mT  # [B, Z]
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def _scale(self) -> Tensor:
        return self.log_scale.exp().expand(self.data_dim)
