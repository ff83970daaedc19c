"""The words of a command line, put so that the parser takes them as a person means them.

A flag without a value is `true`, options on the command line win over those of a `--config` file
wherever they stand, and `~` is the home folder however it is written.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

CONFIG = "--config"
_PATHS = ("out", "run", "runs", "data_root", "frozen_model")
_BOOLEANS = ("true", "false", "yes", "no")


def prepared(words: Sequence[str], commands: Mapping[str, type[Any]]) -> list[str]:
    """The words of a command line, with `true` after bare flags, and files of options first."""
    at = next((place for place, word in enumerate(words) if word in commands), None)
    if at is None:
        return list(words)
    flags = {f"--{f.name}" for f in fields(commands[words[at]]) if f.type in (bool, "bool")}
    files, others = _separated(_with_values(words[at + 1 :], flags))
    return [*words[: at + 1], *files, *others]


def _with_values(words: Sequence[str], flags: set[str]) -> list[str]:
    """A `true` after every flag that has no value."""
    whole = []
    for word, following in pairwise([*words, ""]):
        bare = word in flags and following.lower() not in _BOOLEANS
        whole += [word, "true"] if bare else [word]
    return whole


def _separated(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of options, and all other words."""
    files, others, named = [], [], False
    for word in words:
        if named or word.startswith(f"{CONFIG}="):
            files.append(f"{CONFIG}={os.path.expanduser(word.removeprefix(f'{CONFIG}='))}")
            named = False
        elif word == CONFIG:
            named = True
        else:
            others.append(word)
    return files, [*others, CONFIG] if named else others


def at_home(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options, `~` in their paths replaced by the home folder."""
    return {name: _home(v) if name in _PATHS else v for name, v in options.items()}


def _home(value: Any) -> Any:
    if isinstance(value, list):
        return [_home(one) for one in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def understandable(message: str, commands: Iterable[str]) -> str:
    """What the parser says, in the words of the command line."""
    text = re.sub(rf"(?<![\w.-])(?:{'|'.join(commands)})\.(?=\w)", "", message)
    text = re.sub(r'^Parser key "', 'option "', text)
    if found := re.match(r"(.*?: )Does not validate against any .* Given value: (.*)$", text):
        kinds = dict.fromkeys(re.findall(r"Expected an? <class '(\w+)'>", text))
        kinds.pop("NoneType", None)
        wanted = " or ".join(_kind(kind, None, None) for kind in kinds)
        return f"{found[1]}expected {wanted}, got {found[2]}"
    kinds = r"Expected an? (?:<class '(\w+)'>|typing\.Literal\[(.*?)\]|([^.]*?))\. Got value: "
    return re.sub(kinds, lambda m: f"expected {_kind(*m.groups())}, got ", text)


def _kind(name: str | None, choices: str | None, other: str | None) -> str:
    if choices:
        return f"one of {choices.replace(chr(39), '')}"
    return {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(
        name or "", name or (other or "").replace("typing.", "")
    )
