"""Torch's optimizers and learning-rate schedulers, by `Name(option=value)`."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler

from evidence.experiments.setup.catalogue import Spec
from evidence.inference.training.optimizer import MakeOptimizer, MakeScheduler, fused_adam
from evidence.models.networks import expect_choice

OPTIMIZERS: dict[str, type[Optimizer]] = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
}
SCHEDULERS: dict[str, type] = {
    name: kind
    for name, kind in vars(lr_scheduler).items()
    if isinstance(kind, type)
    and issubclass(kind, lr_scheduler.LRScheduler)
    and kind is not lr_scheduler.LRScheduler
    and not name.startswith("_")
}


def build_optimizer(spec: Spec, *, lr: float | None) -> MakeOptimizer:
    """What makes the optimizer of a spec, such as `AdamW(weight_decay=0.01)`.

    Raises:
        ValueError: an unknown optimizer, or options that it does not take.
    """
    kind = OPTIMIZERS[expect_choice("optimizer", spec.name, OPTIMIZERS)]
    if "lr" in spec.options:
        raise ValueError(f"expected the learning rate of {spec.name} as --lr, got it as an option")
    if spec == Spec("Adam"):
        return fused_adam
    _expect_options("optimizer", kind, spec)
    make = functools.partial(kind, **spec.options)
    _try(spec, lambda: _step(make, 1e-3 if lr is None else lr))
    return make


def build_scheduler(spec: Spec) -> MakeScheduler:
    """What makes the scheduler of a spec, such as `CosineAnnealingLR(T_max=100)`.

    Raises:
        ValueError: an unknown scheduler, or options that it does not take.
    """
    kind = SCHEDULERS[expect_choice("scheduler", spec.name, SCHEDULERS)]
    _expect_options("scheduler", kind, spec)
    make = functools.partial(kind, **spec.options)
    _try(spec, lambda: make(torch.optim.Adam([torch.zeros(1, requires_grad=True)])))
    return make


def _step(make: MakeOptimizer, lr: float) -> None:
    parameter = torch.zeros(1, requires_grad=True)
    parameter.grad = torch.zeros(1)
    make([parameter], lr=lr).step()


def _expect_options(what: str, kind: type, spec: Spec) -> None:
    known = list(inspect.signature(kind).parameters)[1:]
    for option in spec.options:
        expect_choice(f"option of the {what} {spec.name}", option, known)


def _try(spec: Spec, make: Callable[[], Any]) -> None:
    """Make one, to see whether torch takes the options."""
    try:
        make()
    except Exception as error:  # torch raises whatever its arithmetic does
        raise ValueError(f"{spec}: {' '.join(str(error).split())}") from None
