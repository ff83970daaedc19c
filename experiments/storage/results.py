"""`results.json`: writing it, and reading it back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.experiments.storage.files import write
from evidence.experiments.storage.records import Row, as_json
from evidence.experiments.storage.schema import (
    MAX_DOCUMENT_BYTES,
    expect_type,
    parse_signed,
    read_bytes,
    signed,
)

VERSION = 1


@dataclass(frozen=True)
class Results:
    """The document: which command wrote it, and one row per run."""

    command: str
    rows: list[Row]


def put(path: Path, command: str, rows: Sequence[Row | dict[str, Any]], **more: Any) -> None:
    """Replace the document; `more` is whatever else it says."""
    document = {"version": VERSION, "command": command, "rows": as_json(list(rows)), **more}
    write(path, signed(document))


def read(path: Path) -> Results | None:
    """The document, or None if there is none.

    Raises:
        ValueError: it is damaged, or not what was written.
    """
    try:
        document = parse_signed(read_bytes(path, MAX_DOCUMENT_BYTES))
        for name, hint in (("version", int), ("command", str), ("rows", list[dict[str, Any]])):
            if name not in document:
                raise ValueError(f"{name} is missing")
            expect_type(name, document[name], hint)
        if not document["rows"]:
            raise ValueError("it has no rows")
        rows = [Row.from_json(row) for row in document["rows"]]
        for evaluation in (one for row in rows for one in row.evaluations):
            expect_type("made_by", evaluation.get("made_by"), dict[str, Any])
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be trusted: {error}: move it away to go on without it"
        ) from None
    return Results(document["command"], rows)
