"""What a density that is known up to a constant needs to be a Pyro program."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

_NO_SHAPE = torch.Size()


class Weight(TorchDistribution):
    """A factor of the joint density in place of a likelihood: the same for any x, and x is zero.

    Args:
        log_weight: its logarithm, of any shape, in nats.
        data_dim: D, the number of entries of x.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)
    support = constraints.real_vector

    def __init__(self, log_weight: Tensor, data_dim: int) -> None:
        self.log_weight = log_weight
        super().__init__(log_weight.shape, torch.Size([data_dim]), validate_args=False)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "Weight":
        """The same factor for a larger batch."""
        return Weight(self.log_weight.expand(batch_shape), *self.event_shape)

    @property
    def mean(self) -> Tensor:
        """Zero: `[*batch_shape, D]`."""
        return self.log_weight.new_zeros(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """Zero: `[*sample_shape, *batch_shape, D]`."""
        return self.log_weight.new_zeros(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-weight, for any `value` of shape `[..., D]`: `[...]`."""
        return self.log_weight.expand(torch.broadcast_shapes(self.batch_shape, value.shape[:-1]))


class SquareDensity(TorchDistribution):
    """f(z)/Z on a square of the plane, drawn exactly, by rejection.

    Args:
        log_f: log f, `[..., 2] -> [...]`.
        sides: low and high end of the square's sides.
        log_normalizer: ln Z, in nats.
        log_bound: an upper bound of log f.
        like: carries device and dtype.
        batch_shape: independent draws.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)

    def __init__(
        self,
        log_f: Callable[[Tensor], Tensor],
        sides: tuple[float, float],
        *,
        log_normalizer: float,
        log_bound: float,
        like: Tensor,
        batch_shape: Sequence[int] = _NO_SHAPE,
    ) -> None:
        self.log_f, self.sides = log_f, sides
        self.log_normalizer, self.log_bound, self.like = log_normalizer, log_bound, like
        super().__init__(torch.Size(batch_shape), torch.Size([2]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """The square."""
        return constraints.independent(constraints.interval(*self.sides), 1)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "SquareDensity":
        """The same distribution for a larger batch."""
        return SquareDensity(
            self.log_f,
            self.sides,
            log_normalizer=self.log_normalizer,
            log_bound=self.log_bound,
            like=self.like,
            batch_shape=batch_shape,
        )

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """Uniform draws on the square, each kept with probability f/bound."""
        shape = self._extended_shape(sample_shape)
        total = math.prod(shape[:-1])
        kept = self.like.new_zeros(0, 2)
        while len(kept) < total:
            z = self.like.new_empty(16 * total, 2).uniform_(*self.sides)
            log_height = self.log_bound + torch.rand_like(z[:, 0]).log()
            kept = torch.cat([kept, z[log_height < self.log_f(z)]])
        return kept[:total].reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in nats of `value` of shape `[..., 2]`, −inf outside: `[...]`."""
        outside = ~self.support.check(value)
        return (self.log_f(value) - self.log_normalizer).masked_fill(outside, -torch.inf)
