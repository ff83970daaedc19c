"""Pyro's and torch's own validation, on where it is worth its time, and its errors in one line."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pyro
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Distribution

from evidence.inference.programs.data import Batch

_LARGE = 100.0  # networks are made for inputs near 1

_BAD_ARGUMENT = re.compile(
    r"Expected parameter (?P<name>\w+) .*?of distribution (?P<family>\w+)\(.*"
    r"to satisfy the constraint (?P<wanted>.*?), but found invalid values:(?P<got>.*)",
    re.DOTALL,
)
_BAD_VALUE = re.compile(
    r"Expected value argument .*?to be within the support \((?P<wanted>.*?)\) of the distribution "
    r"(?P<family>\w+)\(.*, but found invalid values:(?P<got>.*)",
    re.DOTALL,
)


class InvalidArgumentError(ValueError):
    """A distribution was given arguments, or a value, that it is not made for."""


class Unvalidated(Messenger):
    """Switches the validation of distributions off that were made before, as those of `PyroSample`.

    Chains may leave the numbers that a computer has; their densities are to be zero, no error.
    """

    def __enter__(self) -> "Unvalidated":
        self._switched: list[Distribution] = []
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for fn in self._switched:
            fn._validate_args = True
        super().__exit__(*error)

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        while isinstance(fn, Distribution):
            if fn._validate_args:
                fn._validate_args = False
                self._switched.append(fn)
            fn = getattr(fn, "base_dist", None)


# Said where data lie outside a support.
MOVING = (
    "where a support moves with the latents, and data end it, no ELBO is finite: "
    "marginal_likelihood (evidence marginal) needs none"
)


@contextmanager
def validated(x: Batch) -> Generator[None]:
    """Run programs on the batch `x` under validation; what it finds is said in one line.

    Raises:
        InvalidArgumentError, ValueError: as `in_one_line`.
    """
    with in_one_line(x), pyro.validation_enabled():
        yield


@contextmanager
def in_one_line(x: Batch) -> Generator[None]:
    """Say in one line what is wrong with programs that run on the batch `x`.

    Raises:
        InvalidArgumentError: a distribution has arguments that it is not made for.
        ValueError: any other that the programs raise, without Pyro's table of shapes.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        if found := _BAD_ARGUMENT.search(message):
            what = f"expected {found['name']} of {found['family']} in {found['wanted']}"
        elif found := _BAD_VALUE.search(message):
            what = f"expected values of {found['family']} in {found['wanted']}"
        elif "\n" in message and type(error) is ValueError:
            raise ValueError(_without_tables(message)) from None
        else:
            raise
        mend = advice_on_scale(x) or "look at what its program makes of the data"
        mend = f"{mend}; {MOVING}" if "expected values" in what else mend
        raise InvalidArgumentError(f"{what}, got {_example(found['got'])}: {mend}") from None
    except RuntimeError as error:
        integers = isinstance(x, Tensor) and not x.is_floating_point()
        if not (integers and "dtype" in str(error)):
            raise
        raise ValueError(f"expected floating-point data, got {x.dtype}: use x.float()") from None


def advice_on_scale(x: Batch) -> str:
    """What to do with data that are too large for networks, or an empty text if they are not."""
    largest = x.abs().max().item()
    if largest <= _LARGE:
        return ""
    return (
        f"the data reach {largest:.3g}: standardize the data, by (x - x.mean(0)) / x.std(0), "
        "to values near 1"
    )


def _example(tensor: str) -> str:
    """What is wrong in the text of a tensor: a NaN, an infinity, or its first number."""
    numbers = re.findall(r"nan|-?inf|-?\d[\d.]*(?:e[+-]?\d+)?", tensor)
    odd = [number for number in numbers if number in ("nan", "inf", "-inf")]
    return f"values such as {next(iter(odd + numbers), '?')}"


def _without_tables(message: str) -> str:
    """The message in one line, without the shapes that Pyro appends."""
    return " ".join(re.split(r"\n\s*Trace Shapes", message, maxsplit=1)[0].split())
