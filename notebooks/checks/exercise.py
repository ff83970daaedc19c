"""One exercise: the right answer, the cases it is tried on, and the mistakes that have a name."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evidence.notebooks.checks.comparison import (
    distance,
    is_float,
    is_number,
    largest_error,
    parts_of,
    shape_of,
    shapes_of,
    size_of,
    with_numbers_as_tensors,
)
from evidence.notebooks.checks.diagnosis import FLOAT32_DIGITS, close, general_mistake

Function = Callable[..., Any]
Case = dict[str, Any]
# Makes the arguments of a case, by name, from a generator and a dtype.
MakeCase = Callable[[torch.Generator, torch.dtype], Case]

# Rounding may cost so much of the largest entry, however an answer is written.
_FLOAT32_TOLERANCE = 2e-4
_NUM_CASES = 4


class WrongAnswerError(AssertionError):
    """An answer that is not right; the message is one line that says what is wrong with it."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: where a check found it helps nobody."""
        return [f"✗ {self}"]


@dataclass(frozen=True)
class Exercise:
    """A function that is to be written, and what is known about its wrong versions.

    Called with an answer, it compares values, shapes and gradients with those of the right one, in
    float64 and float32, and prints one line if they agree. Where the right answer is a number, a
    tensor without dimensions, one of Python or NumPy will do, unless it needs a gradient.

    Args:
        name: of the function in the notebook.
        right: the right answer, of a tensor or a tuple of tensors.
        cases: makes the arguments of one case; or several of these, which take turns.
        mistakes: what to say of an answer that agrees with a wrong function, by that function.
        has_gradients: whether gradients with respect to the arguments are compared.
        read: makes the tensors to compare from what an answer returns, if these are none, and the
            case; it may raise a `WrongAnswerError`.
        tolerance: what rounding may cost in float64, as a share of the largest entry.
    """

    name: str
    right: Function
    cases: MakeCase | Sequence[MakeCase]
    mistakes: Mapping[str, Function] = field(default_factory=dict)
    has_gradients: bool = True
    read: Callable[[Any, Case], Any] | None = None
    tolerance: float = 1e-9

    def __call__(self, answer: Function, *, seed: int = 0) -> None:
        """Check an answer.

        Args:
            answer: the student's function.
            seed: decides the cases.

        Raises:
            WrongAnswerError: it is not right.
        """
        expect_function(self.name, answer)
        for dtype in (torch.float64, torch.float32):
            cases = self._cases(seed, dtype)
            theirs = self._results(answer, cases)
            if not all(map(self._is_right, theirs, cases)):
                self._expect_no_draws(answer, cases[0], theirs[0])
                doubled = [_doubled(case) for case in cases]
                in_float64 = self._results(answer, doubled)
                if all(map(self._is_right, in_float64, doubled)):
                    off = next(filter(None, map(self._off, theirs, cases)))
                    said = f"right in float64, but in float32 an exp() or a cancellation: {off}"
                else:
                    said = self._diagnosis(in_float64, doubled[: len(in_float64)])
                raise WrongAnswerError(f"{self.name}: {said}")
            if self.has_gradients:
                self._compare_gradients(answer, cases[0])
        print(f"✓ {self.name}: right in {2 * _NUM_CASES} random cases, in float32 and float64")

    def _results(self, answer: Function, cases: Sequence[Case]) -> list[Any]:
        """What an answer returns, by case, up to one where it fails after it has been wrong."""
        theirs: list[Any] = []
        for case in cases:
            try:
                theirs.append(self._read(called(self.name, answer, case), case))
            except WrongAnswerError:
                if all(map(self._is_right, theirs, cases)):
                    raise
                break
        return theirs

    def _expect_no_draws(self, answer: Function, case: Case, out: Any) -> None:
        again = self._read(called(self.name, answer, case), case)
        if 0 < distance(out, again) < math.inf:
            raise WrongAnswerError(
                f"{self.name}: every call returns something else: nothing is to be drawn here, and "
                "nothing to be kept from call to call"
            )

    def _read(self, out: Any, case: Case) -> Any:
        """The tensors of what an answer returns."""
        if self.read is not None:
            return self.read(out, case)
        if self.has_gradients:
            return out
        return with_numbers_as_tensors(out, self.right(*case.values()))

    def _cases(self, seed: int, dtype: torch.dtype) -> list[Case]:
        generator = torch.Generator().manual_seed(seed)
        makers = self.cases if isinstance(self.cases, Sequence) else (self.cases,)
        return [makers[i % len(makers)](generator, dtype) for i in range(_NUM_CASES)]

    def _is_right(self, out: Any, case: Case) -> bool:
        """Whether an output is the right one, in shape and but for rounding."""
        right = self.right(*_doubled(case).values())
        in_float32 = any(is_float(v) and v.dtype == torch.float32 for v in case.values())
        tolerance = _FLOAT32_TOLERANCE if in_float32 else self.tolerance
        return distance(out, right) <= tolerance * (1 + size_of(right))

    def _diagnosis(self, theirs: Sequence[Any], cases: Sequence[Case]) -> str:
        """What is wrong in float64: a mistake by name, or else where the answer is off."""
        if _agrees(theirs, cases, self.right, FLOAT32_DIGITS):
            return (
                "right in float32, but in float64 only to as many digits: give tensors that you "
                "make the dtype of the arguments, such as torch.linspace(0, 1, 9, dtype=x.dtype), "
                "and add no small constants"
            )
        for digits in (self.tolerance, FLOAT32_DIGITS):
            for message, wrong in self.mistakes.items():
                if _agrees(theirs, cases, wrong, digits):
                    return message
        found = general_mistake(theirs, cases, self.right)
        offs = list(filter(None, map(self._off, theirs, cases)))
        if found is None and len(offs) < len(cases):
            advice = "is a number written where an argument or a size belongs?"
            if " for " in offs[0]:  # another shape
                advice = "count dimensions from the end, -1 is the last, whatever stands before it"
            return (
                f"right in {len(cases) - len(offs)} of {len(cases)} cases, else {offs[0]}: {advice}"
            )
        return found or offs[0]

    def _off(self, out: Any, case: Case) -> str | None:
        """Where an answer without a known mistake is off; None if it is right."""
        if self._is_right(out, case):
            return None
        right = self.right(*_doubled(case).values())
        expected, got = shape_of(right), shape_of(out)
        if expected != got:
            remedy = self._remedy(out, right)
            return f"expected {expected} for {shapes_of(case)}, got {got}{remedy}"
        return largest_error(out, right)

    def _remedy(self, out: Any, right: Any) -> str:
        """What makes tensors of the type that an answer returns; nothing if these are tensors."""
        if isinstance(right, Tensor) and isinstance(out, list | tuple):
            return (
                ": one tensor is expected; torch.stack makes it of tensors, torch.tensor of numbers"
            )
        if isinstance(right, tuple) and not isinstance(out, list | tuple):
            return f": {len(right)} results are expected, return a, b"
        others = [part for part in parts_of(out) if not isinstance(part, Tensor)]
        if any(is_number(part) or hasattr(part, "__array_interface__") for part in others):
            if self.has_gradients:
                return (
                    ": this is differentiated, and only tensors have gradients; leave out item(), "
                    "float(), len() and NumPy"
                )
            return ": tensors are expected; leave out item(), float(), len() and NumPy"
        return ""

    def _compare_gradients(self, answer: Function, case: Case) -> None:
        ours = _gradients(self.right, case)
        try:
            theirs = _gradients(answer, case, lambda out: self._read(out, case))
        except Exception as error:  # whatever it is, it is the student's
            raise WrongAnswerError(
                f"{self.name}: the values are right, but gradients fail, by a way through NumPy or "
                f"a change in place: {first_line(error)}"
            ) from None
        for name, right in ours.items():
            got = theirs.get(name)
            if got is None and right.any():
                raise WrongAnswerError(
                    f"{self.name}: the values are right, but no gradient with respect to {name}: "
                    "it is lost by detach(), item(), no_grad() or a way through NumPy"
                )
            digits = _FLOAT32_TOLERANCE if right.dtype == torch.float32 else self.tolerance
            tolerance = 10 * digits * (1 + right.abs().max().item())
            if got is not None and not (got - right).abs().max() <= tolerance:
                raise WrongAnswerError(
                    f"{self.name}: the values are right, but not the gradient with respect to "
                    f"{name}: some of it is lost, by detach() or no_grad()"
                )


def called(name: str, answer: Function, case: Case) -> Any:
    """What an answer returns for a case.

    Raises:
        WrongAnswerError: it is blank, takes other arguments, fails, changes one in place, or
            returns nothing.
    """
    expect_signature(name, answer, list(case))
    arguments = {key: _copy(value) for key, value in case.items()}
    try:
        out = answer(*arguments.values())
    except NotImplementedError as error:
        hint = f"Hint: {error}" if str(error) else "The hint is above it"  # as nbgrader writes
        raise WrongAnswerError(f"{name} is still blank. {hint}") from None
    except WrongAnswerError:
        raise
    except Exception as error:  # whatever it is, it is the student's
        what = first_line(error)
        if "Dimension out of range" in what:
            what += ": count dimensions from the end, -1 is the last, whatever stands before it"
        if "must match the size" in what:
            what += ": is another dimension reduced, or keepdim=True needed?"
        raise WrongAnswerError(f"{name} fails for {shapes_of(case)}: {what}") from None
    for key, value in case.items():
        if not _same(value, arguments[key]):
            raise WrongAnswerError(
                f"{name} changes its argument {key} in place: operators such as +=, methods that "
                "end in _, and pop() or reverse() of a list do that; write the result to a new name"
            )
    if out is None:
        raise WrongAnswerError(f"{name} returns nothing: is a return missing?")
    return out


def expect_function(name: str, answer: Any) -> None:
    """Check that an answer is a function.

    Raises:
        WrongAnswerError: it is something else.
    """
    if not callable(answer):
        raise WrongAnswerError(f"expected the function {name}, got {type(answer).__name__}")


def expect_signature(name: str, answer: Function, arguments: Sequence[str]) -> None:
    """Check that a function takes its arguments by position.

    Raises:
        WrongAnswerError: it takes others.
    """
    try:
        inspect.signature(answer).bind(*arguments)
    except TypeError:
        raise WrongAnswerError(
            f"expected {name}({', '.join(arguments)}): other arguments are taken"
        ) from None
    except ValueError:  # of a built-in nothing is known
        return


def first_line(error: Exception) -> str:
    """The type of an error, and what it says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}".removesuffix(": ")


def _agrees(outs: Sequence[Any], cases: Sequence[Case], function: Function, digits: float) -> bool:
    """Whether outputs are those of a function in all cases."""
    try:
        return all(
            close(out, function(*case.values()), digits)
            for out, case in zip(outs, cases, strict=True)
        )
    except (RuntimeError, IndexError):  # a mistake that is none for some shape
        return False


def _copy(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_copy(part) for part in value)
    return value.clone() if isinstance(value, Tensor) else value


def _same(one: Any, other: Any) -> bool:
    """Whether a copy is as it was."""
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else one is other


def _doubled(case: Case) -> Case:
    """The same case in double precision."""

    def doubled(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(map(doubled, value))
        return value.double() if is_float(value) else value

    return {name: doubled(value) for name, value in case.items()}


def _gradients(
    function: Function, case: Case, read: Function = lambda out: out
) -> dict[str, Tensor]:
    """Of the weighted sum of all outputs, with respect to each float argument that has one."""
    inputs = {n: v.clone().requires_grad_() if is_float(v) else _copy(v) for n, v in case.items()}
    wanted = {n: v for n, v in inputs.items() if is_float(v)}
    total = torch.zeros((), dtype=next(iter(wanted.values())).dtype)
    for part in parts_of(read(function(*inputs.values()))):
        if is_float(part):
            weights = torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).reshape(part.shape)
            total = total + (part * weights).sum()
    if not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {n: g for n, g in zip(wanted, found, strict=True) if g is not None}
