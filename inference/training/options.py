"""The options of training that are numbers, checked."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from evidence.inference.training.averaging import UntilConverged
from evidence.inference.training.stopping import UntilFlat

# What is left open, and what it is where iterates are averaged: at a rate that takes the parameters
# of a standardized guide over the posterior in a hundred steps; and with many data at once, which
# cost a step of small models nothing, while minibatches add noise.
USUAL: dict[str, Any] = {"until": UntilFlat(), "batch_size": 128, "lr": 1e-3}
_OF_AVERAGES = {"batch_size": 4096, "lr": 0.03}


@dataclass(frozen=True)
class TrainingOptions:
    """What `fit` is given, under the same names.

    Raises:
        ValueError: a number that is out of its range, or not finite.
    """

    num_epochs: int | None
    num_steps: int | None
    until: UntilFlat | UntilConverged
    max_steps: int
    batch_size: int
    lr: float
    lr_decay: float
    kl_warmup_epochs: float
    likelihood_warmup_epochs: float
    clip_norm: float | None
    seed: int
    snapshot_every: int

    def __post_init__(self) -> None:
        if self.num_epochs is not None and self.num_steps is not None:
            raise ValueError("expected num_epochs or num_steps, got both: leave one out")
        for name in ("num_epochs", "num_steps", "max_steps", "batch_size", "snapshot_every"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int) and value >= 1):
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"expected a finite lr > 0, got {self.lr}")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"expected a factor lr_decay > 0 of at most 1, got {self.lr_decay}")
        for name in ("kl_warmup_epochs", "likelihood_warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"expected a finite {name} >= 0, got {getattr(self, name)}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"expected a finite clip_norm > 0 or None, got {self.clip_norm}")

    def settled(
        self, left_open: Collection[str], *, shares_latents: bool, is_guided: bool
    ) -> "TrainingOptions":
        """These options, with those that were left open as `fit` says.

        Args:
            left_open: the names of such options.
            shares_latents: whether the data share latents.
            is_guided: whether something else sets the learning rate, or ends training.
        """
        averages = "until" in left_open and shares_latents and not is_guided
        options = replace(self, until=UntilConverged()) if averages else self
        if not options.averages:
            return options
        return replace(options, **{n: v for n, v in _OF_AVERAGES.items() if n in left_open})

    @property
    def is_until(self) -> bool:
        """Whether a rule is to end training."""
        return self.num_epochs is None and self.num_steps is None

    def max_epochs(self, steps_per_epoch: int) -> int:
        """The most passes over the data, the last of them perhaps not to its end."""
        if self.num_epochs is not None:
            return self.num_epochs
        return math.ceil((self.num_steps or self.max_steps) / steps_per_epoch)

    def known_steps(self, num_data: int) -> int | None:
        """How many steps training takes on so many data; None where a rule ends it."""
        if self.num_epochs is None:
            return self.num_steps
        return self.num_epochs * math.ceil(num_data / self.batch_size)

    @property
    def averages(self) -> bool:
        """Whether training ends with an average of its iterates."""
        return self.is_until and isinstance(self.until, UntilConverged)

    @property
    def warmup_epochs(self) -> float:
        """Epochs until the loss is the negative ELBO."""
        return max(self.kl_warmup_epochs, self.likelihood_warmup_epochs)
