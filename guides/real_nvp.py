"""The posterior of affine coupling layers."""

from functools import partial
from typing import Any

from torch import Tensor, nn

from evidence.guides.network_flow import AbstractNetworkFlow
from evidence.guides.transforms.coupling import Coupling, coupling_network
from evidence.guides.transforms.elementwise import BoundedAffine


class RealNVP(AbstractNetworkFlow):
    """K affine coupling layers: one half of the latents is scaled and shifted, given the other.

    ε⁰ ~ N(0, I),  ε_1^k = ε_1^{k−1},  ε_2^k = m(ε_1^k, h) + exp(s(ε_1^k, h)) ⊙ ε_2^{k−1},
    z = μ + σ ⊙ ε^K, with μ, log σ and h from the encoder; |s_i| < 3. Halves change from layer to
    layer. log q(z | x) = log N(ε⁰) − Σ_k Σ_i s_i^k − Σ_i log σ_i.

    Draws and scores both take one pass per layer.

    Reference: L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density Estimation Using Real NVP", 2017,
    https://arxiv.org/abs/1605.08803, section 3.2.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of layers; two change every latent.
        options: of `AbstractNetworkFlow` and `AbstractGuide`: `context_dim`, `hidden_dims`, …
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_flows: int = 8, **options: Any
    ) -> None:
        self.element = BoundedAffine()
        super().__init__(
            latent_dim,
            data_dim,
            network=partial(coupling_network, element=self.element),
            num_flows=num_flows,
            **options,
        )

    def layer(self, network: nn.Module, context: Tensor) -> Coupling:
        """The layer with its network, for contexts `[B, context_dim]`."""
        return Coupling(network, context, self.element)
