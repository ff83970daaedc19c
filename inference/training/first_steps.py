"""What is watched in the first steps of training: parameters that no gradient reaches."""

import warnings
from collections.abc import Iterable, Mapping

from torch import Tensor

from evidence.inference.programs.data import Batch

NUM_WATCHED = 5


class GradientWatch:
    """Names the parameters that no gradient reaches in the first steps.

    Several steps, for a layer that starts at zero lets no gradient through at first.

    Args:
        names: of the parameters that are to be trained.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._without = set(names)  # never had a gradient
        self._idle = set(self._without)  # nor one other than zero
        self._steps = 0

    def observe(self, parameters: Mapping[str, Tensor], x: Batch) -> None:
        """Look at the gradients of all parameters after a step on the batch `x`.

        Raises:
            ValueError: no parameter has any.
        """
        without = {name for name, p in parameters.items() if p.grad is None}
        if without == parameters.keys() and self._steps == 0:
            raise ValueError(
                "no parameter got a gradient: announce the parameters of plain modules with "
                "pyro.module, or make the module a PyroModule"
            )
        self._without &= without
        # Zero data say nothing: what they are multiplied with has a gradient of zero.
        gradients = {n: p.grad for n, p in parameters.items() if n in self._idle}
        zero = {n for n, g in gradients.items() if g is not None and x.any() and not g.any()}
        self._idle &= without | zero
        self._steps += 1
        if self._steps == NUM_WATCHED:
            self.warn()

    def warn(self) -> None:
        """Name them, once: for a run that ends before enough steps were watched."""
        if self._steps == 0:
            return
        idle = self._idle if self._steps >= NUM_WATCHED else self._without
        self._idle, self._without = set(), set()
        if idle:
            warnings.warn(
                f"no gradient reaches {', '.join(sorted(idle))}: training leaves them as they are; "
                "do not detach what they make, or set requires_grad_(False)",
                stacklevel=2,
            )
