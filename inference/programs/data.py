"""What a program takes: one tensor, several, or several by name, along whose rows data are cut."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evidence.inference.programs.stored import LoadedData, StoredData

Program = Callable[..., Any]  # a Pyro model or guide, called with data


@dataclass(frozen=True)
class Data:
    """The arguments of a program, for one that takes other than a single tensor.

    Tensors whose first dimension is that of the first one hold one datum per row; whatever else
    there is, is passed as it is.

    Args:
        args: positional arguments.
        kwargs: arguments by name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return [value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor)]

    def __len__(self) -> int:
        """N, the number of data; 1 if there are no tensors."""
        values = (*self.args, *self.kwargs.values())
        return next((len(v) for v in values if isinstance(v, Tensor) and v.ndim), 1)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Data":
        """The same arguments, every tensor with one datum per row changed."""
        size = len(self)

        def changed(value: Any) -> Any:
            has_rows = isinstance(value, Tensor) and value.ndim > 0 and len(value) == size
            return change(value) if has_rows else value

        kwargs = {name: changed(value) for name, value in self.kwargs.items()}
        return Data(tuple(changed(value) for value in self.args), kwargs)

    def __getitem__(self, rows: Any) -> "Data":
        return self.map(lambda tensor: tensor[rows])

    def split(self, size: int) -> Iterator["Data"]:
        """So many data at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def detach(self) -> "Data":
        """Without the gradients of whatever made the tensors."""
        return self.map(lambda tensor: tensor.detach())

    def any(self) -> bool:
        """Whether any number is not zero."""
        return any(bool(tensor.any()) for tensor in self.tensors)

    def abs(self) -> Tensor:
        """The absolute values of all floating-point numbers, in a row."""
        floats = [t.abs().flatten() for t in self.tensors if t.is_floating_point() and t.numel()]
        return torch.cat(floats) if floats else torch.zeros(1)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next((tensor.device for tensor in self.tensors), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the first floating-point tensor, or torch's default."""
        floats = (tensor.dtype for tensor in self.tensors if tensor.is_floating_point())
        return next(floats, torch.get_default_dtype())


Batch = Tensor | Data  # what a program takes as its one argument, see `takes`


def as_data(data: Any) -> Batch:
    """The data in a form that can be cut: a tensor, or `Data` for anything else.

    Args:
        data: a tensor or array; a tuple or list of them, `model(*data)`; or a mapping such as a
            dict or a pandas data frame, `model(**data)`; a number, `model(number)`; `()` for a
            program without arguments. Floating-point arrays become tensors of torch's default
            dtype. A dataset or a loader of `torch.utils.data` is read at once, see `as_rows`.

    Raises:
        ValueError: a dataset without a length, or with items that make no batch.
    """
    if isinstance(data, Dataset | DataLoader):
        return as_rows(data)[:]
    if isinstance(data, Data):
        return data
    if isinstance(data, Mapping):
        return Data(kwargs={str(name): _as_tensor(value) for name, value in data.items()})
    if hasattr(data, "columns") and hasattr(data, "to_dict"):  # a pandas data frame
        return Data(kwargs={str(name): _as_tensor(data[name]) for name in data.columns})
    if isinstance(data, Sequence) and not isinstance(data, str):
        return Data(tuple(_as_tensor(value) for value in data))
    value = _as_tensor(data)
    return Data((value,)) if _is_number(value) else value


def _is_number(value: Any) -> bool:
    """Whether it has no rows, and is passed as it is like any other argument."""
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, Number | np.generic)


def as_rows(data: Any) -> "Batch | StoredData":
    """The data as `as_data` has them; those of a dataset or a loader are read when they are used.

    Items of a dataset are tensors, arrays or numbers; tuples of them, `model(*batch)`; or
    mappings, `model(**batch)`. One alone in a tuple is taken for itself. What `DataLoader` makes
    of items is taken likewise; in estimates its rows are in the order of its dataset.

    Raises:
        ValueError: a dataset without a length, or a loader without a batch size.
    """
    if isinstance(data, DataLoader):
        return LoadedData(data, _batch_of)
    if isinstance(data, Dataset):
        return StoredData(data, _stacked)
    return as_data(data)


def in_memory(data: "Batch | StoredData") -> Batch:
    """All rows at once."""
    return data[:] if isinstance(data, StoredData) else data


def _stacked(items: Sequence[Any]) -> Batch:
    """One batch of the items of a dataset."""
    first = items[0]
    if isinstance(first, Mapping):
        _expect_alike([set(item) for item in items], "names")
        return Data(kwargs={str(n): _stack([item[n] for item in items]) for n in first})
    if isinstance(first, tuple | list):
        _expect_alike([len(item) for item in items], "length")
        return _batch_of([_stack(entries) for entries in zip(*items, strict=True)])
    return _stack(items)


def _stack(entries: Sequence[Any]) -> Tensor:
    tensors = [_as_tensor(e if isinstance(e, Tensor) else np.asarray(e)) for e in entries]
    for entry, tensor in zip(entries, tensors, strict=True):
        if not isinstance(tensor, Tensor):
            raise ValueError(
                f"expected items of a dataset that are tensors, or tuples or mappings of them, got "
                f"{type(entry).__name__}: leave it out, or pass a DataLoader with a collate_fn"
            )
    _expect_alike([tuple(tensor.shape) for tensor in tensors], "shape")
    return torch.stack(tensors)


def _expect_alike(found: Sequence[Any], what: str) -> None:
    for other in found:
        if other != found[0]:
            raise ValueError(
                f"expected items of a dataset of the same {what}, got {found[0]} and {other}: mend "
                "them, or pass a DataLoader with a collate_fn"
            )


def _batch_of(batch: Any) -> Batch:
    """What a loader yields."""
    data = as_data(batch)
    if isinstance(data, Data) and not data.kwargs and len(data.args) == 1:
        data = data.args[0]
    if not (data.tensors if isinstance(data, Data) else isinstance(data, Tensor)):
        raise ValueError(
            f"expected a DataLoader that yields tensors, tuples or mappings of them, got "
            f"{type(batch).__name__}: see its collate_fn"
        )
    return data


def _as_tensor(value: Any) -> Any:
    """A tensor of an array or a series; all else as it is."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray) or hasattr(value, "to_numpy"):
        array = np.asarray(value)
        if array.dtype.kind == "f":
            return torch.as_tensor(array, dtype=torch.get_default_dtype())
        return torch.as_tensor(array) if array.dtype.kind in "iub" else value
    return value


def tensors_in(data: Batch) -> list[Tensor]:
    """All tensors that a program is called with."""
    return data.tensors if isinstance(data, Data) else [data]


def with_replaced(data: Batch, replacements: Mapping[int, Tensor]) -> Batch:
    """The same arguments, some of them replaced: by their `id`."""
    if not isinstance(data, Data):
        return replacements.get(id(data), data)
    kwargs = {name: replacements.get(id(value), value) for name, value in data.kwargs.items()}
    return Data(tuple(replacements.get(id(value), value) for value in data.args), kwargs)


def takes(program: Program, data: "Batch | StoredData") -> Program:
    """The program as one that takes these data as a single argument, if it is not one already."""
    data = data.first if isinstance(data, StoredData) else data
    is_one = not isinstance(data, Data) or unwrapped(program) is not program
    return program if is_one else partial(_call, program)


def unwrapped(program: Program) -> Program:
    """The program that `takes` made into one of a single argument."""
    is_ours = isinstance(program, partial) and program.func is _call
    return program.args[0] if is_ours else program


def _call(program: Program, data: Data) -> Any:
    return program(*data.args, **data.kwargs)
