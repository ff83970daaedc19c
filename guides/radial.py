"""The radial-flow posterior."""

from typing import Any

from torch import Tensor

from evidence.guides.flow import AbstractFlow
from evidence.guides.transforms.radial import RadialLayers


class Radial(AbstractFlow):
    """A diagonal Gaussian pushed through K radial layers, all parameters given by the encoder.

    z₀ ~ N(μ(x), diag σ²(x)),  z_k = z_{k−1} + β_k/(α_k + r_k) (z_{k−1} − c_k),  z = z_K, with
    r_k = ‖z_{k−1} − c_k‖: each layer pushes away from a centre c_k or pulls towards it.

    Any z is scored: a layer has an inverse in closed form.

    Reference: D. J. Rezende, S. Mohamed, "Variational Inference with Normalizing Flows", 2015,
    https://arxiv.org/abs/1505.05770, eq. 14 and appendix A.2.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of radial layers.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_flows: int = 8, **encoder: Any
    ) -> None:
        super().__init__(
            latent_dim, data_dim, num_flows=num_flows, layer_dim=latent_dim + 2, **encoder
        )

    def layers(self, parameters: Tensor) -> RadialLayers:
        """K radial layers from c, α′ and β′ side by side, `[B, K, Z + 2]`."""
        center, raw_alpha, raw_beta = parameters.split((self.latent_dim, 1, 1), dim=-1)
        return RadialLayers(center, raw_alpha, raw_beta)
