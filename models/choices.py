"""Parts of a model by name, with options of their own: `mixture(num_components=20)`."""

import ast
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from evidence.models.networks import expect_choice

Part = TypeVar("Part")


def chosen(what: str, text: str, kinds: Mapping[str, Callable[..., Part]]) -> partial[Part]:
    """What makes the part that a text such as `mixture(num_components=20)` names.

    Options are what `kinds[name]` takes by keyword only; in `keywords` all are written out.

    Args:
        what: the part, in words.
        text: a name, or a call of it with literals by keyword.
        kinds: what there is, by name.

    Raises:
        ValueError: an unknown name or option, a value of another type, or no call at all.
    """
    name, bracket, rest = text.partition("(")
    kind = kinds[expect_choice(what, name, kinds)]
    try:
        call = ast.parse(f"_({rest if bracket else ')'}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("no call by keyword")
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(
            f"expected the {what} as {name} or {name}(option=value, ...), got {text[:100]!r}"
        ) from None
    parameters = inspect.signature(kind).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    expect_options(f"the {what} {name}", options, defaults)
    return partial(kind, **(defaults | options))


def expect_options(of: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Check that options are known, and of the types of their defaults; None stands for a number.

    Raises:
        ValueError: names what was expected and what was given.
    """
    for option, value in options.items():
        expect_choice(f"option of {of}", option, defaults)
        expected = int if defaults[option] is None else type(defaults[option])
        if value is None is defaults[option] or (expected is float and type(value) is int):
            continue
        if not isinstance(value, expected):
            raise ValueError(f"{of}: expected {option} to be {expected.__name__}, got {value!r}")
