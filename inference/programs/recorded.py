"""Functions of tensors that are called often: graphs in the place of the programs in them."""

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
from evidence.inference.compilation.recording import (
    NotRecordableError,
    TensorFunction,
    traced,
)
from evidence.inference.programs.broadcasting import agree
from evidence.inference.programs.random_state import isolated_rng

_FEWEST_CALLS = 500  # that are worth a look at what they would cost
_BEFORE_RECORDING = 100  # calls, which take about as long as recording does

_Graph = Callable[..., Sequence[Tensor]]


class RecordedFunction:
    """A function of tensors, from graphs in the place of the programs in it where that pays.

    A program that is run under Pyro and differentiated spends milliseconds around operations that
    take microseconds. Recorded, the same operations run in the same order and to the same bits,
    which is tried: no result depends on when that begins. Compiled by Inductor they are faster
    still and round otherwise, so that is decided at the first call.

    Args:
        function: returns tensors, which depend on its inputs alone, with their gradients if these
            are wanted: none go through it.
    """

    def __init__(self, function: TensorFunction) -> None:
        self._function = function
        self._compile: Compile = "auto"
        self._expected = 0
        self._calls: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph | None] = {}

    def expect(self, num_calls: int, compile: Compile) -> None:
        """Say how often it will be called about, and what the user wants: before it is called."""
        self._expected, self._compile = num_calls, compile

    @property
    def num_calls(self) -> int:
        """So far."""
        return self._calls.total()

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """The function's results, without gradients."""
        inputs = tuple(tensor.detach() for tensor in inputs)
        return (self._graph_for(inputs) or self._function)(*inputs)

    def _graph_for(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        self._calls[key] += 1
        if self._compile is False:
            return None
        if self._calls[key] == 1 and (self._compile is True or self._expected >= _FEWEST_CALLS):
            self._graphs[key] = self._compiled(inputs)
        if self._calls[key] == _BEFORE_RECORDING and self._graphs.get(key) is None:
            self._graphs[key] = self._replayed(inputs)
        return self._graphs.get(key)

    def _compiled(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """By Inductor; None if it cannot be, or is not worth its time."""
        enough = None if self._compile is True else self._expected
        try:
            with isolated_rng(device=inputs[0].device):
                graph = CompiledFunction(self._function, inputs, num_calls=enough)
                return self._tried(graph, inputs, agree)
        except NotWorthCompilingError:
            return None
        except NotRecordableError as error:
            if self._compile is True:
                warnings.warn(f"the log joint is not compiled: {error}", stacklevel=2)
            return None

    def _replayed(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """Step by step; None if that is not what the function does."""
        try:
            with isolated_rng(device=inputs[0].device):
                graph = torch.no_grad()(traced(self._function, inputs))
                return self._tried(graph, inputs, _is_same)
        except NotRecordableError:
            return None

    def _tried(
        self,
        graph: _Graph,
        inputs: tuple[Tensor, ...],
        same: Callable[[Tensor, Tensor], bool],
    ) -> _Graph:
        """The graph, if it returns what the function does, where it was recorded and elsewhere.

        Raises:
            NotRecordableError: it does not.
        """
        elsewhere = tuple(tensor.flip(0) if tensor.ndim else 0.5 * tensor for tensor in inputs)
        for where in (inputs, elsewhere):
            if not all(map(same, graph(*where), self._function(*where))):
                raise NotRecordableError("the recorded graph does not return what the program does")
        return graph


def _is_same(ours: Tensor, theirs: Tensor) -> bool:
    """To the last bit."""
    return bool(((ours == theirs) | (ours.isnan() & theirs.isnan())).all())
