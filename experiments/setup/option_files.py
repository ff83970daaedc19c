"""Files of options (`--config`): read with the bounds of a run's own, and trusted no further."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from evidence.experiments.config import is_data_code
from evidence.experiments.storage.schema import MAX_CONFIG_BYTES, parse_yaml, read_bytes
from evidence.experiments.storage.trust import expect_named, named_words

_FLAG = "--config"


def expect_plain_options(words: Sequence[str]) -> None:
    """Check the files of options on a command line before they are parsed.

    Raises:
        ValueError: one is no plain YAML.
    """
    for name in _files(words):
        try:
            parse_yaml(read_bytes(Path(name), MAX_CONFIG_BYTES))
        except FileNotFoundError:
            continue  # the parser says so
        except ValueError as error:
            raise ValueError(f"{_FLAG} {name}: {error}") from None


def _files(words: Sequence[str]) -> Iterator[str]:
    for word, following in pairwise([*words, ""]):
        if word == _FLAG:
            yield following
        elif word.startswith(f"{_FLAG}="):
            yield word.removeprefix(f"{_FLAG}=")


def expect_own_words(options: Mapping[str, Any], words: Sequence[str]) -> None:
    """Check that classes from elsewhere, and `trust`, stand on the command line itself.

    Raises:
        ValueError: they are in a file of options alone.
    """
    if not any(_files(words)):
        return
    if options.get("trust") and not any(word.startswith("--trust") for word in words):
        raise ValueError("trust is in the file of options: pass --trust true yourself")
    specs = [options.get(name) for name in ("model", "guide", "objective")]
    data = options.get("data") or ""
    if is_data_code(data) and data not in named_words(words):
        raise ValueError(
            f"the file of options asks for the data {data}, which runs its code: if you know what "
            "is in it, name it on the command line"
        )
    expect_named([spec for spec in (*specs, *options.get("guides", [])) if spec], words)
