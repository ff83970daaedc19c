"""The planar-flow posterior."""

from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms.planar import ConditionedPlanar
from torch import Tensor

from guides.base import AbstractGuide


class Planar(AbstractGuide):
    """A diagonal Gaussian pushed through K planar layers, all parameters given by the encoder.

    z₀ ~ N(μ(x), diag σ²(x)),  z_k = z_{k−1} + û_k tanh(w_kᵀ z_{k−1} + b_k),  z = z_K, and
    log q(z | x) = log q₀(z₀) − Σ_k log|1 + û_kᵀ ψ_k(z_{k−1})|.

    The density of a z that the guide did not just sample is not available: a planar layer has no
    inverse in closed form.

    Reference: D. J. Rezende, S. Mohamed, "Variational Inference with Normalizing Flows", 2015,
    https://arxiv.org/abs/1505.05770, eqs. 10-15.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of planar layers.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_flows: int = 8, **encoder: Any
    ) -> None:
        if num_flows < 1:
            raise ValueError(f"expected num_flows of at least 1, got {num_flows}")
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim, latent_dim, num_flows * (1 + 2 * latent_dim)),
            **encoder,
        )
        self.num_flows = num_flows

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, log_scale, flow_parameters = self.encode(x)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        sizes = (1, self.latent_dim, self.latent_dim)  # b, u, w of one layer
        layers = [
            ConditionedPlanar(layer.split(sizes, dim=-1))
            for layer in flow_parameters.chunk(self.num_flows, dim=-1)
        ]
        return dist.TransformedDistribution(base, layers)
