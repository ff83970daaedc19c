"""How programs are run when they are evaluated and not trained."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from evidence.inference.programs.modules import modules_of
from evidence.inference.programs.parameters import evaluation_store
from evidence.inference.programs.singular import nan_where_singular
from evidence.inference.programs.validation import Unvalidated

__all__ = ["evaluation_mode", "modules_of", "no_training"]


@contextmanager
def evaluation_mode(*programs: object) -> Generator[Callable[[], None]]:
    """No validation, modules in evaluation mode and with their parameters to themselves.

    A density that cannot be computed is NaN, and no error.

    Yields:
        The check of `evaluation_store`.
    """
    with (
        no_training(*programs),
        pyro.validation_enabled(False),
        Unvalidated(),
        nan_where_singular(),
        evaluation_store() as refuse_new_parameters,
    ):
        yield refuse_new_parameters


@contextmanager
def no_training(*programs: object) -> Generator[None]:
    """Modules in evaluation mode: those of the programs, and whatever other they call."""
    switched: list[nn.Module] = []

    def switch(module: nn.Module, _: Any = None) -> None:
        if module.training:
            module.training = False
            switched.append(module)

    hook = register_module_forward_pre_hook(switch)
    try:
        for module in modules_of(*programs):
            for part in module.modules():
                switch(part)
        yield
    finally:
        hook.remove()
        for module in switched:
            module.training = True
