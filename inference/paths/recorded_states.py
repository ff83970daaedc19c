"""The states of chains from a recorded graph: what a program computes, without the program."""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from evidence.inference.compilation.functions import (
    Compile,
    CompiledFunction,
    NotWorthCompilingError,
)
from evidence.inference.compilation.recording import NotRecordableError, traced
from evidence.inference.paths.hmc import State, StateAt
from evidence.inference.programs.broadcasting import agree
from evidence.inference.programs.random_state import isolated_rng

_FEWEST_CALLS = 500  # that are worth a look at what they would cost
_BEFORE_RECORDING = 100  # calls, which take about as long as recording does

_Graph = Callable[[Tensor], Sequence[Tensor]]


class RecordedStates:
    """States as a function gives them, from graphs in place of the programs in it where that pays.

    A program that is run under Pyro and differentiated spends milliseconds around operations that
    take microseconds. Recorded, the same operations run in the same order and to the same bits,
    which is tried: no result depends on when that begins. Compiled by Inductor they are faster
    still and round otherwise, so that is decided at the first call.

    Args:
        state_at: of positions `[C, B, Z]`; what it does depends on them alone.
    """

    def __init__(self, state_at: StateAt) -> None:
        self._state_at = state_at
        self._compile: Compile = "auto"
        self._num_calls = 0
        self._calls: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph | None] = {}

    def expect(self, num_calls: int, compile: Compile) -> None:
        """Say how often it will be called about, and what the user wants: before it is called."""
        self._num_calls, self._compile = num_calls, compile

    def __call__(self, z: Tensor) -> State:
        """At positions `[C, B, Z]`."""
        z = z.detach()
        graph = self._graph_for(z)
        return self._state_at(z) if graph is None else State(z, *graph(z))

    def _graph_for(self, z: Tensor) -> _Graph | None:
        if self._compile is False:
            return None
        key = z.shape, z.dtype, z.device
        self._calls[key] += 1
        if self._calls[key] == 1 and self._may_pay():
            self._graphs[key] = self._compiled(z)
        if self._calls[key] == _BEFORE_RECORDING and self._graphs.get(key) is None:
            self._graphs[key] = self._replayed(z)
        return self._graphs.get(key)

    def _may_pay(self) -> bool:
        return self._compile is True or self._num_calls >= _FEWEST_CALLS

    def _terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        state = self._state_at(z)
        return state.log_probs, state.grads

    def _compiled(self, z: Tensor) -> _Graph | None:
        """By Inductor; None if it cannot be, or is not worth its time."""
        enough = None if self._compile is True else self._num_calls
        try:
            with isolated_rng(device=z.device):
                return self._tried(CompiledFunction(self._terms, [z], num_calls=enough), z, agree)
        except NotWorthCompilingError:
            return None
        except NotRecordableError as error:
            if self._compile is True:
                warnings.warn(f"the log joint is not compiled: {error}", stacklevel=2)
            return None

    def _replayed(self, z: Tensor) -> _Graph | None:
        """Step by step; None if that is not what the function does."""
        try:
            with isolated_rng(device=z.device):
                return self._tried(torch.no_grad()(traced(self._terms, [z])), z, _is_same)
        except NotRecordableError:
            return None

    def _tried(self, graph: _Graph, z: Tensor, same: Callable[[Tensor, Tensor], bool]) -> _Graph:
        """The graph, if it returns what the function does, where it was recorded and elsewhere.

        Raises:
            NotRecordableError: it does not.
        """
        for where in (z, z.flip(0)):
            if not all(map(same, graph(where), self._terms(where))):
                raise NotRecordableError("the recorded graph does not return what the program does")
        return graph


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    """To the last bit."""
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
