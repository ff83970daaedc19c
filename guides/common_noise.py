"""Random numbers that know nothing of the batch: the same ones for each of its rows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evidence.inference.programs.random_state import seed_torch

_ROWS = 1  # the dimension of the rows, after that of the particles


class CommonNoise(TorchDispatchMode):
    """Inside, random numbers `[S, B, ...]` are drawn for one of B rows and given to all.

    What is made of them is then a function of its own row, whichever row that is and however many
    there are beside it. Where a row's parameters enter the draw, as in a Gamma, every row draws
    from the same seed.

    Args:
        num_particles: S.
        num_rows: B.
    """

    def __init__(self, num_particles: int, num_rows: int) -> None:
        super().__init__()
        self.shape = (num_particles, num_rows)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What `func` gives, with the same noise in all rows."""
        options: dict[str, Any] = kwargs or {}
        first: Any = args[0] if args else None
        if torch.Tag.nondeterministic_seeded not in func.tags or not self._has_rows(first):
            return func(*args, **options)
        if not isinstance(first, Tensor):  # torch.randn and the like, by their size
            size = [*first[:_ROWS], 1, *first[_ROWS + 1 :]]
            return func(size, *args[1:], **options).expand(*first).clone()
        is_in_place = func._schema.is_mutable
        is_noise = is_in_place or "_like" in func.__name__  # of `first` only the shape counts
        if is_noise and not any(isinstance(arg, Tensor) for arg in (*args[1:], *options.values())):
            row = first.narrow(_ROWS, 0, 1).clone(memory_format=torch.contiguous_format)
            result = func(row, *args[1:], **options).expand_as(first)
        else:
            result = self._row_by_row(func, args, options)
        return first.copy_(result) if is_in_place else result.clone()

    def _has_rows(self, value: Any) -> bool:
        """Whether a tensor, or the size of one, begins with S and B."""
        size = value.shape if isinstance(value, Tensor) else value
        return isinstance(size, Sequence) and tuple(size[:2]) == self.shape and 0 not in self.shape

    def _row_by_row(self, func: Any, args: Sequence[Any], options: dict[str, Any]) -> Tensor:
        """What `func` gives for every row by itself, from one seed, side by side."""
        seed = int(torch.randint(2**62, ()))
        devices = [args[0].device] if args[0].is_cuda else []

        def of_row(value: Any, row: int) -> Any:
            is_by_row = isinstance(value, Tensor) and self._has_rows(value)
            return value.narrow(_ROWS, row, 1).contiguous() if is_by_row else value

        results = []
        for row in range(self.shape[1]):
            with torch.random.fork_rng(devices):
                seed_torch(seed)
                given = [of_row(arg, row) for arg in args]
                results.append(func(*given, **{k: of_row(v, row) for k, v in options.items()}))
        return torch.cat(results, _ROWS)
