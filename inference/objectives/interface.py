"""What is asked of an objective: Pyro's have it, and ours."""

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from evidence.inference.programs.traces import Program


class Objective(Protocol):
    """A loss in nats, summed over the data. `pyro.infer.ELBO` itself promises neither method."""

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Its value."""

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Its value; its gradients are added to those of the parameters."""


@runtime_checkable
class Differentiable(Protocol):
    """An objective that autograd can differentiate; Pyro's `RenyiELBO` is none."""

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, a scalar in nats, whose gradient is the objective's."""
