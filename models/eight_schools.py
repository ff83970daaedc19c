"""The eight schools: a hierarchical normal model."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from models.base import AbstractModel, Latent
from models.chain import Chain, Values
from models.networks import expect_vectors
from models.quadrature import box_rule

_SCALE = 5.0  # of mu and of tau
_POSITIVE = constraints.independent(constraints.positive, 1)


class EightSchools(AbstractModel):
    """Effects y of coaching in eight schools: y_j ~ N(θ_j, σ_j), θ_j ~ N(μ, τ), σ_j known.

    μ ~ N(0, 5) and τ ~ HalfCauchy(5), at the sites "mu" and "tau". Centred, the third site is
    "theta", whose scale τ makes the posterior a funnel; non-centred it is "eta" ~ N(0, 1), with
    θ = μ + τη. Both are the same model of y, so they have one evidence: μ and θ are integrated out
    exactly, and τ by quadrature.

    Reference: D. B. Rubin, "Estimation in Parallel Randomized Experiments", 1981,
    https://doi.org/10.3102/10769986006004377; with half-Cauchy priors, A. Gelman et al., "Bayesian
    Data Analysis", 3rd ed., 2013, sections 5.5 and 5.7.

    Args:
        data_dim: 8, the number of schools.
        centred: whether the latents are the effects themselves.

    Raises:
        ValueError: another number of schools.
    """

    fixed_data_dim = 8
    knows_evidence = True
    hidden_dims = (64,)

    # What was measured, and with which standard errors: Gelman et al. 2013, table 5.2.
    effects: ClassVar[tuple[float, ...]] = (28, 8, -3, 7, -1, 1, 18, 12)
    standard_errors: ClassVar[tuple[float, ...]] = (15, 10, 16, 11, 9, 11, 10, 18)

    sigma: Tensor

    def __init__(self, data_dim: int, *, centred: bool = True) -> None:
        super().__init__(data_dim, 2 + 8)
        self.centred = centred
        self.register_buffer("sigma", torch.tensor(self.standard_errors))

    @property
    def latents(self) -> dict[str, Latent]:
        """mu, tau > 0, and theta or eta."""
        return {
            "mu": Latent(1, constraints.real_vector),
            "tau": Latent(1, _POSITIVE),
            "theta" if self.centred else "eta": Latent(8, constraints.real_vector),
        }

    def prior(self) -> Chain:
        """p(mu) p(tau) p(theta | mu, tau), or p(eta): event shape `[10]`."""
        dims = {name: latent.dim for name, latent in self.latents.items()}
        scale = self._zero + _SCALE
        factors = {
            "mu": lambda _: dist.Normal(self._zero, scale).expand([1]).to_event(1),
            "tau": lambda _: dist.HalfCauchy(scale).expand([1]).to_event(1),
            "theta": _effects,
            "eta": lambda _: dist.Normal(self._zero, self._zero + 1).expand([8]).to_event(1),
        }
        return Chain(dims, {name: factors[name] for name in dims}, supports={"tau": _POSITIVE})

    def theta(self, z: Tensor) -> Tensor:
        """The effects θ in `z` of shape `[..., 10]`: `[..., 8]`."""
        mu, tau, last = z.split([1, 1, 8], dim=-1)
        return last if self.centred else mu + tau * last

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(y | θ) for `z` of shape `[..., 10]`: batch shape `[...]`, event shape `[8]`."""
        return dist.Normal(self.theta(z), self.sigma).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(y) in nats, by quadrature over τ in float64: `[B, 8] -> [B]`."""
        expect_vectors("x", x, self.data_dim)
        # τ = 5 tan(πu/2) makes u uniform on [0, 1].
        u, log_weights = box_rule(0.0, 1.0)
        tau = _SCALE * torch.tan(0.5 * math.pi * u)  # [G, 1]
        variance = (self.sigma.double() ** 2 + tau.to(x.device) ** 2).unsqueeze(1)  # [G, 1, 8]
        # y given τ is N(0, diag(variance) + 25 · 11ᵀ).
        ones = torch.full_like(variance, _SCALE).unsqueeze(-1)
        given = dist.LowRankMultivariateNormal(torch.zeros_like(variance), ones, variance)
        return (given.log_prob(x.double()) + log_weights.to(x.device).unsqueeze(1)).logsumexp(0)


def _effects(values: Values) -> TorchDistribution:
    """p(theta | mu, tau)."""
    return dist.Normal(values["mu"].expand(*values["mu"].shape[:-1], 8), values["tau"]).to_event(1)
