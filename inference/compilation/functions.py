"""Compiled functions of tensors, that draw the random numbers that the functions draw."""

import logging
import warnings
from collections.abc import Generator, Hashable, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule

from evidence.inference.compilation.recording import (
    NotRecordableError,
    TensorFunction,
    in_short,
    record,
)

Backend = Literal["inductor", "none"]
Compile = bool | Literal["auto"]

# What compiling costs on one core of a CPU, in nanoseconds; twice that is to be gained.
_COST = 20e9
# By code and inputs: blocks of data, and seeds, have graphs of the same code.
_COMPILED: dict[Hashable, Any] = {}
_MOST_COMPILED = 32


class NotWorthCompilingError(Exception):
    """Compiling takes longer than it saves."""


def expect_compile(compile: Any) -> None:
    """Check an option of this name.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(compile, bool) and compile != "auto":
        raise ValueError(f"expected compile True, False or 'auto', got {compile!r}")


def is_worth_compiling(work: float, num_calls: int) -> bool:
    """Whether so many calls, of `Recording.work` each, take longer than compiling does."""
    return work * num_calls > 2 * _COST


class CompiledFunction:
    """A function of tensors of fixed shapes, recorded once and compiled.

    Random numbers are drawn before the compiled part, by the generator and in the order in which
    the function draws them: from the same state of the generator come the same results, to the
    rounding of their dtype. It computes no gradients; a function that returns them is recorded with
    them.

    Args:
        function: returns a tuple of tensors.
        inputs: tensors like those that it will be called with.
        backend: "inductor", or "none" to run the recorded graph as it is.
        num_calls: how often it will be called: what is not worth compiling is refused; None for
            often enough.

    Raises:
        NotRecordableError: the function cannot be recorded or compiled; says why.
        NotWorthCompilingError: compiling takes longer than it saves.
    """

    def __init__(
        self,
        function: TensorFunction,
        inputs: Sequence[Tensor],
        *,
        backend: Backend = "inductor",
        num_calls: int | None = None,
    ) -> None:
        recording = record(function, inputs)
        if num_calls is not None and not is_worth_compiling(recording.work, num_calls):
            raise NotWorthCompilingError
        self._draws, self.constants = recording.draws, recording.constants
        self._rest: Any = recording.rest
        if backend == "inductor":
            self._rest = _compiled(recording.rest)
            try:  # it is compiled when it is called first
                with _without_news():
                    self(*inputs)
            except Exception as error:  # whatever Inductor, or the C++ compiler, raises
                raise NotRecordableError(in_short(error)) from error

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The function's results, without gradients."""
        draws = self._draws(*inputs, *self.constants)
        return self._rest(*inputs, *self.constants, *draws)


def _compiled(graph: GraphModule) -> Any:
    """By Inductor, unless a graph of the same code for inputs alike has been."""
    inputs = [node.meta.get("val") for node in graph.graph.nodes if node.op == "placeholder"]
    alike = [(t.shape, t.stride(), t.dtype, t.device) for t in inputs if isinstance(t, Tensor)]
    key = graph.code, str(alike), torch.get_num_threads(), torch.get_float32_matmul_precision()
    holds_tensors = any(node.op == "get_attr" for node in graph.graph.nodes)
    if holds_tensors or key not in _COMPILED:
        # Of the method, not of the module, which would be run by the hooks for modules as well.
        compiled = torch.compile(graph.forward, fullgraph=True, dynamic=False)
        if holds_tensors:
            return compiled
        _COMPILED[key] = compiled
        while len(_COMPILED) > _MOST_COMPILED:
            del _COMPILED[next(iter(_COMPILED))]
    return _COMPILED[key]


@contextmanager
def _without_news() -> Generator[None]:
    """Torch says nothing below an error, such as that a machine without a GPU has none."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
