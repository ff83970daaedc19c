"""The planar-flow posterior."""

from typing import Any

from torch import Tensor

from evidence.guides.flow import AbstractFlow
from evidence.guides.transforms.planar import PlanarLayers


class Planar(AbstractFlow):
    """A diagonal Gaussian pushed through K planar layers, all parameters given by the encoder.

    z₀ ~ N(μ(x), diag σ²(x)),  z_k = z_{k−1} + û_k tanh(w_kᵀ z_{k−1} + b_k),  z = z_K, and
    log q(z | x) = log q₀(z₀) − Σ_k log|1 + û_kᵀ ψ_k(z_{k−1})|.

    û, made of u and w, keeps a layer invertible, and, unlike the paper's, is small where u is,
    whatever w; see `PlanarLayers`. Any z is scored: a layer is inverted by Newton's method, with
    exact gradients.

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
        super().__init__(
            latent_dim, data_dim, num_flows=num_flows, layer_dim=1 + 2 * latent_dim, **encoder
        )

    def layers(self, parameters: Tensor) -> PlanarLayers:
        """K planar layers from b, u and w side by side, `[B, K, 1 + 2Z]`."""
        bias, u, w = parameters.split((1, self.latent_dim, self.latent_dim), dim=-1)
        return PlanarLayers(bias, u, w)
