"""Labels that fit: of guides in tables and pictures, and of folders."""

import hashlib
from collections.abc import Iterable

TABLE_WIDTH = 60
PICTURE_WIDTH = 34
_FOLDER_WIDTH = 100  # file systems allow 255 bytes, with whatever is written beside it


def shortened(labels: Iterable[str], width: int = TABLE_WIDTH) -> dict[str, str]:
    """A short form of every label, different for every one; what is in the middle is left out."""
    short: dict[str, str] = {}
    for label in dict.fromkeys(labels):
        name = label.removeprefix("pyro.infer.autoguide.")
        form, number = _elided(name, width), 1
        while form in short.values():
            number += 1
            form = f"{_elided(name, width - 5)} ({number})"
        short[label] = form
    return short


def wrapped(labels: Iterable[str]) -> dict[str, str]:
    """The labels for pictures, the options on a line of their own."""
    return {
        label: short.replace("(", "\n(", 1)
        for label, short in shortened(labels, PICTURE_WIDTH).items()
    }


def folder_name(text: str) -> str:
    """A name of a file or folder, a long one cut, with a digest that keeps it apart."""
    if len(text) <= _FOLDER_WIDTH:
        return text
    return f"{text[: _FOLDER_WIDTH - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _elided(label: str, width: int) -> str:
    if len(label) <= width:
        return label
    tail = (width - 1) // 3
    return f"{label[: width - 1 - tail]}…{label[len(label) - tail :]}"
