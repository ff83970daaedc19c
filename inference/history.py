"""What a training run leaves behind: one record per epoch."""

from dataclasses import asdict, dataclass, field
from typing import Any


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
    """

    epoch: int
    train_loss: float
    beta: float
    test_loss: float | None
    reconstruction: float | None
    kl: float | None
    seconds: float
    num_steps: int


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
    def seconds(self) -> float:
        """Time spent in training steps."""
        return sum(record.seconds for record in self.epochs)

    @property
    def steps_per_second(self) -> float:
        """Training steps per second."""
        return sum(record.num_steps for record in self.epochs) / max(self.seconds, 1e-9)

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain dictionary per epoch, for JSON."""
        return [asdict(record) for record in self.epochs]

    @classmethod
    def from_rows(cls, rows: list[dict[str, Any]]) -> "History":
        """The inverse of `to_rows`."""
        return cls([EpochRecord(**row) for row in rows])
