"""The eight schools: a hierarchical normal model."""

import math
from collections.abc import Callable
from typing import ClassVar

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from evidence.models.base import AbstractModel, Latent
from evidence.models.chain import Chain, Values
from evidence.models.networks import expect_vectors, mirrored
from evidence.models.quadrature import log_integral, over_the_line

_SCALE = 5.0  # of mu and of tau
_FAR = 300.0  # of log τ
_POSITIVE = constraints.independent(constraints.positive, 1)


class EightSchools(AbstractModel):
    """Effects y of coaching in eight schools: y_j ~ N(θ_j, σ_j), θ_j ~ N(μ, τ), σ_j known.

    μ ~ N(0, 5) and τ ~ HalfCauchy(5), at the sites "mu" and "tau". Centred, the third site is
    "theta", whose scale τ makes the posterior a funnel; non-centred it is "eta" ~ N(0, 1), with
    θ = μ + τη. Both are the same model of y, so they have one evidence: μ and θ are integrated out
    exactly, and τ by quadrature about the mode of log τ, whose error is estimated too.

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
    encoder_options = mirrored((64,))

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

    @torch.no_grad()
    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(y) in nats, by quadrature over log τ in float64: `[B, 8] -> [B]`.

        Raises:
            ValueError: `x` is of another shape, or an evidence is not known to within 1e-4 nat.
        """
        expect_vectors("x", x, self.data_dim)
        y, variance = x.double(), self.sigma.double() ** 2
        centre, scale = _peak(lambda t: _log_joint(y.unsqueeze(1), variance, t), y)

        def log_f(v: Tensor, rows: Tensor) -> Tensor:
            u, log_slope = (part.squeeze(-1) for part in over_the_line(v))  # [T, N]
            t = centre[rows, None] + scale[rows, None] * u
            log_joint = _log_joint(y[rows].unsqueeze(1), variance, t)
            return log_joint + scale[rows, None].log() + log_slope

        return log_integral(log_f, len(y), 1, device=y.device)


def _log_joint(y: Tensor, variance: Tensor, log_tau: Tensor) -> Tensor:
    """Log p(y, log τ) for `y` `[B, 1, 8]` and log τ `[B, N]`, θ and μ integrated out: `[B, N]`.

    With v = σ² + τ² and m the mean of y weighted by 1/v, y given τ has the quadratic form
    Σ (y − m)²/v + m²/(25 + 1/Σ 1/v), in which nothing cancels.
    """
    t = log_tau.clamp(-_FAR, _FAR)  # beyond it nothing is left, and τ² overflows
    v = variance + (2 * t).exp().unsqueeze(-1)  # [B, N, 8]
    precision = (1 / v).sum(-1)
    mean = (y / v).sum(-1) / precision
    quadratic = ((y - mean.unsqueeze(-1)) / v.sqrt()).square().sum(-1)
    quadratic = quadratic + mean.square() / (_SCALE**2 + 1 / precision)
    log_det = v.log().sum(-1) + torch.log1p(_SCALE**2 * precision)
    log_p_y = -0.5 * (quadratic + log_det + y.shape[-1] * math.log(2 * math.pi))
    half_cauchy = math.log(2 / (math.pi * _SCALE)) - F.softplus(2 * (t - math.log(_SCALE)))
    return log_p_y + half_cauchy + t


def _peak(log_joint: Callable[[Tensor], Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
    """Where log p(y, log τ) is highest, about, and its width there: `[B]` and `[B]`."""
    steps = torch.linspace(0, 1, 64, dtype=y.dtype, device=y.device)
    low = torch.full_like(y[:, :1], math.log(_SCALE) - 5)
    high = torch.log(1 + y.abs().amax(1, keepdim=True)) + 5
    for _ in range(2):  # the second time between the neighbours of the best one
        t = low + (high - low) * steps  # [B, 64]
        gap = (high - low) / 63
        centre = t.gather(1, log_joint(t).argmax(1, keepdim=True))
        low, high = centre - gap, centre + gap
    below, at, above = log_joint(centre + t.new_tensor([-0.1, 0.0, 0.1])).unbind(1)
    curvature = (2 * at - below - above) / 0.1**2
    return centre.squeeze(1), curvature.clamp(0.1, 100).rsqrt()


def _effects(values: Values) -> TorchDistribution:
    """p(theta | mu, tau)."""
    return dist.Normal(values["mu"].expand(*values["mu"].shape[:-1], 8), values["tau"]).to_event(1)
