"""The random state of a run: set apart while it lasts, saved and restored bit for bit."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor


@contextmanager
def isolated_rng(seed: int | None = None, device: torch.device | None = None) -> Generator[None]:
    """Leave the random state of torch, numpy and Python as it was, whatever is drawn inside.

    Args:
        seed: seed of the state inside; without it, the state goes on from the one outside.
        device: a CUDA device whose state is set apart too.
    """
    of_torch, of_python = torch.get_rng_state(), random.getstate()
    of_numpy = np.random.get_state(legacy=False)
    of_cuda = torch.cuda.get_rng_state(device) if _is_cuda(device) else None
    try:
        if seed is not None:
            set_seed(seed)
        yield
    finally:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        if of_cuda is not None and device is not None:
            torch.cuda.set_rng_state(of_cuda, device)


def set_seed(seed: int) -> None:
    """Seed torch, Python and numpy, as `pyro.set_rng_seed` does."""
    seed_torch(seed)
    random.seed(seed)
    np.random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch on every device there is.

    `torch.manual_seed` also keeps, for devices that might turn up, the stack of each call as text:
    that takes a hundred times as long.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(int(seed))


def rng_state(device: torch.device | None = None) -> dict[str, Tensor]:
    """The states of torch (CPU, and CUDA on a CUDA `device`), numpy and Python, as tensors."""
    of_numpy = np.random.get_state(legacy=False)
    _, words, gauss_next = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(of_numpy["state"]["key"].astype(np.int64)),
        "numpy_position": torch.tensor([of_numpy["state"]["pos"], of_numpy["has_gauss"]]),
        "numpy_gauss": torch.tensor(of_numpy["gauss"], dtype=torch.float64),
        "python_words": torch.tensor(words, dtype=torch.int64),
        # No cached draw, or one: not a NaN, which would equal no other state.
        "python_gauss": torch.tensor(
            [] if gauss_next is None else [gauss_next], dtype=torch.float64
        ),
    }
    if _is_cuda(device):
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device | None = None) -> None:
    """Restore what `rng_state` returned.

    Raises:
        ValueError: the state is of another form.
    """
    _expect_form(state, rng_state(device))
    torch.set_rng_state(state["torch"])
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    gauss_next = next(iter(state["python_gauss"].tolist()), None)
    random.setstate((3, tuple(state["python_words"].tolist()), gauss_next))
    if _is_cuda(device) and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def expect_rng_state(state: dict[str, Tensor]) -> None:
    """Check that a state can be restored on a CPU; nothing is changed.

    Raises:
        ValueError: an unknown or missing part, one of another form, or numbers of no state.
    """
    given = {name: tensor for name, tensor in state.items() if name != "cuda"}
    if odd := sorted(given.keys() ^ rng_state().keys()):
        raise ValueError(f"the random state lacks or adds {odd[0]}")
    try:
        with isolated_rng():
            set_rng_state(given)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"the random state cannot be restored ({error})") from None


def _expect_form(state: dict[str, Tensor], like: dict[str, Tensor]) -> None:
    """Check names, shapes and types: torch, numpy and Python trust what they are given."""
    for name, expected in like.items():
        if name not in state and name == "cuda":  # saved on a machine without
            continue
        sizes = (0, 1) if name == "python_gauss" else (expected.numel(),)
        found = state.get(name)
        if found is None or found.dtype != expected.dtype or found.numel() not in sizes:
            raise ValueError(f"the snapshot has no random state that can be restored: {name}")
    keys, position = state["numpy_keys"], int(state["numpy_position"][0])
    if not (0 <= position <= len(keys) and (keys >= 0).all()):  # else numpy reads beyond them
        raise ValueError("the snapshot has no random state that can be restored: numpy_position")


def _is_cuda(device: torch.device | None) -> TypeGuard[torch.device]:
    return device is not None and device.type == "cuda"
