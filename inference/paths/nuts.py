"""Pyro's NUTS on a potential energy that is recorded, and run without the program."""

from typing import Any

import torch
from pyro.infer import NUTS
from torch import Tensor

from evidence.inference.compilation.functions import Compile
from evidence.inference.programs.recorded import RecordedFunction


class RecordedNUTS(NUTS):
    """Pyro's NUTS; the gradient that it takes at every step comes from a graph where that pays.

    Args:
        model: see `NUTS`.
        num_calls: how many gradients it will take, about.
        compile: see `annealing.Options`.
        options: all others of `NUTS`.

    Attributes:
        num_gradients: taken so far.
    """

    def __init__(self, model: Any, *, num_calls: int, compile: Compile, **options: Any) -> None:
        super().__init__(model, **options)
        self._num_calls, self._compile = num_calls, compile
        self._energy: RecordedFunction | None = None

    @property
    def num_gradients(self) -> int:
        """Taken so far."""
        return 0 if self._energy is None else self._energy.num_calls

    def _initialize_model_properties(self, model_args: Any, model_kwargs: Any) -> None:
        super()._initialize_model_properties(model_args, model_kwargs)
        names = list(self.initial_params)
        potential_fn: Any = self.potential_fn

        def energy(*values: Tensor) -> tuple[Tensor, ...]:
            """The potential energy and its gradients."""
            leaves = [value.detach().requires_grad_() for value in values]
            with torch.enable_grad():
                total = potential_fn(dict(zip(names, leaves, strict=True)))
                return total.detach(), *torch.autograd.grad(total, leaves)

        self._energy = recorded = RecordedFunction(energy)
        recorded.expect(self._num_calls, self._compile)
        self.potential_fn = lambda values: _Energy.apply(
            recorded, *(values[name] for name in names)
        )


class _Energy(torch.autograd.Function):
    """A scalar whose gradients are known along with it."""

    @staticmethod
    def forward(ctx: Any, energy: RecordedFunction, *values: Tensor) -> Tensor:
        total, *gradients = energy(*values)
        ctx.save_for_backward(*gradients)
        return total.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(outer[0] * gradient for gradient in ctx.saved_tensors)
