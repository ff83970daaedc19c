"""Objectives whose loss and gradients are one compiled graph."""

import math
import warnings
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine import runtime
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from evidence.inference.compilation.functions import (
    Backend,
    Compile,
    CompiledFunction,
    expect_compile,
    is_worth_compiling,
)
from evidence.inference.compilation.recording import NotRecordableError, record
from evidence.inference.objectives.interface import Differentiable, Objective
from evidence.inference.programs.data import (
    Batch,
    Data,
    takes,
    tensors_in,
    unwrapped,
    with_replaced,
)
from evidence.inference.programs.modules import modules_of
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import sites_of

_FEWEST_CALLS = 200  # that are worth a look at what they would cost
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
        self._graphs: dict[Hashable, _LossGraph] = {}
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
            return _differentiable(self.objective, model, guide, *args, **kwargs)
        return _Loss.apply(graph, data, *graph.leaves)

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data; its gradients are added to the parameters'."""
        graph, data = self._graph(model, guide, args, kwargs)
        if graph is None:
            return self.objective.loss_and_grads(model, guide, *args, **kwargs)
        return graph.add_gradients(data, 1.0)

    def mean_loss_and_grads(self, num_data: int, model: Any, guide: Any, data: Batch) -> float:
        """The loss in nats per datum; its gradients are added where the loss is finite."""
        graph, data = self._graph(model, guide, (data,), {})
        if graph is not None:
            return graph.add_gradients(data, 1 / num_data)
        surrogate = _differentiable(self.objective, model, guide, data) / num_data
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
    ) -> tuple["_LossGraph | None", Batch]:
        """What stands for the objective in this call, made if need be; None for itself."""
        is_batch = len(args) == 1 and not kwargs and isinstance(args[0], Batch)
        data = args[0] if is_batch else Data(args, kwargs)
        handlers = _fixed_handlers()
        if self._refused or handlers is None or pyro.settings.get("validate_poutine"):
            return None, data
        call = _Call(self.objective, model, guide, data)
        key = call.key, handlers
        graph = self._graphs.get(key)
        try:
            if graph is None or not graph.is_current:
                self._expect_few(key)
                graph = self._graphs[key] = _LossGraph(call, self.backend)
            if graph.num_calls % _CALLS_PER_CHECK == 0:
                graph.expect_agreement(call)
        except NotRecordableError as error:
            self._refused = str(error)
            warnings.warn(f"the objective is not compiled: {error}", stacklevel=3)
            return None, data
        return graph, data

    def _expect_few(self, key: Hashable) -> None:
        if len(self._graphs.keys() | {key}) > _MOST_GRAPHS:
            raise NotRecordableError(f"data come in more than {_MOST_GRAPHS} sizes")


def compiled_where_it_pays(
    objective: Objective,
    compile: Compile,
    model: Any,
    guide: Any,
    data: Batch,
    *,
    num_calls: int | None,
) -> Objective:
    """The objective, compiled or not.

    Args:
        objective: to be compiled.
        compile: True, False, or "auto": where it can be, and takes less time than it saves.
        model: called with the data.
        guide: called with the data.
        data: a batch of the usual size.
        num_calls: how often it will be called; None where that is not known, and "auto" means no.
    """
    expect_compile(compile)
    if compile is True:
        return Compiled(objective)
    if compile is False or num_calls is None or num_calls < _FEWEST_CALLS:
        return objective
    call = _Call(objective, model, guide, data)
    try:
        with isolated_rng(device=data.device), poutine.block():
            call.loss(*tensors_in(data))
            work = record(partial(_loss_and_gradients, call), tensors_in(data)).work
    except NotRecordableError:
        return objective
    return Compiled(objective) if is_worth_compiling(work, num_calls) else objective


class _Call(NamedTuple):
    """An objective and what it is called with."""

    objective: Objective
    model: Any
    guide: Any
    data: Batch

    @property
    def key(self) -> Hashable:
        """What another call must have in common with it to be the same computation."""
        tensors = tuple((t.shape, t.dtype, t.device) for t in tensors_in(self.data))
        others: tuple[Any, ...] = ()
        if isinstance(self.data, Data):
            named = (*enumerate(self.data.args), *self.data.kwargs.items())
            others = tuple((n, None if isinstance(v, Tensor) else repr(v)) for n, v in named)
        return id(unwrapped(self.model)), id(unwrapped(self.guide)), tensors, others

    def loss(self, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of these tensors, and what to differentiate."""
        ours = tensors_in(self.data)
        data = with_replaced(self.data, {id(t): new for t, new in zip(ours, tensors, strict=True)})
        model, guide = takes(self.model, data), takes(self.guide, data)
        if not isinstance(self.objective, Trace_ELBO | TraceMeanField_ELBO):
            loss = _differentiable(self.objective, model, guide, data)
            return loss, loss
        # `differentiable_loss` of these looks at numbers, for NaN.
        losses, surrogates = zip(
            *(
                self.objective._differentiable_loss_particle(*traces)
                for traces in self.objective._get_traces(model, guide, (data,), {})
            ),
            strict=True,
        )
        share = 1 / self.objective.num_particles
        return sum(losses) * share, sum(surrogates) * share


class _LossGraph:
    """Loss and gradients of a call, recorded.

    Raises:
        NotRecordableError: they cannot be.
    """

    def __init__(self, call: _Call, backend: Backend) -> None:
        self._call = call  # keeps what its key's ids are of alive
        self.leaves: list[Tensor] = []
        self.num_calls = 0
        with isolated_rng(device=call.data.device), poutine.block():
            with poutine.trace(param_only=True) as collected:
                call.loss(*tensors_in(call.data))  # whatever is made, or asked, at the first call
            self._parameters = [
                site for site in sites_of(collected.trace).values() if site["type"] == "param"
            ]
            inputs = [*tensors_in(call.data), torch.tensor(1.0, dtype=torch.float64)]
            self._run = CompiledFunction(self._loss_and_gradients, inputs, backend=backend)
        self._modules = [m for top in modules_of(call.model, call.guide) for m in top.modules()]
        self._flags = self._state()

    @property
    def is_current(self) -> bool:
        """Whether modules and parameters are in the modes in which it was recorded."""
        return self._state() == self._flags

    def __call__(self, data: Batch, share: float = 1.0) -> tuple[Tensor, ...]:
        """The loss and its gradients, times `share`."""
        self.num_calls += 1
        _show(self._parameters)
        return self._run(*tensors_in(data), torch.tensor(share, dtype=torch.float64))

    def add_gradients(self, data: Batch, share: float) -> float:
        """The loss times `share`; its gradients are added to the parameters'."""
        loss, *gradients = self(data, share)
        value = loss.item()
        if math.isfinite(value):
            for leaf, gradient in zip(self.leaves, gradients, strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return value

    def expect_agreement(self, call: _Call) -> None:
        """Check that the graph returns what the objective itself does, to rounding.

        Raises:
            NotRecordableError: it does not.
        """
        with isolated_rng(device=call.data.device), poutine.block():
            expected = _value_and_gradients(*call.loss(*tensors_in(call.data)), self.leaves)
        with isolated_rng(device=call.data.device):
            one = torch.tensor(1.0, dtype=torch.float64)
            returned = self._run(*tensors_in(call.data), one)
        if not all(map(_agree, returned, expected)):
            raise NotRecordableError(
                "the recorded graph does not return what the program does, which reads something "
                "that changes"
            )

    def _loss_and_gradients(self, *tensors_and_share: Tensor) -> tuple[Tensor, ...]:
        *tensors, share = tensors_and_share
        loss, surrogate = self._call.loss(*tensors)
        self.leaves = _leaves_of(surrogate)
        share = share.to(surrogate.dtype)
        return _value_and_gradients(loss * share, surrogate * share, self.leaves)

    def _state(self) -> tuple[list[bool], list[bool]]:
        return [m.training for m in self._modules], [leaf.requires_grad for leaf in self.leaves]


class _Loss(torch.autograd.Function):
    """A loss and gradients that are there already, as autograd takes them."""

    @staticmethod
    def forward(ctx: Any, graph: _LossGraph, data: Batch, *leaves: Tensor) -> Tensor:
        loss, *ctx.gradients = graph(data)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *torch._foreach_mul(ctx.gradients, grad_outputs[0])


def _differentiable(objective: Objective, *args: Any, **kwargs: Any) -> Tensor:
    if not isinstance(objective, Differentiable):
        raise NotRecordableError(f"{type(objective).__name__} has no differentiable_loss")
    return objective.differentiable_loss(*args, **kwargs)


def _fixed_handlers() -> Hashable | None:
    """What the Pyro handlers around do, where that changes nothing from call to call; else None."""
    fixed = []
    for handler in runtime._PYRO_STACK:
        if isinstance(handler, BlockMessenger) or _collects_parameters(handler):
            continue  # they change nothing in what they are around
        does = getattr(handler, "does", None)
        if does is None:
            return None
        fixed.append(does)
    return tuple(fixed)


def _collects_parameters(handler: Any) -> bool:
    return isinstance(handler, TraceMessenger) and handler.param_only


def _show(parameters: Iterable[Any]) -> None:
    """Tell those who collect them, as `SVI` does, which parameters are in use."""
    handlers: list[Any] = runtime._PYRO_STACK[::-1]
    for site in parameters:
        for handler in handlers:
            if isinstance(handler, BlockMessenger) and handler.hide_fn(site):
                break
            if _collects_parameters(handler):
                handler.trace.add_node(site["name"], **site.copy())


def _loss_and_gradients(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
    loss, surrogate = call.loss(*tensors)
    return _value_and_gradients(loss, surrogate, _leaves_of(surrogate))


def _value_and_gradients(
    loss: Tensor, surrogate: Tensor, leaves: list[Tensor]
) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(surrogate, leaves) if leaves else ()
    return torch.as_tensor(loss).detach(), *gradients


def _leaves_of(loss: Tensor) -> list[Tensor]:
    """The parameters that the loss depends on, in the order in which autograd finds them."""
    found: dict[int, Tensor] = {}
    left, seen = [loss.grad_fn], set()
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found[id(variable)] = variable
        left += [before for before, _ in node.next_functions]
    return list(found.values())


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two tensors are the same to the rounding of long sums, beside their largest entry."""
    theirs = theirs.to(ours)  # a loss that was a number
    scale = theirs.abs().max().item() if theirs.numel() else 0.0
    tolerance = scale * torch.finfo(ours.dtype).eps ** 0.5
    return torch.allclose(ours, theirs, rtol=0, atol=tolerance, equal_nan=True)
