"""The Householder-flow posterior."""

from typing import Any

from torch import Tensor

from evidence.guides.flow import AbstractFlow
from evidence.guides.transforms.householder import Reflections, unit_vectors


class Householder(AbstractFlow):
    """A diagonal Gaussian turned by K reflections: a Gaussian with correlations.

    z₀ ~ N(μ(x), diag σ²(x)),  z_k = (I − 2 v_k v_kᵀ) z_{k−1} with ‖v_k‖ = 1,  z = z_K; volumes are
    preserved, log q(z | x) = log q₀(z₀). Z − 1 reflections reach every covariance.

    Reference: J. M. Tomczak, M. Welling, "Improving Variational Auto-Encoders using Householder
    Flow", 2016, https://arxiv.org/abs/1611.09630, section 3.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of reflections.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_flows: int = 8, **encoder: Any
    ) -> None:
        super().__init__(latent_dim, data_dim, num_flows=num_flows, layer_dim=latent_dim, **encoder)

    def layers(self, parameters: Tensor) -> Reflections:
        """K reflections from free vectors, `[B, K, Z]`."""
        return Reflections(unit_vectors(parameters))
