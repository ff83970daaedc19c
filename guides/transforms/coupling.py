"""Coupling layers."""

import torch
from torch import Tensor, nn

from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.elementwise import AbstractElementwise
from evidence.models.networks import last_layer, mlp


class Coupling(AbstractTransform):
    """y_1 = x_1, y_2 = g(x_2; θ) entry by entry, with θ = network(x_1, context).

    x_1 is the first half of x, rounded down: of a single entry nothing, and θ is the context's.
    Both directions take one pass.

    Args:
        network: from x_1 and the context side by side to θ, `[..., N · entries of x_2]`.
        context: `[B, context_dim]`.
        element: g, with N parameters.
    """

    def __init__(self, network: nn.Module, context: Tensor, element: AbstractElementwise) -> None:
        super().__init__()
        self.network = network
        self.context = context
        self.element = element

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        kept, changed = _halves(x)
        changed, log_slopes = self.element.push(changed, self._parameters(kept))
        return torch.cat((kept, changed), -1), log_slopes.sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        kept, changed = _halves(y)
        changed, log_slopes = self.element.pull(changed, self._parameters(kept))
        return torch.cat((kept, changed), -1), -log_slopes.sum(-1)

    def _parameters(self, kept: Tensor) -> Tensor:
        context = self.context.expand(*kept.shape[:-1], -1)
        outputs = self.network(torch.cat((kept, context), -1))
        return outputs.unflatten(-1, (-1, self.element.num_parameters))


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The first half of the entries, rounded down, and the others."""
    first, second = x.tensor_split((x.shape[-1] // 2,), dim=-1)
    return first, second


def coupling_network(
    dim: int, context_dim: int, hidden_dims: tuple[int, ...], element: AbstractElementwise
) -> nn.Sequential:
    """The network of a coupling layer of R^dim, whose outputs start near zero."""
    num_kept = dim // 2
    num_outputs = (dim - num_kept) * element.num_parameters
    network = mlp(num_kept + context_dim, hidden_dims, num_outputs)
    with torch.no_grad():
        last_layer(network).weight *= 0.1
    return network
