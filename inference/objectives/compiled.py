"""Objectives whose loss and gradients are one compiled graph."""

import math
import warnings
from collections.abc import Hashable
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import ELBO
from pyro.poutine import runtime
from pyro.poutine.block_messenger import BlockMessenger
from torch import Tensor

from evidence.inference.compilation.functions import Backend, CompiledFunction
from evidence.inference.compilation.recording import NotRecordableError
from evidence.inference.objectives.interface import Objective
from evidence.inference.objectives.loss_graphs import (
    Call,
    LossGraph,
    collects_parameters,
    differentiable,
)
from evidence.inference.programs.data import Batch, Data

# Shapes that are compiled, each for as long as a hundred steps or more: full batches and the last.
_MOST_GRAPHS = 4
# So often a graph is held against the program once more: what else it reads may have changed.
_CALLS_PER_CHECK = 1000


class Compiled(ELBO):
    """An objective whose loss and gradients are recorded once and compiled by Torch's Inductor.

    It goes wherever the objective goes: `fit(model, guide, x, objective=Compiled(IWAE()))`,
    `SVI(model, guide, optim, loss=Compiled(Trace_ELBO()))`. From the same state of the generator
    come the same loss and the same gradients, to the rounding of their dtype; a first call is held
    against the objective's own, and so is every thousandth.

    Under validation, in a warm-up and inside Pyro handlers that it does not know, the objective
    itself is called. So it is, after one line that says why, for good where the pair cannot be
    recorded (it branches on what it computes), the graph does not agree, there is no C++ compiler,
    or the data come in more than a few sizes.

    Compiling takes 5 to 60 s for each size of batch.

    Args:
        objective: one of this suite, `Trace_ELBO`, `TraceMeanField_ELBO`, or any other whose
            `differentiable_loss` looks at no number.
        backend: "inductor", or "none" to run the recorded graph as it is.
    """

    def __init__(self, objective: Objective, *, backend: Backend = "inductor") -> None:
        super().__init__(num_particles=getattr(objective, "num_particles", 1))
        self.objective, self.backend = objective, backend
        self._calls_per_check, self._same = _CALLS_PER_CHECK, _agree
        self._graphs: dict[Hashable, LossGraph] = {}
        self._refused: str | None = None

    @property
    def trains_model(self) -> bool:
        """Whether the objective trains the model's parameters."""
        return getattr(self.objective, "trains_model", True)

    @property
    def refused(self) -> str | None:
        """Why nothing is compiled any more; None if nothing is wrong."""
        return self._refused

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data, by the objective itself."""
        return self.objective.loss(model, guide, *args, **kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The loss, a scalar in nats, whose gradients have been computed with it."""
        graph, data = self._graph(model, guide, args, kwargs)
        if graph is None:
            return differentiable(self.objective, model, guide, *args, **kwargs)
        return _Loss.apply(graph, data, *graph.leaves)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data; its gradients are added to the parameters'."""
        graph, data = self._graph(model, guide, args, kwargs)
        if graph is None:
            return self.objective.loss_and_grads(model, guide, *args, **kwargs)
        return graph.add_gradients(data)

    def mean_loss_and_grads(self, num_data: int, model: Any, guide: Any, data: Batch) -> float:
        """The loss in nats per datum; its gradients are added where the loss is finite."""
        graph, data = self._graph(model, guide, (data,), {})
        if graph is not None:
            return graph.add_gradients(data, num_data)
        surrogate = differentiable(self.objective, model, guide, data) / num_data
        loss = surrogate.item()
        if math.isfinite(loss):
            surrogate.backward()
        return loss

    def __repr__(self) -> str:
        return f"Compiled({self.objective!r})"

    def _get_trace(self, *args: Any, **kwargs: Any) -> Any:
        """One trace of each, for code of Pyro's that asks for it."""
        objective: Any = self.objective
        return objective._get_trace(*args, **kwargs)

    def _graph(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[LossGraph | None, Batch]:
        """What stands for the objective in this call, made if need be; None for itself."""
        is_batch = len(args) == 1 and not kwargs and isinstance(args[0], Batch)
        data = args[0] if is_batch else Data(args, kwargs)
        handlers = _fixed_handlers()
        if self._refused or handlers is None or pyro.settings.get("validate_poutine"):
            return None, data
        call = Call(self.objective, model, guide, data)
        key = call.key, handlers
        if not self._is_due(key):
            return None, data
        graph = self._graphs.get(key)
        try:
            if graph is None or not graph.is_current:
                self._expect_few(key)
                graph = self._graphs[key] = self._made(call)
            if graph.num_calls % self._calls_per_check == 0:
                graph.expect_agreement(call, self._same)
        except NotRecordableError as error:
            self._refused = str(error)
            self._tell(error, was_in_use=graph is not None and graph.num_calls > 0)
            return None, data
        return graph, data

    def _is_due(self, key: Hashable) -> bool:
        """Whether it is time for a graph."""
        return True

    def _made(self, call: Call) -> LossGraph:
        """The graph of a call."""
        return LossGraph(call, partial(CompiledFunction, backend=self.backend))

    def _tell(self, error: NotRecordableError, *, was_in_use: bool) -> None:
        """Say why the objective itself is called from now on."""
        warnings.warn(f"the objective is not compiled: {error}", stacklevel=4)

    def _expect_few(self, key: Hashable) -> None:
        if len(self._graphs.keys() | {key}) > _MOST_GRAPHS:
            raise NotRecordableError(f"data come in more than {_MOST_GRAPHS} sizes")


class _Loss(torch.autograd.Function):
    """A loss and gradients that are there already, as autograd takes them."""

    @staticmethod
    def forward(ctx: Any, graph: LossGraph, data: Batch, *leaves: Tensor) -> Tensor:
        loss, *ctx.gradients = graph(data)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grad_outputs[0])


def _fixed_handlers() -> Hashable | None:
    """What the Pyro handlers around do, where that changes nothing from call to call; else None."""
    fixed = []
    for handler in runtime._PYRO_STACK:
        if isinstance(handler, BlockMessenger) or collects_parameters(handler):
            continue  # they change nothing in what they are around
        does = getattr(handler, "does", None)
        if does is None:
            return None
        fixed.append(does)
    return tuple(fixed)


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same to the rounding of long sums, beside their largest entry."""
    theirs = theirs.to(ours)  # a loss that was a number
    scale = theirs.abs().max().item() if theirs.numel() else 0.0
    tolerance = scale * torch.finfo(ours.dtype).eps ** 0.5
    return torch.allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
