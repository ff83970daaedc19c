"""Objectives that are run from a graph, without Pyro, once they have been called often."""

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

from torch import Tensor

from evidence.inference.compilation.interpreter import Steps, interpreted
from evidence.inference.compilation.recording import (
    NotRecordableError,
    TensorFunction,
    same_bits,
    traced,
)
from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.interface import Objective
from evidence.inference.objectives.loss_graphs import Call, LossGraph

# Recording takes as long as a hundred calls or two.
_BEFORE_RECORDING = 200
# Holding a graph against the program takes as long as two calls.
_CALLS_PER_CHECK = 100


class Recorded(Compiled):
    """An objective that is recorded after 200 calls, and run without Pyro from then on.

    The same operations in the same order, to the same bits, which is tried: no result depends on
    when that begins, and a resumed run ends where it would have. What cannot be recorded, or is no
    faster so, is called as before, and nothing is said of it.

    Args:
        objective: see `Compiled`.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective, backend="none")
        self._calls_per_check, self._same = _CALLS_PER_CHECK, same_bits
        self._calls: Counter[Hashable] = Counter()

    def _is_due(self, key: Hashable) -> bool:
        self._calls[key] += 1
        return self._calls[key] > _BEFORE_RECORDING

    def _made(self, call: Call) -> LossGraph:
        graph = LossGraph(call, _interpreted)
        if not graph.is_faster(call):  # as of many steps, each of which is one call from Python
            raise NotRecordableError("the recorded graph is no faster")
        return graph

    def _tell(self, error: NotRecordableError, *, was_in_use: bool) -> None:
        if was_in_use:
            warnings.warn(
                f"for up to {_CALLS_PER_CHECK} steps of training what changes was taken for what "
                f"it was: {error}; pass compile=False",
                stacklevel=4,
            )

    def __repr__(self) -> str:
        return f"Recorded({self.objective!r})"


def _interpreted(function: TensorFunction, inputs: Sequence[Tensor]) -> Steps:
    return interpreted(traced(function, inputs), inputs)
