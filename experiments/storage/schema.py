"""From bytes to typed values, bounded in size and depth, before anything is built from them.

Files of a run folder can be damaged or made to harm: whatever is not what this suite writes ends in
a `ValueError` of one line.
"""

import hashlib
import json
import math
import os
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from evidence.experiments.storage.numbers import finite

MAX_CONFIG_BYTES = 2**16
MAX_DOCUMENT_BYTES = 2**28  # histories and evaluations grow
CHECKSUM = "sha256"

_MAX_DEPTH = 24
_MAX_TEXT = 2**14
_MAX_INT = 2**63
# What makes a terminal do more than print, and what cannot be encoded.
_WILD = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")

Kind = TypeVar("Kind")


def read_bytes(path: Path, limit: int) -> bytes:
    """A file that is no larger than so many bytes.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is larger, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            payload = file.read() if size <= limit else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    if size > limit:
        raise ValueError(f"{path} cannot be read: expected at most {limit:,} bytes")
    return payload


def parse_yaml(payload: bytes) -> Any:
    """YAML without aliases, tags, repeated keys or deep nesting.

    Raises:
        ValueError: it is anything else.
    """
    try:
        text = payload.decode()
        _expect_plain_events(text)
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise ValueError(f"expected plain YAML: {' '.join(problem.split())[:200]}") from None


def _expect_plain_events(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError("it has aliases")
        if getattr(event, "tag", None):
            raise ValueError("it has tags")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is there twice, where YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, if its keys are texts and differ."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        return _distinct(list(zip(keys, keys, strict=True))) and super().construct_mapping(
            node, deep
        )


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    found = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise ValueError(f"expected keys that are texts, got {key!r}")
        if key in found:
            raise ValueError(f"{key} is there twice")
        found[key] = value
    return found


def parse_json(payload: bytes) -> Any:
    """JSON without NaN, infinities, repeated keys, huge numbers or deep nesting.

    Raises:
        ValueError: it is anything else.
    """
    try:
        found = json.loads(
            payload.decode(), object_pairs_hook=_distinct, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON: {str(error)[:200]}") from None
    expect_bounded(found)
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def expect_bounded(value: Any, depth: int = 0) -> None:
    """Check that numbers are finite and of 64 bits, and that nothing is deeply nested.

    Raises:
        ValueError: they are not.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            expect_bounded(part, depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError("it has a number that is not finite")
    elif isinstance(value, int) and abs(value) >= _MAX_INT:
        raise ValueError("it has a number of more than 64 bits")


def signed(document: Mapping[str, Any]) -> bytes:
    """A document as JSON, with a checksum of all that is in it."""
    document = finite(dict(document))
    text = json.dumps(
        {**document, CHECKSUM: checksum(document)}, indent=1, ensure_ascii=False, allow_nan=False
    )
    return f"{text}\n".encode()


def parse_signed(payload: bytes) -> dict[str, Any]:
    """The document, once its checksum is found to be right, without it.

    Raises:
        ValueError: it is not what was written.
    """
    return verified(parse_json(payload))


def verified(document: Any) -> dict[str, Any]:
    """A document without its checksum, once that is found to be right.

    Raises:
        ValueError: it is not what was written.
    """
    if not isinstance(document, dict) or CHECKSUM not in document:
        raise ValueError(f"expected an object with a {CHECKSUM}")
    content = {name: value for name, value in document.items() if name != CHECKSUM}
    if checksum(content) != document[CHECKSUM]:
        raise ValueError(f"it was changed since it was written ({CHECKSUM} differs)")
    return content


def checksum(document: Mapping[str, Any]) -> str:
    """SHA-256 of what a document says, however it is laid out."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def typed(kind: type[Kind], values: Any, *, complete: bool = False) -> Kind:
    """A dataclass from a mapping of its fields, each of its type.

    Args:
        kind: the dataclass; its own checks of ranges follow.
        values: the mapping.
        complete: whether fields with a default must be there too.

    Raises:
        ValueError: an unknown field, one that is missing, or one of another type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"expected a mapping of {kind.__name__}, got {_shown(values)}")
    hints = get_type_hints(kind)
    known = [field.name for field in fields(cast("Any", kind))]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"unknown option {_shown(unknown[0])}")
    if complete and (missing := [name for name in known if name not in values]):
        raise ValueError(f"{missing[0]} is missing")
    checked = {name: expect_type(name, value, hints[name]) for name, value in values.items()}
    try:
        return kind(**checked)
    except TypeError as error:  # a field without a default
        raise ValueError(str(error).partition(") ")[2] or str(error)) from None


def expect_type(name: str, value: Any, hint: Any) -> Any:
    """The value, if it is of this type; a whole number will do for a real one.

    Raises:
        ValueError: it is of another type.
    """
    if not _is(value, hint):
        raise ValueError(f"expected {name} to be {_called(hint)}, got {_shown(value)}")
    return _taken(value, hint)


def _taken(value: Any, hint: Any) -> Any:
    """The value as its type has it: records of objects, real numbers of whole ones."""
    if hasattr(hint, "from_json"):
        return hint.from_json(value)
    if is_dataclass(hint):
        return typed(hint, value, complete=True)
    if get_origin(hint) in (types.UnionType, Union):
        return _taken(value, next(one for one in get_args(hint) if _is(value, one)))
    if get_origin(hint) is list:
        return [_taken(part, one) for part in value for one in get_args(hint)]
    return float(value) if hint is float else value


def _is(value: Any, hint: Any) -> bool:
    return _CHECKS.get(get_origin(hint) or hint, _is_instance)(value, hint)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and not _WILD.search(value)


def _is_instance(value: Any, hint: Any) -> bool:
    return isinstance(value, dict if is_dataclass(hint) else hint)


def _is_any(value: Any, hint: Any) -> bool:
    return any(_is(value, one) for one in get_args(hint))


def _is_list(value: Any, hint: Any) -> bool:
    return isinstance(value, list) and all(_is(v, one) for v in value for one in get_args(hint))


def _is_dict(value: Any, hint: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return all(_is(v, one) for v in value.values() for one in get_args(hint)[1:])


_CHECKS: dict[Any, Callable[[Any, Any], bool]] = {
    Any: lambda value, hint: True,
    bool: lambda value, hint: isinstance(value, bool),
    int: lambda value, hint: type(value) is int and abs(value) < _MAX_INT,
    float: lambda value, hint: type(value) in (int, float) and math.isfinite(value),
    str: lambda value, hint: _is_text(value),
    None: lambda value, hint: value is None,
    type(None): lambda value, hint: value is None,
    Literal: lambda value, hint: isinstance(value, str) and value in get_args(hint),
    types.UnionType: _is_any,
    Union: _is_any,
    list: _is_list,
    dict: _is_dict,
}


def _called(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
