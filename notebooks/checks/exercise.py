"""One exercise: the right answer, the cases it is tried on, and the mistakes that have a name."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Function = Callable[..., Any]
Case = dict[str, Any]
# Makes the arguments of a case, by name, from a generator and a dtype.
MakeCase = Callable[[torch.Generator, torch.dtype], Case]

# Rounding may cost so much of the largest entry, however an answer is written.
_TOLERANCES = {torch.float32: 2e-4, torch.float64: 1e-9}
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
    float32 and float64, and prints one line if they agree.

    Args:
        name: of the function in the notebook.
        right: the right answer, of a tensor or a tuple of tensors.
        cases: makes the arguments of one case.
        mistakes: what to say of an answer that agrees with a wrong function, by that function.
        has_gradients: whether gradients with respect to the arguments are compared.
        read: makes the tensors to compare from what an answer returns, if these are none, and the
            case; it may raise a `WrongAnswerError`.
    """

    name: str
    right: Function
    cases: MakeCase
    mistakes: Mapping[str, Function] = field(default_factory=dict)
    has_gradients: bool = True
    read: Callable[[Any, Case], Any] | None = None

    def __call__(self, answer: Function, *, seed: int = 0) -> None:
        """Check an answer.

        Args:
            answer: the student's function.
            seed: decides the cases.

        Raises:
            WrongAnswerError: it is not right.
        """
        if not callable(answer):
            raise WrongAnswerError(
                f"expected the function {self.name}, got {type(answer).__name__}"
            )
        for dtype in _TOLERANCES:
            cases = self._cases(seed, dtype)
            theirs = [self._read(called(self.name, answer, case), case) for case in cases]
            if any(self._differs(out, self.right, c) for out, c in zip(theirs, cases, strict=True)):
                raise WrongAnswerError(self._diagnosis(theirs, cases))
            if self.has_gradients:
                self._compare_gradients(answer, cases[0])
        print(f"✓ {self.name}: right in {2 * _NUM_CASES} random cases, in float32 and float64")

    def _read(self, out: Any, case: Case) -> Any:
        """The tensors of what an answer returns."""
        if out is None:
            raise WrongAnswerError(f"{self.name} returns nothing: is a return missing?")
        return out if self.read is None else self.read(out, case)

    def _cases(self, seed: int, dtype: torch.dtype) -> list[Case]:
        generator = torch.Generator().manual_seed(seed)
        return [self.cases(generator, dtype) for _ in range(_NUM_CASES)]

    def _differs(self, out: Any, function: Function, case: Case, *, float32: bool = False) -> bool:
        """Whether an output is another than a function's, in shape or by more than rounding."""
        right = function(*_doubled(case).values())
        dtypes = [value.dtype for value in case.values() if _is_float(value)]
        tolerance = _TOLERANCES[torch.float32] if float32 else max(_TOLERANCES[d] for d in dtypes)
        return _distance(out, right) > tolerance * (1 + _size(right))

    def _diagnosis(self, theirs: Sequence[Any], cases: Sequence[Case]) -> str:
        """What is wrong: a mistake by name, or else where the answer is off."""
        pairs = list(zip(theirs, cases, strict=True))
        for message, wrong in self.mistakes.items():
            if not any(self._differs(out, wrong, case) for out, case in pairs):
                return f"{self.name}: {message}"
        if not any(self._differs(out, self.right, case, float32=True) for out, case in pairs):
            return (
                f"{self.name}: right in float32, but in float64 only to as many digits: give "
                "tensors that you make the dtype of the arguments, such as "
                "torch.linspace(0, 1, 9, dtype=x.dtype), and add no small constants"
            )
        return next(
            self._off(*pair) for pair in pairs if self._differs(pair[0], self.right, pair[1])
        )

    def _off(self, out: Any, case: Case) -> str:
        """Where an answer without a known mistake is off."""
        right = self.right(*_doubled(case).values())
        expected, got = shape_of(right), shape_of(out)
        if expected != got:
            shapes = ", ".join(f"{name} {shape_of(value)}" for name, value in case.items())
            return f"{self.name}: expected {expected} for {shapes}, got {got}{_remedy(out, right)}"
        return f"{self.name}: {_largest_error(out, right)}"

    def _compare_gradients(self, answer: Function, case: Case) -> None:
        ours, theirs = (_gradients(f, case) for f in (self.right, answer))
        for name, right in ours.items():
            got = theirs.get(name)
            if got is None and right.any():
                raise WrongAnswerError(
                    f"{self.name}: the values are right, but no gradient with respect to {name}: "
                    "it is lost by detach(), item(), no_grad() or a way through NumPy"
                )
            tolerance = 10 * _TOLERANCES[right.dtype] * (1 + right.abs().max().item())
            if got is not None and (got - right).abs().max() > tolerance:
                raise WrongAnswerError(
                    f"{self.name}: the values are right, but not the gradient with respect to "
                    f"{name}: some of it is lost, by detach() or no_grad()"
                )


def called(name: str, answer: Function, case: Case) -> Any:
    """What an answer returns for a case.

    Raises:
        WrongAnswerError: it is blank, takes other arguments, fails, or changes one in place.
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
        where = ", ".join(f"{key} {shape_of(value)}" for key, value in case.items())
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise WrongAnswerError(f"{name} fails for {where}: {what}") from None
    for key, value in case.items():
        if isinstance(value, Tensor) and not torch.equal(value, arguments[key]):
            raise WrongAnswerError(
                f"{name} changes its argument {key} in place: operators such as += and methods "
                "that end in _ do that; write the result to a new name"
            )
    return out


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


def _parts(out: Any) -> tuple[Any, ...]:
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _doubled(case: Case) -> Case:
    """The same case in double precision."""
    return {n: v.double() if _is_float(v) else v for n, v in case.items()}


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def shape_of(value: Any) -> str:
    """Shapes of tensors, and the types of others, as an error says them."""
    if isinstance(value, tuple | list):
        return "(" + ", ".join(shape_of(part) for part in value) + ")"
    return str(list(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _remedy(out: Any, right: Any) -> str:
    """What makes tensors of the type that an answer returns; nothing if these are tensors."""
    if isinstance(right, Tensor) and isinstance(out, list | tuple):
        return ": one tensor is expected; torch.stack makes it of tensors, torch.tensor of numbers"
    if any(isinstance(part, int | float) or hasattr(part, "__array_interface__")
           for part in _parts(out)):  # fmt: skip
        return ": tensors are expected; leave out item(), float(), len() and NumPy"
    return ""


def _distance(out: Any, right: Any) -> float:
    """The largest difference of two outputs; infinite if their shapes differ."""
    if shape_of(_parts(out)) != shape_of(_parts(right)):
        return math.inf
    return max(_difference(*pair) for pair in zip(_parts(out), _parts(right), strict=True))


def _difference(got: Any, right: Any) -> float:
    if not isinstance(right, Tensor):
        return 0.0 if right == got else math.inf
    return _errors(got, right).max().item() if right.numel() else 0.0


def _errors(got: Tensor, right: Tensor) -> Tensor:
    """Of each entry, in one row; infinities and NaN agree with themselves alone."""
    got, right = got.double().flatten(), right.double().flatten()
    same = (got == right) | (got.isnan() & right.isnan())
    return (got - right).abs().nan_to_num(nan=math.inf).masked_fill(same, 0.0)


def _size(out: Any) -> float:
    """The largest finite entry."""
    parts = [part[part.isfinite()].abs() for part in _parts(out) if _is_float(part)]
    return max((part.max().item() for part in parts if part.numel()), default=0.0)


def _largest_error(out: Any, right: Any) -> str:
    """The entry that is off the most."""
    pairs = list(zip(_parts(out), _parts(right), strict=True))
    number = max(range(len(pairs)), key=lambda i: _difference(*pairs[i]))
    got, expected = pairs[number]
    which = f"output {number + 1}, " if len(pairs) > 1 else ""
    if not isinstance(expected, Tensor):
        return f"{which}expected {expected}, got {got}"
    at = int(_errors(got, expected).argmax())
    return f"{which}expected {expected.flatten()[at]:.6g}, got {got.flatten()[at]:.6g}"


def _gradients(function: Function, case: Case) -> dict[str, Tensor]:
    """Of the weighted sum of all outputs, with respect to each float argument that has one."""
    inputs = {n: v.clone().requires_grad_() if _is_float(v) else v for n, v in case.items()}
    wanted = {n: v for n, v in inputs.items() if _is_float(v)}
    total = torch.zeros((), dtype=next(iter(wanted.values())).dtype)
    for part in _parts(function(*inputs.values())):
        if _is_float(part):
            weights = torch.linspace(0.5, 1.5, part.numel(), dtype=part.dtype).reshape(part.shape)
            total = total + (part * weights).sum()
    if not total.requires_grad:
        return {}
    found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    return {n: g for n, g in zip(wanted, found, strict=True) if g is not None}
