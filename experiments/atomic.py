"""Files that are written in full or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; the file takes its place if nothing went wrong."""
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix says the format
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
