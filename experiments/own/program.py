"""A user's Pyro program, function or module, as a torch module that owns all of its parameters."""

import inspect
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from torch.distributions import constraints, transform_to

from evidence.inference.programs.modules import modules_of


class OwnProgram(nn.Module):
    """A program whose state is a `state_dict`, whatever it was written as.

    Modules that it holds are parts of this one, and so are the parameters that a function makes
    with `pyro.param` when it is first called: none is left to Pyro's store, where those of two
    programs would meet.

    Args:
        program: any Pyro callable.
        dtype: torch's default one, which it was written in and is to be run in: that of what it
            makes of Python's numbers.
    """

    # What its data must be, as those of a model of the suite.
    pixels: ClassVar[str] = "real"

    def __init__(self, program: Callable[..., Any], dtype: torch.dtype) -> None:
        super().__init__()
        is_module = isinstance(program, nn.Module)
        self.parts = nn.ModuleList([program] if is_module else modules_of(program))
        self.kept = nn.Module()
        self.dtype = dtype
        self._program = (program,)  # a module is a part already
        self._known = {id(parameter) for parameter in self.parameters()}
        self._constraints: dict[str, constraints.Constraint] = {}

    @property
    def program(self) -> Callable[..., Any]:
        """What the user wrote."""
        return self._program[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the program returns."""
        with _KeepParameters(self):
            return self.program(*args, **kwargs)

    def adopt(self, name: str, parameter: nn.Parameter) -> None:
        """Take in a parameter of a module that the program fetches while it runs."""
        if id(parameter) not in self._known:
            self.kept.register_parameter(_key(name), parameter)
            self._known.add(id(parameter))

    def parameter(self, name: str, init: Any, constraint: constraints.Constraint) -> Tensor | None:
        """The value of `pyro.param(name, init, constraint)`; None of one that is not made here."""
        if name not in self._constraints:
            if init is None:
                return None
            value = init() if callable(init) else init
            free = transform_to(constraint).inv(value.detach().clone())
            self.kept.register_parameter(_key(name), nn.Parameter(free.contiguous()))
            self._constraints[name] = constraint
        free = getattr(self.kept, _key(name))
        value = transform_to(self._constraints[name])(free)
        value.unconstrained = weakref.ref(free)
        return value


class _KeepParameters(Messenger):
    """Takes a program's `pyro.param` from its owner, where Pyro would from its store."""

    def __init__(self, owner: OwnProgram) -> None:
        super().__init__()
        self.owner = owner

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        name, *init = msg["args"]
        if init and isinstance(init[0], nn.Parameter):
            self.owner.adopt(name, init[0])
            return
        constraint = msg["kwargs"].get("constraint", constraints.real)
        value = self.owner.parameter(name, init[0] if init else None, constraint)
        if value is not None:
            msg["value"], msg["done"] = value, True


def _key(name: str) -> str:
    """What a module's parameter may be called: without dots."""
    return f"param:{name}".replace(".", "·")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Generator[None]:
    """Python's numbers become tensors of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def parameters_of(program: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """What a program can be given by name, in its order."""
    written = program.forward if isinstance(program, nn.Module) else program
    taken = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(written).parameters
    return {name: p for name, p in parameters.items() if p.kind in taken}
