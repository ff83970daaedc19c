"""What a training run leaves behind: one record per epoch."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

_LEVEL = 0.99  # of the test whether the loss still falls


class NotConvergedWarning(UserWarning):
    """Training that was to go on until converged or flat was ended by `max_steps`."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of training. Losses and terms are in nats per datum.

    Args:
        epoch: counted from 1.
        train_loss: mean of the minibatch losses, −ELBO at the temperature `beta`.
        beta: temperature of the KL term at the end of the epoch (1 after the warm-up).
        test_loss: −ELBO on the test data, or None without test data.
        reconstruction: E_q[log p(x | z)] on the test data.
        kl: E_q[log q(z | x) − log p(z)] on the test data.
        seconds: time spent in training steps.
        num_steps: number of training steps.
        held_out_loss: −ELBO on the held-out data, or None without any.
        lr: learning rate of the epoch.
        is_flat: whether training ended with it because the loss fell no more.
        is_average: whether the parameters at its end are an average of iterates.
        is_capped: whether training ended with it because `max_steps` were taken, before the rule
            that was to end it did.
    """

    epoch: int
    train_loss: float
    beta: float
    test_loss: float | None
    reconstruction: float | None
    kl: float | None
    seconds: float
    num_steps: int
    held_out_loss: float | None = None
    lr: float | None = None
    is_flat: bool = False
    is_average: bool = False
    is_capped: bool = False

    @property
    def judged_loss(self) -> float:
        """What training is judged by: the held-out loss where there is one."""
        return self.train_loss if self.held_out_loss is None else self.held_out_loss


@dataclass
class History:
    """The records of a training run, oldest first."""

    epochs: list[EpochRecord] = field(default_factory=list)

    @property
    def train_loss(self) -> list[float]:
        """Mean minibatch loss per epoch, nats per datum, smaller is better."""
        return [record.train_loss for record in self.epochs]

    @property
    def test_loss(self) -> list[float | None]:
        """−ELBO on the test data per epoch, nats per datum, smaller is better."""
        return [record.test_loss for record in self.epochs]

    @property
    def best_epoch(self) -> int:
        """The epoch whose parameters are kept: the best on held-out data, or else the last."""
        if self.epochs[-1].held_out_loss is None:
            return self.epochs[-1].epoch
        return min(self.epochs, key=lambda record: record.judged_loss).epoch

    @property
    def still_rising(self) -> float | None:
        """By how much the ELBO rose over the last half of the epochs, if it did to the end.

        Nats per datum, or None where training ended because the ELBO was flat, or where a line
        through the losses of that half does not fall significantly (a one-sided t test at 1%).
        Of fewer than six epochs the difference of first and last is taken, untested.
        """
        if not self.epochs or self.epochs[-1].is_flat:
            return None
        losses = [record.judged_loss for record in self.epochs if record.beta == 1]
        if len(losses) < 6:
            gain = losses[0] - losses[-1] if losses else 0.0
            return gain if gain > 0 else None
        half = np.array(losses[len(losses) // 2 :])
        line = stats.linregress(np.arange(len(half)), half)
        falls = line.slope < -stats.t.ppf(_LEVEL, len(half) - 2) * line.stderr
        return -float(line.slope) * (len(half) - 1) if falls else None

    @property
    def not_converged(self) -> str | None:
        """That training was ended by `max_steps`, and what to do; None where it was not."""
        if not self.epochs or not self.epochs[-1].is_capped:
            return None
        steps = sum(record.num_steps for record in self.epochs)
        ended = f"max_steps ended training after {steps} steps, before it had converged"
        if (gain := self.still_rising) is not None:
            ended += f", the ELBO still rising by {gain:.2g} nats per datum over half its epochs"
        return f"{ended}: raise max_steps"

    @property
    def seconds(self) -> float:
        """Time spent in training steps."""
        return sum(record.seconds for record in self.epochs)

    @property
    def steps_per_second(self) -> float:
        """Training steps per second."""
        return sum(record.num_steps for record in self.epochs) / max(self.seconds, 1e-9)

    def __str__(self) -> str:
        """How training ended, in one line."""
        count = f"{len(self.epochs)} epochs"
        kept = f"; the parameters are those of epoch {self.best_epoch}"
        kept = "" if not self.epochs or self.best_epoch == len(self.epochs) else kept
        if self.epochs and self.epochs[-1].is_average:
            return f"trained until averages of the iterates converged, for {count}"
        if self.epochs and self.epochs[-1].is_flat:
            return f"trained until the ELBO was flat, for {count}{kept}"
        if (why := self.not_converged) is not None:
            return f"trained for {count}{kept}: {why}"
        if (gain := self.still_rising) is None:
            return f"trained for {count}{kept}"
        return (
            f"trained for {count}, and the ELBO was still rising, by {gain:.2g} nats per datum "
            f"over the last half of them{kept}: train longer"
        )

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dictionary per epoch, for JSON."""
        return [dict(vars(record)) for record in self.epochs]

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> "History":
        """The inverse of `to_rows`."""
        return cls([EpochRecord(**row) for row in rows])
