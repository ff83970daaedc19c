"""Grey levels: probabilities of the levels themselves, with no noise added."""

from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.constraints import Constraint
from torch import Tensor

_NO_SHAPE = torch.Size()


class Levels(Constraint):
    """The grey levels k/(L − 1), k = 0 … L − 1.

    Args:
        num_levels: L.
    """

    is_discrete = True

    def __init__(self, num_levels: int) -> None:
        self.num_levels = num_levels

    def check(self, value: Tensor) -> Tensor:
        """Which entries are levels, up to rounding."""
        k = value * (self.num_levels - 1)
        return ((k - k.round()).abs() < 1e-3) & (value >= 0) & (value <= 1)

    def __repr__(self) -> str:
        return f"one of the {self.num_levels} grey levels k/{self.num_levels - 1} in [0, 1]"


class DiscretizedLogistic(TorchDistribution):
    """A logistic distribution rounded to the grey levels k/(L − 1); the end levels get the tails.

    With half a step h = 1/(2(L − 1)), a = (x + h − μ)/s and b = (x − h − μ)/s,

        P(x) = σ(a) − σ(b) = σ(a) σ(−b) (1 − e^(b−a)),    P(0) = σ(a),    P(1) = σ(−b):

    the product has no cancellation, however far in the tail, and over the levels P sums to one.

    Reference: T. Salimans et al., "PixelCNN++", 2017, https://arxiv.org/abs/1701.05517, section
    2.1; without a mixture, D. P. Kingma et al., "Improving Variational Inference with Inverse
    Autoregressive Flow", 2016, https://arxiv.org/abs/1606.04934.

    Args:
        loc: μ, any shape; it may lie outside of [0, 1].
        log_scale: log s, of the same shape, in units of x.
        num_levels: L, at least 2.
        validate_args: as in torch.
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012

    def __init__(
        self,
        loc: Tensor,
        log_scale: Tensor,
        num_levels: int,
        *,
        validate_args: bool | None = None,
    ) -> None:
        if num_levels < 2:
            raise ValueError(f"expected num_levels of at least 2, got {num_levels}")
        self.loc, self.log_scale, self.num_levels = loc, log_scale, num_levels
        super().__init__(loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Levels:
        """The grey levels."""
        return Levels(self.num_levels)

    @property
    def half_step(self) -> float:
        """h, half the distance of two levels."""
        return 0.5 / (self.num_levels - 1)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "DiscretizedLogistic":
        """The same distribution for a larger batch."""
        loc, log_scale = self.loc.expand(batch_shape), self.log_scale.expand(batch_shape)
        return DiscretizedLogistic(loc, log_scale, self.num_levels, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[x] = Σ P(x > level)/(L − 1) over all levels but the last; of the shape of `loc`."""
        inverse_scale = (-self.log_scale).exp()
        total = torch.zeros_like(self.loc)
        for k in range(self.num_levels - 1):
            edge = (2 * k + 1) * self.half_step
            total = total + ((self.loc - edge) * inverse_scale).sigmoid()
        return total / (self.num_levels - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise log P(x) in nats, of the grey levels themselves."""
        if self._validate_args:
            self._validate_sample(value)
        k, top = (value * (self.num_levels - 1)).round(), self.num_levels - 1
        # Neighbours share an edge to the last bit, so that their probabilities add up.
        inverse_scale = (-self.log_scale).exp()
        below = ((2 * k + 1) * self.half_step - self.loc) * inverse_scale  # a
        above = ((2 * k - 1) * self.half_step - self.loc) * inverse_scale  # b
        log_width = (-torch.expm1(-2 * self.half_step * inverse_scale)).log()
        is_first, is_last = k == 0, k == top
        inside = torch.where(is_first | is_last, 0.0, log_width)
        log_below = torch.where(is_last, 0.0, F.logsigmoid(below))
        return inside + log_below + torch.where(is_first, 0.0, F.logsigmoid(-above))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """A logistic draw, rounded to a level: `[*sample_shape, *batch_shape]`."""
        loc = self.loc.expand(torch.Size(sample_shape) + self.batch_shape)
        u = torch.rand_like(loc).clamp(min=torch.finfo(loc.dtype).tiny)
        x = loc + self.log_scale.exp() * torch.logit(u)
        top = self.num_levels - 1
        return (x * top).round().clamp(0, top) / top
