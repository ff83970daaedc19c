"""What a snapshot of an annealing must hold before any of it is used."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from evidence.inference.paths import hmc
from evidence.inference.training.snapshots import matching, within

_PLACES = ("block", "stage", "step")


def tensors_of(chains: Any) -> dict[str, Tensor]:
    """All tensors of a dataclass of these and of a state, by name."""
    values = {field.name: getattr(chains, field.name) for field in fields(chains)}
    state = values.pop("state")
    return values | {f"state.{name}": value for name, value in state._asdict().items()}


def restored(like: Any, tensors: dict[str, Tensor]) -> Any:
    """Chains of the kind, the shapes and the types of others, from a snapshot's tensors.

    Raises:
        ValueError: the snapshot is damaged, or of another run.
    """
    found = matching(tensors, tensors_of(like))
    state = hmc.State(**within("state.", found))
    rest = {name: value for name, value in found.items() if not name.startswith("state.")}
    return type(like)(state=state, **rest)


def expect_position(
    position: Mapping[str, Any], num_blocks: int, num_steps: Sequence[int]
) -> tuple[int, int]:
    """Block and stage of a position, given the number of steps of every stage.

    Raises:
        ValueError: there is no such position.
    """
    if set(position) != set(_PLACES) or any(type(position[name]) is not int for name in _PLACES):
        raise ValueError(f"expected a snapshot with block, stage and step, got {dict(position)}")
    block, stage, step = (position[name] for name in _PLACES)
    is_over = (block, stage, step) == (num_blocks, 0, 0)
    if not is_over and not (
        0 <= block < num_blocks and 0 <= stage < len(num_steps) and 0 <= step <= num_steps[stage]
    ):
        raise ValueError(f"the snapshot is of another run: it is at {dict(position)}")
    return block, stage


def expect_count(meta: Mapping[str, Any]) -> int:
    """The evaluations of the log joint before a snapshot.

    Raises:
        ValueError: they are no number.
    """
    count = meta.get("num_evaluations")
    if type(count) is not int or count < 0:
        raise ValueError(f"expected a snapshot with num_evaluations, got {count!r}")
    return count


def expect_done(
    done: Mapping[str, Tensor], num_chains: int, *, forward: int, reverse: int | None
) -> None:
    """Check the results of the data that are done, so many of either direction.

    Raises:
        ValueError: one is missing, or of another shape or type.
    """
    expected = dict.fromkeys(("log_w", "log_ratio"), (num_chains, forward))
    expected |= dict.fromkeys(("acceptance", "on_edge", "beside"), (1, forward))
    if reverse is not None:
        expected["reverse_log_w"] = (num_chains, reverse)
    for name, shape in expected.items():
        if shape[1] > 0:
            _expect(f"done.{name}", done.get(name), shape, torch.float64)
    for name, tensor in done.items():
        if name.startswith("latent."):
            _expect(f"done.{name}", tensor, (num_chains, forward, *tensor.shape[2:]))


def _expect(
    name: str, tensor: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype | None = None
) -> None:
    if tensor is None:
        raise ValueError(f"the snapshot lacks {name}")
    if tensor.shape != shape or not tensor.is_floating_point() or dtype not in (None, tensor.dtype):
        raise ValueError(
            f"the snapshot is of another run: expected {name} of shape {shape}, got "
            f"{tuple(tensor.shape)} {tensor.dtype}"
        )
