"""What a snapshot of an annealing must hold before any of it is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_PLACES = ("block", "stage", "step")


def expect_annealing_state(
    tensors: Mapping[str, Tensor],
    position: Mapping[str, Any],
    *,
    block_sizes: Sequence[int],
    stages: Sequence[str],
    num_steps: Mapping[str, int],
    num_chains: Mapping[str, int],
) -> None:
    """Check position and tensors of a snapshot by name, shape and type.

    Args:
        tensors: by name, the random state aside.
        position: block, stage and step.
        block_sizes: data of every block.
        stages: of every block, in order.
        num_steps: of each stage.
        num_chains: of each stage, C.

    Raises:
        ValueError: the snapshot is damaged, or of another run.
    """
    block, stage = _expect_position(position, block_sizes, stages, num_steps)
    before = sum(block_sizes[:block])
    here = block_sizes[block] if block < len(block_sizes) else 0
    forward_done = before + (here if stage > stages.index("forward") else 0)
    done = {"log_w": (num_chains["forward"], forward_done), "acceptance": (1, forward_done)}
    done["on_edge"] = done["acceptance"]
    if "reverse" in stages:
        done["reverse_log_w"] = (num_chains["forward"], before)
    for name, shape in done.items():
        if shape[1] > 0:
            _expect(f"done.{name}", tensors, shape, torch.float64)
    for name, tensor in tensors.items():
        if name.startswith("done.latent."):
            _expect(name, tensors, (num_chains["forward"], forward_done, *tensor.shape[2:]))
    if block < len(block_sizes):
        _expect_chains(tensors, here, num_chains[stages[stage]], _rows(stages[stage], num_steps))


def _expect_position(
    position: Mapping[str, Any],
    block_sizes: Sequence[int],
    stages: Sequence[str],
    num_steps: Mapping[str, int],
) -> tuple[int, int]:
    if set(position) != set(_PLACES) or any(type(position[name]) is not int for name in _PLACES):
        raise ValueError(f"expected a snapshot with block, stage and step, got {dict(position)}")
    block, stage, step = (position[name] for name in _PLACES)
    is_over = (block, stage, step) == (len(block_sizes), 0, 0)
    if not is_over and not (
        0 <= block < len(block_sizes)
        and 0 <= stage < len(stages)
        and 0 <= step <= num_steps[stages[stage]]
    ):
        raise ValueError(f"the snapshot is of another run: it is at {dict(position)}")
    return block, stage


def _rows(stage: str, num_steps: Mapping[str, int]) -> int:
    """Of the step sizes: the pilot run has a row more each step, the others one per temperature."""
    return num_steps["pilot"] + 1 if stage == "pilot" else num_steps["forward"]


def _expect_chains(tensors: Mapping[str, Tensor], size: int, chains: int, rows: int) -> None:
    z, grads = tensors.get("state.z"), tensors.get("state.grads")
    if z is None or grads is None or z.dim() != 3 or grads.dim() != 4:
        raise ValueError("the snapshot has no chains")
    terms, width = len(grads), z.shape[2]
    _expect("state.z", tensors, (chains, size, width), z.dtype)
    _expect("state.log_probs", tensors, (terms, chains, size), z.dtype)
    _expect("state.grads", tensors, (terms, chains, size, width), z.dtype)
    _expect("step_sizes", tensors, (rows, size))
    _expect("log_w", tensors, (chains, size), torch.float64)
    _expect("acceptance", tensors, (1, size), torch.float64)


def _expect(
    name: str,
    tensors: Mapping[str, Tensor],
    shape: tuple[int, ...],
    dtype: torch.dtype | None = None,
) -> None:
    tensor = tensors.get(name)
    if tensor is None:
        raise ValueError(f"the snapshot lacks {name}")
    if tensor.shape != shape or not tensor.is_floating_point() or dtype not in (None, tensor.dtype):
        raise ValueError(
            f"the snapshot is of another run: expected {name} of shape {shape}, got "
            f"{tuple(tensor.shape)} {tensor.dtype}"
        )
