"""When to stop: training until the ELBO is flat."""

import math
from dataclasses import dataclass

_PATIENCE = 10


@dataclass(frozen=True)
class UntilFlat:
    """Train until the loss falls no more.

    After every `steps_per_look` steps, in whole epochs, their mean loss is looked at. Each time
    that it is no lower than the lowest before, the learning rate is halved; the tenth such time
    ends training. Looks begin when the warm-ups are over; with held-out data it is their loss that
    is looked at.

    Reference: C. Cremer, X. Li, D. Duvenaud, "Inference Suboptimality in Variational Autoencoders",
    2018, https://arxiv.org/abs/1801.03558, section 3: the mean of 100 steps, ten times without
    gain, for one datum. Minibatches are noisier, and so looks are longer here; halving the rate
    takes the optimizer's noise out of the last ones.

    Args:
        steps_per_look: training steps of a look, at least.
    """

    steps_per_look: int = 500

    def __post_init__(self) -> None:
        if self.steps_per_look < 1:
            raise ValueError(f"expected steps_per_look of at least 1, got {self.steps_per_look}")


class Plateau:
    """Counts the looks that show no gain; it depends on the losses alone.

    Args:
        rule: when to look.
        steps_per_epoch: training steps of an epoch.
        warmup_epochs: epochs before the first look begins.
    """

    def __init__(self, rule: UntilFlat, *, steps_per_epoch: int, warmup_epochs: float) -> None:
        self.looks_without_gain = 0
        self._epochs_per_look = math.ceil(rule.steps_per_look / steps_per_epoch)
        self._to_skip = math.ceil(warmup_epochs)
        self._lowest = math.inf
        self._losses: list[float] = []

    @property
    def is_flat(self) -> bool:
        """Whether to stop."""
        return self.looks_without_gain >= _PATIENCE

    @property
    def lr_factor(self) -> float:
        """By what to multiply the learning rate."""
        return 0.5**self.looks_without_gain

    def observe(self, loss: float) -> None:
        """Take the loss of an epoch."""
        if self._to_skip > 0:
            self._to_skip -= 1
            return
        self._losses.append(loss)
        if len(self._losses) == self._epochs_per_look:
            mean = math.fsum(self._losses) / len(self._losses)
            self.looks_without_gain += mean >= self._lowest
            self._lowest = min(self._lowest, mean)
            self._losses = []
