"""What flows have in common whose layers are networks of z, told about x by a context vector."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from evidence.guides.base import AbstractGuide
from evidence.guides.transforms.affine import Affine
from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.chain import Chain, alternating

MakeNetwork = Callable[[int, int, tuple[int, ...]], nn.Module]


class AbstractNetworkFlow(AbstractGuide):
    """Standard normals through K layers of networks, then to the encoder's location and scale.

    ε ~ N(0, I),  z = μ(x) + σ(x) ⊙ f_K(… f_1(ε; h(x)); h(x)),
    log q(z | x) = log N(ε; 0, I) − Σ_k log|det ∂f_k| − Σ_i log σ_i(x).

    The encoder gives μ, log σ and the context h; the networks' weights are the same for every x.
    μ and σ come last, so that networks see numbers of size one however narrow the posterior is;
    layers start near the identity, z near N(μ, σ²). Every second layer takes z in reversed order.

    To write a flow, give a function that makes one layer's network, from Z, the context's size and
    the hidden sizes, and `layer`.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        network: makes the network of a layer.
        num_flows: K, the number of layers.
        context_dim: number of entries of h.
        layer_hidden_dims: sizes of the hidden layers of each network; by default two of 4 Z, and
            of at least 64.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        network: MakeNetwork,
        num_flows: int,
        context_dim: int = 64,
        layer_hidden_dims: Sequence[int] | None = None,
        **encoder: Any,
    ) -> None:
        for name, value in (("num_flows", num_flows), ("context_dim", context_dim)):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        sizes = (latent_dim, latent_dim, context_dim)
        super().__init__(latent_dim, data_dim, output_dims=sizes, **encoder)
        default = (max(4 * latent_dim, 64),) * 2
        hidden_dims = default if layer_hidden_dims is None else tuple(layer_hidden_dims)
        self.networks = nn.ModuleList(
            network(latent_dim, context_dim, hidden_dims) for _ in range(num_flows)
        )

    @abstractmethod
    def layer(self, network: nn.Module, context: Tensor) -> AbstractTransform:
        """The layer f_k of R^Z with its network, for contexts `[B, context_dim]`."""

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, log_scale, context = self.encode(x)
        base = dist.Normal(torch.zeros_like(loc), 1.0).to_event(1)
        layers = alternating([self.layer(network, context) for network in self.networks])
        return dist.TransformedDistribution(base, [Chain([*layers, Affine(loc, log_scale)])])
