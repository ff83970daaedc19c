"""Recorded graphs, run without Python between their steps."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from evidence.inference.compilation.recording import lift_constants

Steps = Callable[..., Sequence[Tensor]]


def interpreted(graph: GraphModule, inputs: Sequence[Tensor]) -> Steps:
    """The steps of a graph, by Torch's own interpreter: the same kernels, to the same bits.

    From Python a step on small tensors takes three times as long. A graph that the interpreter does
    not take, as where Torch has none, is run from Python; so is one with steps that return nothing,
    as a check of what came before, which the interpreter would leave out.

    Args:
        graph: of `traced`; tensors that it holds become inputs, so what is changed in place is
            seen.
        inputs: tensors like those that it will be called with; it is run once.

    Returns:
        What takes such inputs and returns the results, without gradients.
    """
    constants = lift_constants(graph)
    run: Any = graph.forward
    if not any(map(_returns_nothing, graph.graph.nodes)):
        with suppress(Exception), torch.no_grad():  # whatever Torch raises: it promises nothing
            run = _function(graph, (*inputs, *constants))

    def steps(*tensors: Tensor) -> Sequence[Tensor]:
        # Not optimized, it fuses nothing, which would round otherwise.
        with torch.no_grad(), torch.jit.optimized_execution(False):
            return run(*tensors, *constants)

    return steps


def _returns_nothing(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and not schema.returns


def _function(graph: GraphModule, inputs: tuple[Tensor, ...]) -> Any:
    """As `torch.jit.trace` makes it, but on its own: functions of that are never freed."""

    def forward(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(graph.forward(*tensors))

    internals: Any = torch._C
    steps, _ = internals._create_graph_by_tracing(forward, inputs, lambda _: "", True, False)
    return internals._create_function_from_graph("steps", steps)
