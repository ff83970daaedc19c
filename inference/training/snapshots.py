"""Snapshots of runs, and the way back: every tensor is looked at before any is used."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evidence.inference.training.optimizer import expect_like


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to go on bit for bit: tensors, and a JSON-able description."""

    tensors: dict[str, Tensor]
    meta: dict[str, Any]


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
