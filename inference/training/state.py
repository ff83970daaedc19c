"""All that changes while a training run goes on: what a snapshot of it holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evidence.inference.programs.parameters import tensors_of
from evidence.inference.programs.random_state import rng_state, set_rng_state
from evidence.inference.programs.traces import Program
from evidence.inference.training.averaging import IterateAverages
from evidence.inference.training.history import EpochRecord, History
from evidence.inference.training.optimizer import JointOptim
from evidence.inference.training.snapshots import (
    Snapshot,
    copies,
    copy_into,
    expect_same_run,
    matching,
    within,
)


@dataclass
class Position:
    """Where a run is: epochs done, steps and data of this epoch, and what they added up to."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_rows: int = 0
    seconds: float = 0.0
    history: list[EpochRecord] = field(default_factory=list)

    def to_meta(self) -> dict[str, Any]:
        """As plain numbers, for a snapshot."""
        return vars(self) | {"history": History(self.history).to_rows()}

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> "Position":
        """The inverse of `to_meta`."""
        given: dict[str, Any] = meta | {"history": History.from_rows(meta["history"]).epochs}
        return cls(**given)


@dataclass
class TrainingState:
    """Parameters, optimizer, averages and position of a run; the random state is the process's.

    Args:
        model: whose parameters these are.
        guide: likewise.
        optim: of the parameters that are trained.
        averages: of the iterates, if training ends with one.
        device: of the data, and of the random state.
        position: where the run is.
        best: the parameters that are best on held-out data so far, where there are any.
        best_loss: theirs on the held-out data.
    """

    model: Program
    guide: Program
    optim: JointOptim
    averages: IterateAverages | None
    device: torch.device
    position: Position = field(default_factory=Position)
    best: dict[str, Tensor] | None = None
    best_loss: float = math.inf

    def keep_if_best(self, loss: float) -> None:
        """Take the parameters for the best so far, if they are, by their loss on held-out data."""
        if self.best is None or loss < self.best_loss:
            self.best, self.best_loss = copies(tensors_of(self.model, self.guide)), loss

    def put_best(self) -> None:
        """Make the best parameters those of the pair, where held-out data say which they are."""
        if self.best is not None:
            copy_into(tensors_of(self.model, self.guide), self.best)

    def snapshot(self, identity: Mapping[str, Any]) -> Snapshot:
        """The run as it is now; with held-out data, its parameters are the best so far.

        Args:
            identity: what tells this run from others.
        """
        tensors = tensors_of(self.model, self.guide)
        if self.best is not None:
            tensors = self.best | {f"last.{n}": t for n, t in tensors.items()}
        tensors = tensors | {f"optimizer.{n}": t for n, t in self.optim.get_state().items()}
        tensors |= {f"rng.{n}": t for n, t in rng_state(self.device).items()}
        if self.averages is not None:
            tensors |= {f"averages.{n}": t for n, t in self.averages.get_state().items()}
        meta = {
            "identity": dict(identity),
            "trained": list(self.optim.parameters),
            "position": self.position.to_meta(),
        }
        return Snapshot(copies(tensors), meta)

    def restore(
        self,
        snapshot: Snapshot,
        identity: Mapping[str, Any],
        *,
        steps_per_epoch: int,
        num_epochs: int | None,
    ) -> None:
        """Go on from a snapshot, all of which is looked at before any of it is used.

        Raises:
            ValueError: the snapshot is of another run.
        """
        position = _position_of(snapshot, steps_per_epoch, num_epochs)
        expect_same_run(snapshot, identity)
        if snapshot.meta.get("trained") != list(self.optim.parameters):
            raise ValueError("the snapshot is of a run that trained other parameters")
        state = tensors_of(self.model, self.guide)
        kept = matching(snapshot.tensors, state)
        last = within("last.", snapshot.tensors)
        current = matching(last, state) if last else kept
        set_rng_state(within("rng.", snapshot.tensors), self.device)
        self.optim.set_state(within("optimizer.", snapshot.tensors))
        if self.averages is not None:
            self.averages.set_state(within("averages.", snapshot.tensors))
        copy_into(state, current)
        self.best = copies(kept) if last else None
        self.best_loss = min((r.judged_loss for r in position.history), default=math.inf)
        self.position = position


def _position_of(snapshot: Snapshot, steps_per_epoch: int, num_epochs: int | None) -> Position:
    """Where the run of a snapshot was.

    Raises:
        ValueError: it does not say, or was further than `num_epochs`.
    """
    try:
        position = Position.from_meta(snapshot.meta["position"])
        is_readable = vars(position).keys() == snapshot.meta["position"].keys()
        is_readable &= position.epoch == len(position.history)
        is_readable &= 0 <= position.step <= steps_per_epoch
    except (KeyError, TypeError):
        is_readable = False
    if not is_readable:
        raise ValueError("the snapshot does not say where its run was: start anew")
    if num_epochs is not None and position.epoch > num_epochs:
        raise ValueError(
            f"the snapshot has {position.epoch} epochs behind it, more than num_epochs = "
            f"{num_epochs}"
        )
    return position
