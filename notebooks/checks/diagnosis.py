"""What can be wrong with an answer to any exercise: order, sign, factor, constant, dimension."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from evidence.notebooks.checks.comparison import distance, parts_of, shape_of, size_of

# Of the largest entry: what is left of an answer that was computed in float32 on the way.
FLOAT32_DIGITS = 6e-6

_FACTORS = {
    1 / math.log(2): "a logarithm is to base 2: expected the natural one",
    1 / math.log(10): "a logarithm is to base 10: expected the natural one",
}
_CONSTANTS = {
    math.log(2 * math.pi): "log 2π",
    math.log(2 * math.pi) / 2: "½ log 2π",
    math.log(2): "log 2",
}
# Of entries: the right answer, passed through a function that does not belong there.
_WRAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "the sign is flipped": lambda right: -right,
    "this is the absolute value: the sign is lost": lambda right: right.abs(),
    "this is exp() of the right answer: leave it out": lambda right: right.exp(),
    "this is the log of the right answer: leave it out": lambda right: right.log(),
    "this is the square of the right answer": lambda right: right.square(),
    "this is the square root of the right answer": lambda right: right.sqrt(),
    "this is one over the right answer": lambda right: 1 / right,
    "this is rounded to whole numbers": lambda right: right.round(),
}
# Of whole tensors: what makes another shape.
_RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {
    "a dimension of size 1 is left over at the end: leave out keepdim=True or [..., None]": (
        lambda right: right.unsqueeze(-1)
    ),
    "a dimension of size 1 is left over in front: leave out keepdim=True or [None]": (
        lambda right: right.unsqueeze(0)
    ),
    "rows and columns are swapped: transpose it": lambda right: right.transpose(-1, -2),
    "this is the sum of all values: expected each of them": lambda right: right.sum(),
    "this is the mean of all values: expected each of them": lambda right: right.mean(),
    "these are the first values alone: expected all of them": lambda right: right[0],
}


def close(out: Any, right: Any, digits: float = FLOAT32_DIGITS) -> bool:
    """Whether two outputs agree to so many digits of the largest entry."""
    return distance(out, right) <= digits * (1 + size_of(right))


def general_mistake(
    outs: Sequence[Any], cases: Sequence[dict[str, Any]], right: Callable[..., Any]
) -> str | None:
    """What is wrong with an answer's outputs in some cases, if it is nothing of this exercise.

    Args:
        outs: what an answer returns, by case.
        cases: their arguments by name.
        right: the right answer.
    """
    rights = [right(*case.values()) for case in cases]
    if not all(isinstance(part, Tensor) for out in outs for part in parts_of(out)):
        return None
    if names := _swapped(outs, cases, right):
        return f"the arguments {names[0]} and {names[1]} are swapped"
    numbers = {(len(parts_of(o)), len(parts_of(r))) for o, r in zip(outs, rights, strict=True)}
    if len(numbers) > 1 or len(set(*numbers)) > 1:
        return None
    pairs = [
        list(zip(parts_of(out), parts_of(good), strict=True))
        for out, good in zip(outs, rights, strict=True)
    ]
    if len(pairs[0]) > 1 and all(
        close(parts_of(out)[::-1], parts_of(good)) for out, good in zip(outs, rights, strict=True)
    ):
        return "the results are right, their order is not"
    sizes = [_length(case) for case in cases]
    for number, column in enumerate(zip(*pairs, strict=True), start=1):
        if all(close(*pair) for pair in column):
            continue
        found = next(_tensor_mistakes(column, sizes), None)
        return f"output {number}: {found}" if found and len(pairs[0]) > 1 else found
    return None


def _swapped(
    outs: Sequence[Any], cases: Sequence[dict[str, Any]], right: Callable[..., Any]
) -> tuple[str, str] | None:
    """Two arguments of one shape that an answer takes for each other."""
    for one, other in combinations(cases[0], 2):
        if any(shape_of(case[one]) != shape_of(case[other]) for case in cases):
            continue
        exchanged = [case | {one: case[other], other: case[one]} for case in cases]
        if all(
            close(out, right(*case.values())) for out, case in zip(outs, exchanged, strict=True)
        ):
            return one, other
    return None


def _tensor_mistakes(pairs: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int]) -> Iterator[str]:
    """Of tensors and right tensors, and how long the first argument is, by case."""
    for message, function in (_WRAPPED | _RESHAPED).items():
        if _all_close(pairs, function):
            yield message
    if any(got.shape != right.shape for got, right in pairs):
        return
    got, right = (
        torch.cat([t.double().flatten() for t in side]) for side in zip(*pairs, strict=True)
    )
    if not right.isfinite().all():
        return
    if got.isnan().any():
        yield (
            f"{int(got.isnan().sum())} of {len(got)} values are nan: the log or root of a negative "
            "number, or 0/0"
        )
    elif got.isinf().any():
        yield "values are infinite: an exp() is out of range, or this is log 0"
    elif len(got) > 1 and close(got, got[:1].expand_as(got)):
        yield f"this is {got[0]:.4g} whatever the arguments are"
    else:
        yield from _affine(got, right)
        yield from _by_case([(g.double(), r.double()) for g, r in pairs], sizes)


def _affine(got: Tensor, right: Tensor) -> Iterator[str]:
    """A factor or a constant that is the same in all entries; more than a few are needed."""
    if len(got) < 3 or close(right, right[:1].expand_as(right)):
        return
    factor = ((got * right).sum() / right.square().sum()).item()
    if close(got, factor * right):
        named = [name for value, name in _FACTORS.items() if math.isclose(factor, value)]
        said = f": {named[0]}" if named else ""
        yield f"every value is {factor:.4g} times the right one{said}"
    constant = (got - right).mean().item()
    if close(got - right, torch.full_like(got, constant)):
        named = [n for value, n in _CONSTANTS.items() if math.isclose(abs(constant), value)]
        said = f", {named[0]}" if named else ""
        above = "too large" if constant > 0 else "too small"
        yield f"every value is {above} by {abs(constant):.4g}{said}: right up to a constant"


def _by_case(pairs: Sequence[tuple[Tensor, Tensor]], sizes: Sequence[int]) -> Iterator[str]:
    """A factor or a constant that is another in each case, as a size is."""
    advice = "is a size written as a number, or another one counted?"
    if all(got.numel() > 2 for got, _ in pairs):
        if all(close(g - r, (g - r).mean().expand_as(r)) for g, r in pairs):
            yield f"every value is off by a constant, another one in each case: {advice}"
        factors = [(g * r).sum() / r.square().sum() for g, r in pairs]
        if all(close(g, c * r) for (g, r), c in zip(pairs, factors, strict=True)):
            yield f"every value is off by a factor, another one in each case: {advice}"
    for power, name in {1.0: "N", 0.5: "√N", -1.0: "1/N", -0.5: "1/√N"}.items():
        scaled = [(got, right * n**power) for (got, right), n in zip(pairs, sizes, strict=True)]
        got, right = (torch.cat([t.flatten() for t in side]) for side in zip(*scaled, strict=True))
        if len(got) > 2 and close(got, (got * right).sum() / right.square().sum() * right):
            yield f"every value is off by a factor that goes like {name}: {advice}"


def _length(case: dict[str, Any]) -> int:
    """Of the first argument."""
    first = next(iter(case.values()))
    return len(first) if isinstance(first, Tensor) and first.dim() else 1


def _all_close(
    pairs: Sequence[tuple[Tensor, Tensor]], function: Callable[[Tensor], Tensor]
) -> bool:
    """Whether tensors are a function of the right ones, in all cases, and not these themselves."""
    if all(close(*pair) for pair in pairs):
        return False
    try:
        return all(close(got, function(right.double())) for got, right in pairs)
    except (RuntimeError, IndexError):  # of a shape that the function does not take
        return False
