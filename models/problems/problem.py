"""What a problem with a known evidence is."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp
from torch import Tensor

from evidence.models.modes import Modes


@dataclass(frozen=True)
class Problem:
    """A Pyro model, its data, and its evidence, found without a line of the suite or of Pyro.

    Args:
        name: what it is called, in options and tables.
        model: called as `model(*data)`.
        data: its arguments; none for a density that takes none.
        exact: gives log p(data) in nats, `[M]` where each datum has latents of its own, else a
            number.
        how: how the exact value is found.
        source: where the problem comes from.
        double: whether its numbers need float64.
        modes: of the posterior, where they are known.
    """

    name: str
    model: Callable[..., None]
    data: tuple[Tensor, ...]
    exact: Callable[[], np.ndarray | float]
    how: str
    source: str
    double: bool = False
    modes: Modes | None = None

    @property
    def arguments(self) -> tuple[Tensor, ...]:
        """The data in the precision that the problem needs."""
        if not self.double:
            return self.data
        return tuple(t.double() if t.is_floating_point() else t for t in self.data)

    @cached_property
    def log_evidence(self) -> float:
        """The exact log p(data), summed over the data, in nats."""
        return float(np.sum(self.exact()))


def trapezoid(log_f: np.ndarray, *steps: float) -> float:
    """Log of the integral of exp(log_f) on a regular grid, where it is nothing at the edges."""
    return float(logsumexp(log_f) + np.log(steps).sum())
