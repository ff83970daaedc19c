"""A standard normal through invertible layers."""

from typing import Any, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from evidence.models.networks import last_layer, mlp

_NO_SHAPE = torch.Size()
_HIDDEN_DIMS = (64,)  # of the network of a layer
_MAX_LOG_SCALE = 2.0  # of one layer; several reach further


class FlowPrior(nn.Module):
    """u ~ N(0, I), z = f_K(… f_1(u)), by affine coupling layers.

    log p(z) = log N(u; 0, I) − Σ log|det ∂f_k|, with u from z through the layers backwards.

    Layer k moves and scales every other entry by functions of the rest, and in the next layer the
    two halves change places. It starts as the standard normal.

    The layers are our own: those of Pyro remember the last pair (u, z), and a second gradient at
    the same z then goes through a graph that is gone.

    Reference: L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density estimation using Real NVP", 2017,
    https://arxiv.org/abs/1605.08803, section 3; as the prior of an autoencoder, X. Chen et al.,
    "Variational Lossy Autoencoder", 2017, https://arxiv.org/abs/1611.02731, section 3.2.

    Args:
        latent_dim: Z, the number of latent variables, at least 2.
        num_flows: K, the number of layers.

    Raises:
        ValueError: a single latent, which has no other half, or no layer.
    """

    def __init__(self, latent_dim: int, *, num_flows: int = 4) -> None:
        super().__init__()
        if latent_dim < 2 or num_flows < 1:
            raise ValueError(
                "expected latent_dim of at least 2 and num_flows of at least 1 for a flow prior, "
                f"got {latent_dim} and {num_flows}"
            )
        self.layers = nn.ModuleList([Coupling(latent_dim, parity=k % 2) for k in range(num_flows)])

    def forward(self) -> TorchDistribution:
        """p(z): batch shape `[]`, event shape `[Z]`."""
        return Flow(cast("list[Coupling]", [*self.layers]))


class Coupling(nn.Module):
    """One layer: entries of one parity stay, the others become x · exp(s) + t.

    s and t are functions of the entries that stay; |s| < 2 by a tanh.

    Args:
        dim: Z.
        parity: 0 if the even entries stay, 1 if the odd ones do.
    """

    kept: Tensor

    def __init__(self, dim: int, *, parity: int) -> None:
        super().__init__()
        kept = torch.arange(dim) % 2 == parity
        self.register_buffer("kept", kept, persistent=False)
        self.network = mlp(dim, _HIDDEN_DIMS, 2 * dim, activation="tanh")
        nn.init.zeros_(last_layer(self.network).weight)

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image and log|det ∂y/∂x|: `[..., Z]` and `[...]`."""
        log_scale, shift = self._affine(x)
        return x * log_scale.exp() + shift, log_scale.sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Origin and log|det ∂y/∂x|: `[..., Z]` and `[...]`."""
        log_scale, shift = self._affine(y)
        return (y - shift) * (-log_scale).exp(), log_scale.sum(-1)

    def _affine(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.network(x * self.kept).chunk(2, dim=-1)
        log_scale = _MAX_LOG_SCALE * torch.tanh(raw / _MAX_LOG_SCALE)
        return log_scale * ~self.kept, shift * ~self.kept


class Flow(TorchDistribution):
    """The standard normal pushed through layers.

    Args:
        layers: from the normal to z.
        batch_shape: independent draws.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, layers: list[Coupling], batch_shape: torch.Size = _NO_SHAPE) -> None:
        self.layers = layers
        super().__init__(torch.Size(batch_shape), layers[0].kept.shape, validate_args=False)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Flow":
        """The same distribution for a larger batch."""
        return Flow(self.layers, batch_shape)

    def rsample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """Draws `[*sample_shape, *batch_shape, Z]`."""
        like = self.layers[0].network[0].weight  # carries device and dtype
        z = torch.randn(self._extended_shape(sample_shape), dtype=like.dtype, device=like.device)
        for layer in self.layers:
            z, _ = layer.push(z)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of any `value` of shape `[..., Z]`: `[...]`."""
        total = value.new_zeros(value.shape[:-1])
        for layer in reversed(self.layers):
            value, ladj = layer.pull(value)
            total = total - ladj
        normal = torch.distributions.Normal(value.new_zeros(()), value.new_ones(()))
        return total + normal.log_prob(value).sum(-1)
