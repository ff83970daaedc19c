"""What all that moves latents along gradients runs in."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import torch

from evidence.inference.programs.evaluation import evaluation_mode, modules_of
from evidence.inference.programs.precision import fast_matmul
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program


@contextmanager
def annealing_mode(
    model: Program, guide: Program | None, seed: int | None, device: torch.device
) -> Generator[Callable[[], None]]:
    """Random numbers of its own, and gradients of latents alone.

    Args:
        model: the programs that are run inside.
        guide: see `model`.
        seed: see `isolated_rng`.
        device: of the data.

    Yields:
        The check of `evaluation_store`.
    """
    with (
        isolated_rng(seed, device),
        evaluation_mode(model, guide) as refuse_new_parameters,
        _frozen(model, guide),
        fast_matmul(device),
        torch.no_grad(),
    ):
        yield refuse_new_parameters


@contextmanager
def _frozen(*programs: Program | None) -> Generator[None]:
    """No gradients of the parameters of modules: only those of the latents are wanted."""
    parameters = [
        parameter
        for module in modules_of(*programs)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
