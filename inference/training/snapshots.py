"""Snapshots of runs, and the way back: every tensor is looked at before any is used."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evidence.inference.training.optimizer import expect_like

# What a crash may cost at the most, whatever a step takes.
_SECONDS_UNSAVED = 10.0


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on bit for bit: tensors, and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


class Saver:
    """Hands on snapshots of a run: every so many steps, and after ten seconds without one.

    Args:
        on_snapshot: called with each; None for no snapshots.
        every: steps between them.
    """

    def __init__(self, on_snapshot: Callable[[Snapshot], None] | None, *, every: int) -> None:
        self._on_snapshot, self._every = on_snapshot, every
        self._last = time.monotonic()

    def after_step(self, number: int, snapshot: Callable[[], Snapshot]) -> None:
        """Save, if it is time to, after the step of this number."""
        is_due = number % self._every == 0 or time.monotonic() - self._last > _SECONDS_UNSAVED
        if is_due:
            self.save(snapshot)

    def save(self, snapshot: Callable[[], Snapshot]) -> None:
        """Make a snapshot and hand it on, if anybody wants one."""
        if self._on_snapshot is not None:
            self._on_snapshot(snapshot())
            self._last = time.monotonic()


def expect_same_run(snapshot: Snapshot, identity: Mapping[str, Any]) -> None:
    """Check that the run of a snapshot had these options and data.

    Raises:
        ValueError: it was another one.
    """
    ours, theirs = dict(identity), snapshot.meta.get("identity", {})
    if theirs != ours:
        differing = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
        what = ", ".join(f"{k} {ours.get(k)} (was {theirs.get(k)})" for k in differing)
        raise ValueError(f"the snapshot is of another run: {what}")


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are now, whatever becomes of them."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def restore_tensors(
    snapshot: Snapshot, *, model: nn.Module | None = None, guide: nn.Module | None = None
) -> None:
    """Load the weights of a snapshot into modules of the same shapes, for evaluation.

    Raises:
        ValueError: the snapshot is of another model or guide.
    """
    for role, module in (("model", model), ("guide", guide)):
        if module is None:
            continue
        state = module.state_dict()
        tensors = within(f"{role}.", snapshot.tensors)
        if state.keys() != tensors.keys():
            odd = sorted(state.keys() ^ tensors.keys())[0]
            raise ValueError(f"the snapshot is of another {role}: {odd} is on one side only")
        module.load_state_dict({n: expect_like(n, tensors[n], t) for n, t in state.items()})


def within(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def matching(tensors: dict[str, Tensor], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the snapshot's tensors hold for every one of the state.

    Raises:
        ValueError: one is missing, or of another shape or type.
    """
    if missing := sorted(state.keys() - tensors.keys()):
        raise ValueError(f"the snapshot is of another model or guide: it lacks {missing[0]}")
    return {name: expect_like(name, tensors[name], like) for name, like in state.items()}


@torch.no_grad()
def copy_into(state: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    """Overwrite the state, in place."""
    for name, tensor in state.items():
        tensor.copy_(tensors[name])
