"""The options of training that are numbers, checked."""

import math
from dataclasses import dataclass, replace

from evidence.inference.training.averaging import UntilConverged
from evidence.inference.training.stopping import UntilFlat

_LR = 1e-3
_LR_AVERAGED = 0.02  # to begin with: it is halved as long as that gains something


@dataclass(frozen=True)
class TrainingOptions:
    """What `fit` is given, under the same names.

    Raises:
        ValueError: a number that is out of its range, or not finite.
    """

    num_epochs: int | None
    num_steps: int | None
    until: UntilFlat | UntilConverged | None
    max_steps: int
    batch_size: int
    lr: float | None
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
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(f"expected a finite lr > 0, got {self.lr}")
        if not 0 < self.lr_decay <= 1:
            raise ValueError(f"expected a factor lr_decay > 0 of at most 1, got {self.lr_decay}")
        for name in ("kl_warmup_epochs", "likelihood_warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"expected a finite {name} >= 0, got {getattr(self, name)}")
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ValueError(f"expected a finite clip_norm > 0 or None, got {self.clip_norm}")

    @property
    def is_until(self) -> bool:
        """Whether a rule is to end training."""
        return self.num_epochs is None and self.num_steps is None

    def max_epochs(self, steps_per_epoch: int) -> int:
        """The most passes over the data, the last of them perhaps not to its end."""
        if self.num_epochs is not None:
            return self.num_epochs
        return math.ceil((self.num_steps or self.max_steps) / steps_per_epoch)

    def chosen_for(self, *, shares_latents: bool, may_average: bool) -> "TrainingOptions":
        """The options with the rule and the learning rate that the pair needs, where none is given.

        Args:
            shares_latents: whether data share latents.
            may_average: whether nothing else sets the learning rate or keeps the best epoch.
        """
        averages = shares_latents and may_average and self.is_until
        until = self.until or (UntilConverged() if averages else UntilFlat())
        if isinstance(until, UntilConverged) and not may_average:
            raise ValueError(
                "UntilConverged sets the learning rate and averages the iterates by itself: leave "
                "out scheduler, lr_decay and held_out"
            )
        is_averaged = self.is_until and isinstance(until, UntilConverged)
        return replace(self, until=until, lr=self.lr or (_LR_AVERAGED if is_averaged else _LR))

    @property
    def warmup_epochs(self) -> float:
        """Epochs until the loss is the negative ELBO."""
        return max(self.kl_warmup_epochs, self.likelihood_warmup_epochs)
