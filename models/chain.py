"""Latents that are drawn one after the other, as one distribution over all of them."""

from collections.abc import Callable, Mapping

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

Values = dict[str, Tensor]
Factor = Callable[[Values], TorchDistribution]


class Chain(TorchDistribution):
    """p(z₁) p(z₂ | z₁) …, over the vector (z₁, z₂, …) of all the latents side by side.

    One definition serves as a density, log_prob(z), and as a Pyro program, `sample_sites()`.

    Args:
        dims: the size of every latent, in the order in which they are drawn.
        factors: for every latent, the distribution given those before it, by name: batch shape
            that of the values (or `batch_shape` to begin with), event shape `[dim]`.
        order: how the latents lie in the vector; by default in the order of the draws.
        batch_shape: of the first factor.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        dims: Mapping[str, int],
        factors: Mapping[str, Factor],
        *,
        order: tuple[str, ...] | None = None,
        batch_shape: torch.Size = torch.Size(),
    ) -> None:
        self.dims, self.factors = dict(dims), dict(factors)
        self.order = order or tuple(self.dims)
        size = sum(self.dims.values())
        super().__init__(batch_shape, torch.Size([size]), validate_args=False)

    def split(self, z: Tensor) -> Values:
        """The latents by name, out of the vector `[..., Z]`."""
        sizes = [self.dims[name] for name in self.order]
        return dict(zip(self.order, z.split(sizes, dim=-1), strict=True))

    def join(self, values: Values) -> Tensor:
        """The vector `[..., Z]` of the latents by name."""
        return torch.cat([values[name] for name in self.order], dim=-1)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:
        """Draw all the latents: `[*sample_shape, *batch_shape, Z]`."""
        values: Values = {}
        for name in self.dims:
            factor = self.factors[name](values)
            values[name] = factor.rsample(torch.Size() if values else torch.Size(sample_shape))
        return self.join(values)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of `value` of shape `[..., Z]`: `[...]`."""
        values = self.split(value)
        terms = [self.factors[name](values).log_prob(values[name]) for name in self.dims]
        return torch.stack(torch.broadcast_tensors(*terms)).sum(0)

    def sample_sites(self) -> Tensor:
        """Draw every latent at a Pyro site of its name, inside the caller's plates: `[..., Z]`."""
        values: Values = {}
        for name in self.dims:
            values[name] = pyro.sample(name, self.factors[name](values))
        return self.join(values)
