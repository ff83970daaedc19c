"""Functions of tensors that are called often: graphs in the place of the programs in them."""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext, suppress

import torch
from torch import Tensor

from evidence.inference.compilation.functions import (
    Compile,
    CompiledFunction,
    is_worth_compiling,
)
from evidence.inference.compilation.interpreter import interpreted
from evidence.inference.compilation.recording import (
    NotRecordableError,
    TensorFunction,
    same_bits,
    traced,
    work_of,
)
from evidence.inference.programs.broadcasting import agree
from evidence.inference.programs.random_state import isolated_rng

# What recording takes, a graph saves in 60 to 200 calls.
_FEWEST_CALLS = 2000  # of functions that are recorded from the first call on
_BEFORE_RECORDING = 250  # calls with inputs alike, of all others
_CALLS_PER_CHECK = 1000
# Where else a graph is tried: branches in code that it does not see are often taken there only.
_FAR = 10.0

_Graph = Callable[..., Sequence[Tensor]]


class RecordedFunction:
    """A function of tensors, from graphs in the place of the programs in it where that pays.

    A program that is run under Pyro and differentiated spends milliseconds around operations that
    take microseconds. Recorded, the same operations run in the same order and to the same bits,
    which is tried: no result depends on when that begins. Compiled by Inductor they are faster
    still and round otherwise, so that is decided at the first call. What else a function reads may
    change, as a counter does: every thousandth call is held against the function.

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
        """The function's results, without gradients.

        Raises:
            ValueError: the function is no longer what was recorded.
        """
        inputs = tuple(tensor.detach().contiguous() for tensor in inputs)
        key = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        self._calls[key] += 1
        if self._is_due(key):
            with isolated_rng(device=inputs[0].device):
                self._graphs[key] = self._made(inputs)
        graph = self._graphs.get(key)
        if graph is not None:
            # What fails may be caught in the program, such as a matrix that has no root.
            with suppress(RuntimeError, IndexError):
                results = graph(*inputs)
                if self._calls[key] % _CALLS_PER_CHECK == 0:
                    self._expect_current(results, inputs)
                return results
        return self._function(*inputs)

    def _is_due(self, key: Hashable) -> bool:
        """Whether it is time for a graph."""
        if self._compile is False or key in self._graphs:
            return False
        if self._compile is True or self._expected >= _FEWEST_CALLS:
            return True
        return self._calls[key] >= _BEFORE_RECORDING

    def _made(self, inputs: tuple[Tensor, ...]) -> _Graph | None:
        """Compiled, or to be run step by step; None if neither is what the function does."""
        try:
            steps = traced(self._function, inputs)
            work = work_of(steps, is_interpreted=True)
            if self._compile is True or is_worth_compiling(work, self._expected):
                with suppress(NotRecordableError) if self._compile == "auto" else nullcontext():
                    return self._tried(CompiledFunction(self._function, inputs), inputs, agree)
            return self._tried(interpreted(steps, inputs), inputs, same_bits)
        except NotRecordableError as error:
            if self._compile is True:
                warnings.warn(f"the log joint is not compiled: {error}", stacklevel=2)
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
        far = tuple(_FAR * tensor for tensor in inputs)
        if not (
            all(map(same, graph(*inputs), self._function(*inputs)))
            and all(map(same, graph(*elsewhere), self._function(*elsewhere)))
            and self._is_same_far(graph, far, same)
        ):
            raise NotRecordableError("the recorded graph does not return what the program does")
        return graph

    def _is_same_far(
        self, graph: _Graph, far: tuple[Tensor, ...], same: Callable[[Tensor, Tensor], bool]
    ) -> bool:
        """Whether it does where programs may fail, where both return a number."""
        try:
            ours = graph(*far)
        except (RuntimeError, IndexError):
            return True  # the program is asked then
        try:
            theirs = self._function(*far)
        except Exception:  # whatever a program raises
            return False
        return all(
            same(torch.where(known, a, 0), torch.where(known, b, 0))
            for a, b in zip(ours, theirs, strict=True)
            for known in [a.isfinite() & b.isfinite()]
        )

    def _expect_current(self, results: Sequence[Tensor], inputs: tuple[Tensor, ...]) -> None:
        with isolated_rng(device=inputs[0].device):
            theirs = self._function(*inputs)
        if not all(map(agree, results, theirs)):
            raise ValueError(
                "the log joint is no longer what was recorded of it: it depends on what no graph "
                "holds, as a counter of calls or a branch of Python's: make it a function of its "
                "latents and data alone, or, in Python, pass compile=False"
            )
