"""A user's data files as arrays by name, or as one array: NumPy, CSV, Parquet, safetensors."""

import csv
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import load_file

_MISSING = ("", "NA", "N/A", "null", "None")


@dataclass(frozen=True)
class Columns:
    """Arrays by name.

    Args:
        arrays: by name; one datum per row, all of one length, if it is a table.
        is_table: whether the arrays are the columns of a table, which can be taken as a whole.
        typed: whether the file says of which type a number is; text does not.
    """

    arrays: Mapping[str, np.ndarray]
    is_table: bool = False
    typed: bool = True


def read_data_file(name: str) -> Columns | np.ndarray:
    """What is in a file.

    Raises:
        ValueError: there is no such file, it cannot be read, or it needs a package.
    """
    path = Path(name).expanduser()
    if not path.is_file():
        raise ValueError(f"--data {name}: there is no such file")
    try:
        found = _READERS[path.suffix.lower()](path)
    except (OSError, ValueError, EOFError, safetensors.SafetensorError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"--data {name} cannot be read: {reason}") from None
    arrays = found.arrays if isinstance(found, Columns) else {"": found}
    if not any(array.size for array in arrays.values()):
        raise ValueError(f"--data {name} has no data in it")
    return found


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_npz(path: Path) -> Columns:
    with np.load(path, allow_pickle=False) as archive:
        return Columns({name: archive[name] for name in archive.files})


def _read_safetensors(path: Path) -> Columns:
    return Columns(load_file(path))


def _read_parquet(path: Path) -> Columns:
    try:
        from pyarrow import parquet  # noqa: PLC0415 (optional)
    except ImportError:
        raise ValueError(
            "Parquet needs the package pyarrow: pip install 'evidence[parquet]', or write CSV"
        ) from None
    table = parquet.read_table(path)
    return Columns({n: table[n].to_numpy() for n in table.column_names}, is_table=True)


def _read_csv(path: Path) -> Columns:
    """Columns with their names in the first line; an empty cell is a missing value."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise ValueError("it is empty")
    names, rows = [name.strip() for name in lines[0]], lines[1:]
    if all(_is_number(name) for name in names):
        raise ValueError("expected the names of the columns in the first line, got numbers")
    if len(set(names)) < len(names):
        raise ValueError(f"expected columns of different names, got {', '.join(names)}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(f"expected {len(names)} cells in row {number}, got {len(row)}")
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    arrays = {name: _column(cells) for name, cells in zip(names, columns, strict=True)}
    return Columns(arrays, is_table=True, typed=False)


def _column(cells: tuple[str, ...]) -> np.ndarray:
    """Whole numbers, numbers, or words as they are."""
    cells = tuple(cell.strip() for cell in cells)
    for kind in (int, lambda cell: math.nan if cell in _MISSING else float(cell)):
        try:
            return np.array([kind(cell) for cell in cells])
        except (ValueError, OverflowError):
            continue
    return np.array(cells, dtype=object)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


_READERS: dict[str, Callable[[Path], Any]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".safetensors": _read_safetensors,
}
