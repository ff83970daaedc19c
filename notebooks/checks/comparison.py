"""Outputs side by side: their shapes, how far they are apart, and numbers for tensors."""

import math
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor


def parts_of(out: Any) -> tuple[Any, ...]:
    """The results of a function that returns one or several."""
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def is_float(value: Any) -> bool:
    """Whether a value is a tensor of floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def shape_of(value: Any) -> str:
    """Shapes of tensors, and the types of others, as an error says them."""
    if isinstance(value, tuple | list):
        return "(" + ", ".join(shape_of(part) for part in value) + ")"
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def shapes_of(case: dict[str, Any]) -> str:
    """The arguments of a case, by name."""
    return ", ".join(f"{name} {shape_of(value)}" for name, value in case.items())


def is_number(value: Any) -> bool:
    """Whether a value is a number of Python or NumPy, which a tensor without dimensions holds."""
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, Real) or (isinstance(value, np.ndarray) and value.shape == ())


def with_numbers_as_tensors(out: Any, right: Any) -> Any:
    """An output whose numbers are tensors, wherever the right one has a number.

    Several numbers may also come as the rows of one tensor or array.
    """
    rights = parts_of(right)
    if not all(isinstance(part, Tensor) and part.shape == () for part in rights):
        return out
    if len(rights) > 1 and isinstance(out, Tensor | np.ndarray) and out.shape == (len(rights),):
        out = tuple(out)
    parts = tuple(
        torch.tensor(float(part), dtype=torch.float64) if is_number(part) else part
        for part in parts_of(out)
    )
    return parts if isinstance(out, tuple | list) else parts[0]


def distance(out: Any, right: Any) -> float:
    """The largest difference of tensors; infinite if shapes differ, or if these are none."""
    tensors = all(isinstance(part, Tensor) for part in parts_of(out))
    if not tensors or shape_of(parts_of(out)) != shape_of(parts_of(right)):
        return math.inf
    return max(_difference(*pair) for pair in zip(parts_of(out), parts_of(right), strict=True))


def size_of(out: Any) -> float:
    """The largest finite entry."""
    parts = [part[part.isfinite()].abs() for part in parts_of(out) if is_float(part)]
    return max((part.max().item() for part in parts if part.numel()), default=0.0)


def largest_error(out: Any, right: Any) -> str:
    """The entry that is off the most."""
    pairs = list(zip(parts_of(out), parts_of(right), strict=True))
    number = max(range(len(pairs)), key=lambda i: _difference(*pairs[i]))
    got, expected = pairs[number]
    which = f"output {number + 1}, " if len(pairs) > 1 else ""
    at = int(_errors(got, expected).argmax())
    return f"{which}expected {expected.flatten()[at]:.6g}, got {got.flatten()[at]:.6g}"


def _difference(got: Tensor, right: Tensor) -> float:
    return _errors(got, right).max().item() if right.numel() else 0.0


def _errors(got: Tensor, right: Tensor) -> Tensor:
    """Of each entry, in one row; infinities and NaN agree with themselves alone."""
    got, right = got.double().flatten(), right.double().flatten()
    same = (got == right) | (got.isnan() & right.isnan())
    return (got - right).abs().nan_to_num(nan=math.inf).masked_fill(same, 0.0)
