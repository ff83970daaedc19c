"""The random state of a run: set apart while it lasts, saved and restored bit for bit."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyro
import torch
from torch import Tensor


@contextmanager
def isolated_rng(seed: int | None = None, device: torch.device | None = None) -> Iterator[None]:
    """Leave the random state of torch, numpy and Python as it was, whatever is drawn inside.

    Args:
        seed: seed of the state inside; without it, the state goes on from the one outside.
        device: a CUDA device whose state is set apart too.
    """
    before = rng_state(device)
    try:
        if seed is not None:
            pyro.set_rng_seed(seed)
        yield
    finally:
        set_rng_state(before, device)


def rng_state(device: torch.device | None = None) -> dict[str, Tensor]:
    """The states of torch (CPU, and CUDA on a CUDA `device`), numpy and Python, as tensors."""
    _, keys, position, has_gauss, cached_gauss = np.random.get_state()
    _, words, gauss_next = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(keys.astype(np.int64)),
        "numpy_position": torch.tensor([position, has_gauss]),
        "numpy_gauss": torch.tensor(cached_gauss, dtype=torch.float64),
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
    """Restore what `rng_state` returned."""
    torch.set_rng_state(state["torch"])
    position, has_gauss = state["numpy_position"].tolist()
    keys = state["numpy_keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, position, has_gauss, state["numpy_gauss"].item()))
    gauss_next = next(iter(state["python_gauss"].tolist()), None)
    random.setstate((3, tuple(state["python_words"].tolist()), gauss_next))
    if _is_cuda(device) and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def expect_rng_state(state: dict[str, Tensor]) -> None:
    """Check that a state can be restored: a damaged one can make numpy read beyond its memory.

    Raises:
        ValueError: an unknown or missing part, one of another shape or type, or numbers that are
            none of a state.
    """
    expected = rng_state()
    given = {name: tensor for name, tensor in state.items() if name != "cuda"}
    if given.keys() != expected.keys():
        raise ValueError(f"the random state lacks or adds {sorted(given.keys() ^ expected.keys())}")
    for name, tensor in given.items():
        ours = expected[name]
        optional = name == "python_gauss" and tensor.shape in ((0,), (1,))
        if tensor.dtype != ours.dtype or (tensor.shape != ours.shape and not optional):
            raise ValueError(
                f"expected the random state {name} to be {ours.dtype} {tuple(ours.shape)}, got "
                f"{tensor.dtype} {tuple(tensor.shape)}"
            )
    words = torch.cat([state["numpy_keys"], state["python_words"]])
    position, _ = state["numpy_position"].tolist()
    if not (0 <= position <= len(state["numpy_keys"]) and (words >= 0).all()):
        raise ValueError("the random state is none of numpy")
    try:
        with isolated_rng():
            set_rng_state(given)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise ValueError(f"the random state cannot be restored ({error})") from None


def _is_cuda(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"
