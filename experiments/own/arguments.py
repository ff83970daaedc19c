"""A user's data as the arguments of a program: matched by name, typed, split into rows."""

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidence.experiments.config import is_data_file
from evidence.experiments.own.code import OwnCode
from evidence.experiments.own.files import Columns, read_data_file
from evidence.experiments.storage.spec import Spec
from evidence.inference.programs.data import Batch, Data

Found = Columns | tuple[Any, ...]
Parameters = Mapping[str, inspect.Parameter]

_FOLDS = 5  # every fifth row is held out
_TRIES = 64


def find_data(data: str, code: OwnCode) -> Found:
    """What `--data` names: columns by name, or arrays in the order of a program's parameters.

    Args:
        data: a file, or a callable `my_data.load` or `FILE.py:load` that returns tensors, arrays, a
            tuple of them, a dictionary or a data frame.
        code: where callables come from.

    Raises:
        ValueError: there is no such thing, or it cannot be read.
    """
    if is_data_file(data):
        found = read_data_file(data)
    else:
        spec = Spec.parse(data)
        load = code.find("data", spec.name)
        try:
            found = load(**spec.options)
        except Exception as error:  # whatever the user's code does
            raise ValueError(f"--data {data} fails: {type(error).__name__}: {error}") from error
    return _in_columns(found)


def _in_columns(found: Any) -> Found:
    if isinstance(found, Columns):
        return found
    if hasattr(found, "columns") and hasattr(found, "to_dict"):  # a pandas data frame
        return Columns({str(n): found[n].to_numpy() for n in found.columns}, is_table=True)
    if isinstance(found, Mapping):
        return Columns({str(name): _as_array(value) for name, value in found.items()})
    if isinstance(found, Data):
        return Columns(found.kwargs) if found.kwargs else tuple(map(_as_array, found.args))
    if isinstance(found, Sequence) and not isinstance(found, str):
        return tuple(_as_array(value) for value in found)
    return (_as_array(found),)


def _as_array(value: Any) -> Any:
    """NumPy's form of tensors and series; all else as it is."""
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    return value.to_numpy() if hasattr(value, "to_numpy") else value


def matched(found: Found, parameters: Parameters, *, model: str) -> tuple[dict[str, Any], list]:
    """The arrays by the parameters that take them, and the names of what is left over.

    Names decide. A program with a single parameter takes the whole table, or the one array.

    Raises:
        ValueError: a parameter gets nothing, or there are more arrays than parameters.
    """
    required = [n for n, p in parameters.items() if p.default is p.empty]
    if not isinstance(found, Columns):
        if not len(required) <= len(found) <= len(parameters):
            raise ValueError(
                f"{model} takes {_listed(parameters)}, got {len(found)} arrays: name them, in an "
                ".npz file or as a dictionary"
            )
        return dict(zip(parameters, found, strict=False)), []
    taken = {name: found.arrays[name] for name in parameters if name in found.arrays}
    single = required or list(parameters)
    if not taken and len(single) == 1 and (found.is_table or len(found.arrays) == 1):
        return {single[0]: as_one(found)}, []
    if missing := [name for name in required if name not in taken]:
        raise ValueError(
            f"{model} expects {_listed(parameters)}, and no column is called {', '.join(missing)}: "
            f"got {', '.join(found.arrays)}"
        )
    return taken, [name for name in found.arrays if name not in taken]


def _listed(parameters: Parameters) -> str:
    return ", ".join(parameters) or "no data"


def as_one(found: Found) -> Any:
    """Everything as one array: the columns of a table side by side, or its only one.

    Raises:
        ValueError: there are several arrays that are no table.
    """
    arrays: dict[str, Any] = (
        dict(found.arrays)
        if isinstance(found, Columns)
        else {str(place): array for place, array in enumerate(found)}
    )
    if len(arrays) == 1:
        return next(iter(arrays.values()))
    if not (isinstance(found, Columns) and found.is_table):
        raise ValueError(f"expected one array, got {len(arrays)}: {', '.join(map(str, arrays))}")
    expect_numbers(arrays)
    return np.column_stack(list(arrays.values()))


def expect_numbers(values: Mapping[str, Any]) -> None:
    """Check that arrays hold numbers, all of which are there.

    Raises:
        ValueError: names the column and the row, counted from 1.
    """
    for name, array in values.items():
        if isinstance(array, np.ndarray) and array.dtype.kind not in "fiub":
            words = [(row, word) for row, word in enumerate(array.flat, 1) if not _is_number(word)]
            row, word = words[0] if words else (1, array.flat[0])
            raise ValueError(
                f"column {name!r} holds no numbers (row {row}: {str(word)[:40]!r}): encode it as "
                "numbers, or leave it out"
            )
        if isinstance(array, np.ndarray) and array.dtype.kind == "f":
            _expect_finite(name, array)


def _expect_finite(name: str, array: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad) == 0:
        return
    place = tuple(int(i) for i in bad[0])
    what = "missing (NaN)" if np.isnan(array[place]) else "infinite"
    row = f"row {place[0] + 1}" if place else "its only row"
    entry = f", entry {', '.join(str(i + 1) for i in place[1:])}" if place[1:] else ""
    raise ValueError(
        f"a value of column {name!r} is {what} in {row}{entry}, the first of {len(bad)}: leave "
        "such rows out, or fill in a number and pass a mask that the model takes (obs_mask)"
    )


def _is_number(word: Any) -> bool:
    return isinstance(word, int | float | np.number)


def in_types(
    values: Mapping[str, Any], dtype: torch.dtype, *, typed: bool
) -> Iterator[dict[str, Any]]:
    """The values as tensors, in one way after another that whole numbers can be taken.

    Real numbers become `dtype`. Whole numbers of a text file are tried as real ones first, those of
    a file with types as they are; zeros and ones may be truth values. Arrays of one number become
    numbers of Python.
    """
    ways = {name: _ways(value, dtype, typed) for name, value in values.items()}
    order = sorted(
        itertools.islice(itertools.product(*(range(len(way)) for way in ways.values())), 4096),
        key=sum,
    )
    for chosen in order[:_TRIES]:
        yield {n: way[place]() for (n, way), place in zip(ways.items(), chosen, strict=True)}


def _ways(value: Any, dtype: torch.dtype, typed: bool) -> list[Callable[[], Any]]:
    if not isinstance(value, np.ndarray):
        return [lambda: value]
    if value.ndim == 0:
        return [value.item]
    tensor = torch.from_numpy(np.ascontiguousarray(value.astype(_PLAIN[value.dtype.kind])))
    real, own = partial(tensor.to, dtype), partial(tensor.to, tensor.dtype)
    if tensor.is_floating_point():
        return [real]
    is_binary = value.dtype.kind != "b" and bool(((value == 0) | (value == 1)).all())
    return [*((own, real) if typed else (real, own)), *([tensor.bool] if is_binary else [])]


_PLAIN = {"f": np.float64, "i": np.int64, "u": np.int64, "b": np.bool_}


def as_arguments(values: Mapping[str, Any], parameters: Parameters) -> Batch:
    """The data of a program: one tensor for a program that gets one, else arguments by name."""
    first = next(iter(parameters), "")
    if list(values) == [first]:
        value = values[first]
        is_real = isinstance(value, Tensor) and value.is_floating_point()
        return value if is_real else Data((value,))
    return Data(kwargs=dict(values))


def parts_of(x: Batch, split: str) -> tuple[Batch, Batch]:
    """Training and evaluation data: every fifth row is held out; with "all", none is.

    Raises:
        ValueError: there are too few rows to hold any out.
    """
    if split == "all":
        return x, x
    if len(x) < _FOLDS:
        raise ValueError(
            f"{len(x)} data are too few to hold out every fifth (--split {split}): use --split all"
        )
    place = torch.arange(len(x)) % _FOLDS
    test, validation = place == 0, place == 1
    if split == "validation":
        return x[~test & ~validation], x[validation]
    return x[~test], x[test]


def each_tensor(x: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The data with every tensor changed, those without a row per datum too."""
    if isinstance(x, Tensor):
        return change(x)

    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    return Data(tuple(map(changed, x.args)), {n: changed(v) for n, v in x.kwargs.items()})


def digest_of(found: Found) -> str:
    """SHA-256 of names, types and values, as they were read."""
    named = found.arrays.items() if isinstance(found, Columns) else enumerate(found)
    sha256 = hashlib.sha256()
    for name, value in named:
        array = np.asarray(value)
        sha256.update(f"{name} {array.dtype.str}{array.shape}".encode())
        plain = array.dtype.kind in "fiub"
        sha256.update(np.ascontiguousarray(array).tobytes() if plain else repr(value).encode())
    return sha256.hexdigest()
