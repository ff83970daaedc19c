"""The torch modules that a program runs, however it holds them."""

import functools
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from pyro.poutine import Trace
from torch import Tensor, nn

_LEAVES = (Tensor, Trace, ModuleType, str, bytes, int, float, complex, type(None))
# Written elsewhere: their globals hold no module of a user's.
_LIBRARIES = {"torch", "pyro", "numpy"} | sys.stdlib_module_names


def modules_of(*programs: object) -> list[nn.Module]:
    """The modules that programs hold, in the order found, none of them a part of another.

    A program may be a module; a method of an object that is one or has some as attributes; a
    function that has some in its closure, its defaults or the globals that it names; a partial
    function, or anything decorated or made of other programs. Nothing is run: a module that is
    made, or fetched by a call, while a program runs is not found.

    Args:
        programs: any callables, or None.
    """
    found: list[nn.Module] = []
    seen: dict[int, object] = {}  # kept alive, so that no other object gets the same id
    waiting = list(reversed(programs))
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, _LEAVES) or id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, nn.Module):
            found.append(thing)
        waiting.extend(reversed(list(_held_by(thing))))
    parts = {id(part) for module in found for part in module.modules() if part is not module}
    return [module for module in found if id(module) not in parts]


def _held_by(thing: object) -> Iterator[object]:
    """What is one step away."""
    match thing:
        case MethodType():
            yield from (thing.__self__, thing.__func__)
        case FunctionType():
            yield from _held_by_function(thing)
        case functools.partial():
            yield from (thing.func, *thing.args, *thing.keywords.values())
        case Mapping():
            yield from thing.values()
        case list() | tuple() | set() | frozenset():
            yield from thing
        case type():
            yield from () if _is_of_a_library(thing) else vars(thing).values()
        case staticmethod() | classmethod():
            yield thing.__func__
        case functools.cached_property():
            yield thing.func
        case property():
            yield thing.fget
        case _:
            yield from _held_by_object(thing)


def _held_by_object(thing: object) -> Iterator[object]:
    """Attributes, and the methods of its class."""
    yield from getattr(thing, "__dict__", {}).values()
    for base in type(thing).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(thing, name, None)
        yield base


def _held_by_function(function: FunctionType) -> Iterator[object]:
    """What it closes over, has for defaults, wraps, and names among its globals."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    yield from vars(function).values()  # among them `__wrapped__`
    if not _is_of_a_library(function):
        yield from _globals_named_by(function)


def _globals_named_by(function: FunctionType) -> Iterator[object]:
    """The globals that its code names, and `nets.decoder` where `nets` is a module or a class."""
    names = _names(function.__code__)
    for name in names:
        value = function.__globals__.get(name)
        if not isinstance(value, ModuleType | type):
            yield value
        elif not _is_of_a_library(value):
            yield from (vars(value).get(attribute) for attribute in names)


def _names(code: CodeType) -> list[str]:
    """The names in a function, and in those that it defines."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return [*code.co_names, *(name for constant in inner for name in _names(constant))]


def _is_of_a_library(thing: Any) -> bool:
    name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    return str(name).partition(".")[0] in _LIBRARIES
