"""Functions of tensors that are called often: graphs in the place of the programs in them."""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from evidence.inference.compilation.functions import (
    Compile,
    CompiledFunction,
    is_worth_compiling,
)
from evidence.inference.compilation.recording import (
    NotRecordableError,
    TensorFunction,
    traced,
    work_of,
)
from evidence.inference.programs.broadcasting import agree
from evidence.inference.programs.random_state import isolated_rng

_FEWEST_CALLS = 5000  # that are worth a look at what they would cost
_BEFORE_RECORDING = 500  # calls, in which Pyro takes about as long as recording does

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
        if key not in self._graphs and self._calls[key] >= self._first_look():
            with isolated_rng(device=inputs[0].device):
                self._graphs[key] = self._made(inputs)
        return self._graphs.get(key)

    def _first_look(self) -> int:
        """The call at which a graph is made."""
        is_long = self._compile is True or self._expected >= _FEWEST_CALLS
        return 1 if is_long else _BEFORE_RECORDING

    def _made(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """Compiled, or to be run step by step; None if neither is what the function does."""
        graph = None
        try:
            steps = traced(self._function, inputs)
            graph = self._tried(torch.no_grad()(steps), inputs, _is_same)
            if self._compile is True or is_worth_compiling(work_of(steps), self._expected):
                return self._tried(CompiledFunction(self._function, inputs), inputs, agree)
        except NotRecordableError as error:
            if self._compile is True:
                warnings.warn(f"the log joint is not compiled: {error}", stacklevel=2)
        return graph

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
