"""How programs are run when they are evaluated and not trained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
from torch import nn

from inference.parameters import evaluation_store
from inference.traces import Program


@contextmanager
def evaluation_mode(*programs: Program) -> Iterator[Callable[[], None]]:
    """No validation, modules in evaluation mode and with their parameters to themselves.

    Yields:
        The check of `evaluation_store`.
    """
    training = [
        module
        for program in programs
        if isinstance(program, nn.Module)
        for module in program.modules()
        if module.training
    ]
    try:
        for module in training:
            module.training = False
        with pyro.validation_enabled(False), evaluation_store() as refuse_new_parameters:
            yield refuse_new_parameters
    finally:
        for module in training:
            module.training = True
