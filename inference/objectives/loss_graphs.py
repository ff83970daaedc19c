"""Loss and gradients of an objective as one graph of tensors."""

import math
import timeit
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from pyro.poutine import runtime
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor

from evidence.inference.compilation.recording import NotRecordableError, TensorFunction
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

# Makes of a function of tensors, and of inputs like those to come, what stands for it.
Record = Callable[[TensorFunction, Sequence[Tensor]], Callable[..., Sequence[Tensor]]]

_ENOUGH = 0.9  # of a program's time: a graph that takes less is worth its room


class Call(NamedTuple):
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
            loss = differentiable(self.objective, model, guide, data)
            return loss, loss
        # `differentiable_loss` of these looks at numbers, for NaN.
        losses, surrogates = zip(
            *(
                self.objective._differentiable_loss_particle(*traces)
                for traces in self.objective._get_traces(model, guide, (data,), {})
            ),
            strict=True,
        )
        surrogate = sum(one / self.objective.num_particles for one in surrogates)
        loss = torch.as_tensor(
            sum(one / self.objective.num_particles for one in losses), dtype=surrogate.dtype
        )
        return loss, surrogate


class LossGraph:
    """Loss and gradients of a call, recorded.

    Args:
        call: of the objective.
        recorded: makes of a function, and inputs like those to come, what stands for it.

    Raises:
        NotRecordableError: they cannot be.
    """

    def __init__(self, call: Call, recorded: Record) -> None:
        self._call = call  # keeps what its key's ids are of alive
        self.leaves: list[Tensor] = []
        self.num_calls = 0
        with _inside(call.data):
            with poutine.trace(param_only=True) as collected:
                call.loss(*tensors_in(call.data))  # whatever is made, or asked, at the first call
            self._parameters = [
                site for site in sites_of(collected.trace).values() if site["type"] == "param"
            ]
            inputs = [*tensors_in(call.data), _count(1)]
            self._run = recorded(self._loss_and_gradients, inputs)
        self._modules = [m for top in modules_of(call.model, call.guide) for m in top.modules()]
        self._flags = self._state()

    @property
    def is_current(self) -> bool:
        """Whether modules and parameters are in the modes in which it was recorded."""
        return self._state() == self._flags

    def __call__(self, data: Batch, num_data: int = 1) -> Sequence[Tensor]:
        """The loss and its gradients, over `num_data`."""
        self.num_calls += 1
        _show(self._parameters)
        return self._run(*tensors_in(data), _count(num_data))

    def add_gradients(self, data: Batch, num_data: int = 1) -> float:
        """The loss over `num_data`; its gradients are added to the parameters'."""
        loss, *gradients = self(data, num_data)
        value = loss.item()
        if math.isfinite(value):
            for leaf, gradient in zip(self.leaves, _apart(gradients), strict=True):
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
        return value

    def expect_agreement(self, call: Call, same: Callable[[Tensor, Tensor], bool]) -> None:
        """Check that the graph returns what the objective itself does.

        Raises:
            NotRecordableError: it does not.
        """
        with _inside(call.data):
            expected = _value_and_gradients(*call.loss(*tensors_in(call.data)), self.leaves)
        with _inside(call.data):
            returned = self._run(*tensors_in(call.data), _count(1))
        if not all(map(same, returned, expected)):
            raise NotRecordableError(
                "the recorded graph does not return what the program does, which reads something "
                "that changes"
            )

    def is_faster(self, call: Call) -> bool:
        """Whether the graph takes less time than the objective itself, the best of three runs."""

        def itself() -> None:
            _value_and_gradients(*call.loss(*tensors_in(call.data)), self.leaves)

        def graph() -> None:
            self._run(*tensors_in(call.data), _count(1))

        with _inside(call.data):
            return min(timeit.repeat(graph, number=1, repeat=3)) < _ENOUGH * min(
                timeit.repeat(itself, number=1, repeat=3)
            )

    def _loss_and_gradients(self, *tensors_and_count: Tensor) -> tuple[Tensor, ...]:
        *tensors, count = tensors_and_count
        loss, surrogate = self._call.loss(*tensors)
        self.leaves = _leaves_of(surrogate)
        count = count.to(surrogate.dtype)
        return _value_and_gradients(loss / count, surrogate / count, self.leaves)

    def _state(self) -> tuple[list[bool], list[bool]]:
        return [m.training for m in self._modules], [leaf.requires_grad for leaf in self.leaves]


@contextmanager
def _inside(data: Batch) -> Generator[None]:
    """Runs of the pair that leave no trace, inside the handlers around, which may scale it."""
    with isolated_rng(device=data.device), poutine.block(hide_types=["param"]):
        yield


def differentiable(objective: Objective, *args: Any, **kwargs: Any) -> Tensor:
    """The loss, a scalar in nats, to be differentiated.

    Raises:
        NotRecordableError: the objective does not let autograd differentiate it.
    """
    if not isinstance(objective, Differentiable):
        raise NotRecordableError(f"{type(objective).__name__} has no differentiable_loss")
    return objective.differentiable_loss(*args, **kwargs)


def collects_parameters(handler: Any) -> bool:
    """Whether a handler of Pyro's does nothing but see which parameters are in use."""
    return isinstance(handler, TraceMessenger) and handler.param_only


def _show(parameters: Iterable[Any]) -> None:
    """Tell those who collect them, as `SVI` does, which parameters are in use."""
    handlers: list[Any] = runtime._PYRO_STACK[::-1]
    for site in parameters:
        for handler in handlers:
            if isinstance(handler, BlockMessenger) and handler.hide_fn(site):
                break
            if collects_parameters(handler):
                handler.trace.add_node(site["name"], **site.copy())


def loss_and_gradients(call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The loss of a call, and its gradients, for these tensors."""
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


def _count(num_data: int) -> Tensor:
    return torch.tensor(num_data, dtype=torch.float64)


def _apart(gradients: Sequence[Tensor]) -> Iterator[Tensor]:
    """Gradients in memory of their own each, as clipping changes them in place."""
    taken = set()
    for gradient in gradients:
        is_own = gradient.is_contiguous() and gradient.data_ptr() not in taken
        taken.add(gradient.data_ptr())
        yield gradient if is_own else gradient.clone(memory_format=torch.contiguous_format)
