"""Sizes of random cases: no two are alike, so that no answer passes that knows one by heart."""

from collections.abc import Callable

import torch

from evidence.notebooks.checks.exercise import Case, MakeCase


def size(generator: torch.Generator, low: int, high: int) -> int:
    """A random size, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=generator))


def batches(
    make: Callable[[torch.Generator, torch.dtype, tuple[int, ...]], Case],
) -> tuple[MakeCase, ...]:
    """Cases of functions of `[..., D]`: with one, two and no dimensions in front.

    Args:
        make: makes the arguments of one case, given the dimensions in front: more than 20 each,
            so that they are not taken for those behind.
    """

    def maker(num_dims: int) -> MakeCase:
        def cases(generator: torch.Generator, dtype: torch.dtype) -> Case:
            return make(generator, dtype, tuple(size(generator, 21, 25) for _ in range(num_dims)))

        return cases

    return tuple(maker(num_dims) for num_dims in (1, 2, 0))
