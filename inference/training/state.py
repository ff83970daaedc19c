"""Where a training run is, and whether a snapshot is of this one."""

from dataclasses import asdict, dataclass, field
from typing import Any

from evidence.inference.training.history import History
from evidence.inference.training.snapshots import Snapshot


@dataclass
class Position:
    """Where a run is: epochs done, steps and data of this epoch, and what they added up to."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    num_rows: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


def position_of(snapshot: Snapshot, steps_per_epoch: int, num_epochs: int | None) -> Position:
    """Where the run of a snapshot was.

    Raises:
        ValueError: it does not say, or was further than `num_epochs`.
    """
    try:
        position = Position(**snapshot.meta["position"])
        History.from_rows(position.history)
        is_readable = asdict(position).keys() == snapshot.meta["position"].keys()
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


def expect_same_run(snapshot: Snapshot, identity: dict[str, Any], trained: list[str]) -> None:
    """Check that the run of a snapshot had these options, and trained these parameters.

    Raises:
        ValueError: it was another one.
    """
    theirs = snapshot.meta.get("identity", {})
    if theirs != identity:
        differing = sorted(k for k in identity | theirs if identity.get(k) != theirs.get(k))
        what = ", ".join(f"{k} {identity.get(k)} (was {theirs.get(k)})" for k in differing)
        raise ValueError(f"the snapshot is of another run: {what}")
    if snapshot.meta.get("trained") != trained:
        raise ValueError("the snapshot is of a run that trained other parameters")
