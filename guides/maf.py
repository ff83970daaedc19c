"""The masked autoregressive posterior."""

from functools import partial
from typing import Any

from torch import Tensor

from evidence.guides.network_flow import AbstractNetworkFlow
from evidence.guides.transforms.autoregressive import Autoregressive
from evidence.guides.transforms.elementwise import BoundedAffine
from evidence.guides.transforms.made import Made


class MAF(AbstractNetworkFlow):
    """K masked autoregressive layers: each latent is Gaussian given those before it, and again.

    ε⁰ ~ N(0, I),  ε_i^k = m_i(ε^k_{<i}, h) + exp(s_i(ε^k_{<i}, h)) ε_i^{k−1},
    z = μ + σ ⊙ ε^K, with m and s from a MADE, and μ, log σ and h from the encoder; |s_i| < 3.
    log q(z | x) = log N(ε⁰) − Σ_k Σ_i s_i^k − Σ_i log σ_i.

    The paper has no μ and σ. Any z is scored in one pass per layer; draws cost the same arithmetic
    in Z steps, which makes training slower than that of `IAF`.

    Reference: G. Papamakarios, T. Pavlakou, I. Murray, "Masked Autoregressive Flow for Density
    Estimation", 2017, https://arxiv.org/abs/1705.07057, section 3.1.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of layers; every second one takes z in reversed order.
        options: of `AbstractNetworkFlow` and `AbstractGuide`: `context_dim`, `hidden_dims`, …
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_flows: int = 4, **options: Any
    ) -> None:
        self.element = BoundedAffine()
        super().__init__(
            latent_dim,
            data_dim,
            network=partial(Made, num_outputs=self.element.num_parameters),
            num_flows=num_flows,
            **options,
        )

    def layer(self, network: Made, context: Tensor) -> Autoregressive:
        """The layer with its MADE, for contexts `[B, context_dim]`."""
        return Autoregressive(network.given(context), self.element, given="y")
