"""Linear regression with a Gaussian prior on the weights."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.models.base import AbstractModel
from evidence.models.design import design_matrix, expect_positive
from evidence.models.networks import expect_vectors


class BayesianLinearRegression(AbstractModel):
    """y ~ N(Φz, σ²I) with weights z ~ N(0, τ²I): regression on a fixed design, in closed form.

    A datum is a whole vector y of N responses to the N rows of Φ, and has weights of its own:

        y     ~ N(0, τ²ΦΦᵀ + σ²I)
        z | y ~ N(σ⁻²A⁻¹Φᵀy, A⁻¹),    A = τ⁻²I + σ⁻²ΦᵀΦ

    Nothing is learnt: the design and both scales are given.

    Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", 2006,
    https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/,
    eqs. 3.49-3.54.

    Args:
        data_dim: N, the number of responses of one data set.
        latent_dim: Z, the number of weights.
        design: Φ, one row of Z features per response; by default the powers of N points of a grid
            on [−1, 1].
        prior_scale: τ.
        noise_scale: σ.

    Raises:
        ValueError: a scale that is not positive, or a design of another shape.
    """

    responses = "vectors of N responses, one for each row of the design"
    design: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        *,
        design: Sequence[Sequence[float]] | None = None,
        prior_scale: float = 1.0,
        noise_scale: float = 0.5,
    ) -> None:
        super().__init__(data_dim, latent_dim)
        expect_positive(prior_scale=prior_scale, noise_scale=noise_scale)
        self.prior_scale, self.noise_scale = prior_scale, noise_scale
        self.register_buffer("design", design_matrix(design, data_dim, latent_dim))
        if latent_dim == 2:
            self.plane = (-5 * prior_scale, 5 * prior_scale)

    def prior(self) -> TorchDistribution:
        """p(z) = N(0, τ²I): event shape `[Z]`."""
        scale = self._zero + self.prior_scale
        return dist.Normal(self._zero, scale).expand([self.latent_dim]).to_event(1)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(y | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[N]`."""
        return dist.Normal(z @ self.design.mT, self.noise_scale).to_event(1)

    def marginal(self) -> TorchDistribution:
        """p(y), exact, in float64: batch shape `[]`, event shape `[N]`."""
        factor = self.prior_scale * self.design.double()
        variance = torch.full_like(factor[:, 0], self.noise_scale**2)
        return dist.LowRankMultivariateNormal(torch.zeros_like(variance), factor, variance)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(y) in nats, in float64 whatever the model's type: `[..., N] -> [...]`."""
        expect_vectors("x", x, self.data_dim)
        return self.marginal().log_prob(x.double())

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Exact p(z | y) for `x` of shape `[B, N]`: batch shape `[B]`, event shape `[Z]`."""
        expect_vectors("x", x, self.data_dim)
        scaled = self.design / self.noise_scale**2
        eye = torch.eye(self.latent_dim).to(scaled)
        precision = eye / self.prior_scale**2 + self.design.mT @ scaled  # A, [Z, Z]
        loc = torch.linalg.solve(precision, (x @ scaled).mT).mT  # [B, Z]
        return dist.MultivariateNormal(loc, precision_matrix=precision)
