"""Latents that are drawn one after the other, as one distribution over all of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

Values = dict[str, Tensor]
Factor = Callable[[Values], TorchDistribution]

_NO_SHAPE = torch.Size()


class Chain(TorchDistribution):
    """p(z₁) p(z₂ | z₁) …, over the vector (z₁, z₂, …) of all the latents side by side.

    One definition serves as a density, log_prob(z), and as a Pyro program, `sample_sites()`.

    Args:
        dims: the size of every latent, in the order in which they are drawn.
        factors: for every latent, the distribution given those before it, by name: batch shape
            that of the values (or one that expands to `batch_shape`), event shape `[dim]`.
        order: how the latents lie in the vector; by default in the order of the draws.
        batch_shape: of the vector.
        supports: where the entries of a latent may lie, for those that are not real.

    Raises:
        ValueError: `dims`, `factors`, `order` and `supports` do not name the same latents.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)
    has_rsample = True

    def __init__(
        self,
        dims: Mapping[str, int],
        factors: Mapping[str, Factor],
        *,
        order: tuple[str, ...] | None = None,
        batch_shape: Sequence[int] = _NO_SHAPE,
        supports: Mapping[str, constraints.Constraint] | None = None,
    ) -> None:
        self.dims, self.factors = dict(dims), dict(factors)
        self.order = order or tuple(self.dims)
        self.supports = dict(supports or {})
        names = set(self.dims)
        if names != set(self.factors) or names != set(self.order) or self.supports.keys() - names:
            raise ValueError(
                f"expected factors, order and supports of the latents {sorted(names)}, got "
                f"{sorted(self.factors)}, {sorted(self.order)} and {sorted(self.supports)}"
            )
        size = sum(self.dims.values())
        super().__init__(torch.Size(batch_shape), torch.Size([size]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where the vector may lie: the supports of the latents side by side."""
        if not self.supports:
            return constraints.real_vector
        entries = [_elementwise(self.supports.get(n, constraints.real)) for n in self.order]
        lengths = [self.dims[name] for name in self.order]
        return constraints.independent(constraints.cat(entries, -1, lengths), 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Chain":
        """The same distribution for a larger batch."""
        return Chain(
            self.dims,
            self.factors,
            order=self.order,
            batch_shape=batch_shape,
            supports=self.supports,
        )

    def split(self, z: Tensor) -> Values:
        """The latents by name, out of the vector `[..., Z]`."""
        sizes = [self.dims[name] for name in self.order]
        return dict(zip(self.order, z.split(sizes, dim=-1), strict=True))

    def join(self, values: Values) -> Tensor:
        """The vector `[..., Z]` of the latents by name."""
        return torch.cat([values[name] for name in self.order], dim=-1)

    def rsample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """Draw all the latents: `[*sample_shape, *batch_shape, Z]`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        values: Values = {}
        for name in self.dims:
            # A factor that looks at no value before it does not know the shape of the draws.
            values[name] = self.factors[name](values).expand(shape).rsample()
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


def _elementwise(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint on a single entry of a latent."""
    return support.base_constraint if isinstance(support, constraints.independent) else support
