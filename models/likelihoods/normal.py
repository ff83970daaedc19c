"""Real-valued pixels: torch's values, at a third of the time."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Normal(dist.Normal):
    """Normal by location and log-scale; the scale itself is made only for those who ask for it.

    Args:
        loc: mean, any shape.
        log_scale: log σ, of the same shape.
        validate_args: as in torch.
    """

    def __init__(
        self, loc: Tensor, log_scale: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.log_scale = loc, log_scale
        Distribution.__init__(self, loc.shape, validate_args=validate_args)

    @property
    def scale(self) -> Tensor:
        """σ, of the shape of `log_scale`."""
        return self.log_scale.exp()

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Normal":
        """The same distribution for a larger batch."""
        shape = torch.Size(batch_shape)
        return Normal(self.loc.expand(shape), self.log_scale.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise log p(x) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        standardized = (value - self.loc) * (-self.log_scale).exp()
        normalizer = -_HALF_LOG_TWO_PI - self.log_scale
        return torch.addcmul(normalizer, standardized, standardized, value=-0.5)
