"""What normalizing flows have in common: a diagonal Gaussian and layers from the encoder."""

from abc import abstractmethod
from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from pyro.distributions.transforms import Transform
from torch import Tensor

from evidence.guides.base import AbstractGuide


class AbstractFlow(AbstractGuide):
    """A diagonal Gaussian pushed through K layers, all parameters given by the encoder.

    z₀ ~ N(μ(x), diag σ²(x)),  z = f_K(… f_1(z₀)),
    log q(z | x) = log q₀(z₀) − Σ_k log|det ∂f_k/∂z_{k−1}|.

    To write a flow, give the number of parameters of a layer and `layers`.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of layers.
        layer_dim: L, the number of parameters of one layer.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_flows: int, layer_dim: int, **encoder: Any
    ) -> None:
        if num_flows < 1:
            raise ValueError(f"expected num_flows of at least 1, got {num_flows}")
        super().__init__(
            latent_dim,
            data_dim,
            output_dims=(latent_dim, latent_dim, num_flows * layer_dim),
            **encoder,
        )
        self.num_flows = num_flows

    @abstractmethod
    def layers(self, parameters: Tensor) -> Transform:
        """All layers, first to last, as one map of R^Z, from parameters `[B, K, L]`."""

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, log_scale, parameters = self.encode(x)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        layers = self.layers(parameters.unflatten(-1, (self.num_flows, -1)))
        return dist.TransformedDistribution(base, [layers])
