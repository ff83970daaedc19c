"""The posterior of spline layers."""

from functools import partial
from typing import Any, Literal, get_args

from torch import Tensor, nn

from evidence.guides.network_flow import AbstractNetworkFlow
from evidence.guides.transforms.autoregressive import Autoregressive
from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.coupling import Coupling, coupling_network
from evidence.guides.transforms.made import Made
from evidence.guides.transforms.spline import RationalQuadratic
from evidence.models.networks import expect_choice

Kind = Literal["autoregressive", "coupling"]


class NeuralSpline(AbstractNetworkFlow):
    """K layers of increasing rational-quadratic splines, with knots from networks of other latents.

    ε⁰ ~ N(0, I),  ε_i^k = g(ε_i^{k−1}; θ_i),  z = μ + σ ⊙ ε^K, where g is a spline on [−B, B] and
    the identity outside, and μ, log σ and the context h come from the encoder:

        autoregressive  θ_i = MADE(ε^{k−1}_{<i}, h); draws take one pass per layer, to score other z
                        costs the same arithmetic in Z steps
        coupling        one half of ε stays, θ = network(that half, h); one pass both ways

    log q(z | x) = log N(ε⁰) − Σ_k Σ_i log g′(ε_i^{k−1}; θ_i) − Σ_i log σ_i. As μ and σ come last,
    B counts standard deviations, and the tails are those of N(μ, σ²).

    Reference: C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, "Neural Spline Flows", 2019,
    https://arxiv.org/abs/1906.04032, section 3.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of layers; every second one takes z in reversed order.
        kind: "autoregressive" or "coupling".
        num_bins: bins of a spline.
        tail_bound: B.
        options: of `AbstractNetworkFlow` and `AbstractGuide`: `context_dim`, `hidden_dims`, …
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        num_flows: int = 4,
        kind: Kind = "autoregressive",
        num_bins: int = 8,
        tail_bound: float = 5.0,
        **options: Any,
    ) -> None:
        self.kind = expect_choice("kind", kind, get_args(Kind))
        self.element = RationalQuadratic(num_bins, tail_bound)
        super().__init__(
            latent_dim,
            data_dim,
            network=partial(Made, num_outputs=self.element.num_parameters)
            if kind == "autoregressive"
            else partial(coupling_network, element=self.element),
            num_flows=num_flows,
            **options,
        )

    def layer(self, network: nn.Module, context: Tensor) -> AbstractTransform:
        """The layer with its network, for contexts `[B, context_dim]`."""
        if isinstance(network, Made):
            return Autoregressive(network.given(context), self.element, given="x")
        return Coupling(network, context, self.element)
