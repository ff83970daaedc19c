"""What objectives have in common: Pyro's interface, particles, and how to write another one."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from evidence.inference.objectives.draws import Pair, plate_nesting
from evidence.inference.programs.traces import Program


class AbstractObjective(ELBO):
    """A loss to minimize over the parameters of a model and a guide, any pair of Pyro callables.

    It goes wherever Pyro's objectives go: `SVI(model, guide, optim, loss=IWAE())`,
    `IWAE()(model, guide)(x).backward()`, `fit(model, guide, x, elbo=IWAE())`.

    The loss is in nats and summed over the data, of which a subsampled plate stands for all N:
    what is nonlinear in the weights is computed per datum, then multiplied by N / B. Weights are
    per datum if all sites are inside a common plate; a latent outside of it, shared by all data,
    makes for one joint weight. `poutine.scale`, and so a warm-up, acts inside the weights.

    To write an objective of your own, return the loss, whose gradient may be another one than its
    derivative, from draws of the pair:

        class Variance(AbstractObjective):
            '''The variance of log w, which is zero at the posterior.'''

            def surrogate(self, pair):
                draws = pair.draw()
                return draws.total(draws.log_w.var(0))

    Args:
        num_particles: K, draws per datum.
        vectorize_particles: draw all particles in one call, under a plate left of all others.
            False for programs that cannot be broadcast: one call per particle.

    Raises:
        ValueError: a bad option; on use, sites of model and guide that do not match, or a latent
            that is not reparameterized where the objective needs that.
    """

    min_particles: ClassVar[int] = 1
    trains_model: ClassVar[bool] = True

    def __init__(self, num_particles: int = 1, *, vectorize_particles: bool = True) -> None:
        if not _is_count(num_particles) or num_particles < self.min_particles:
            raise ValueError(
                f"expected num_particles to be an integer of at least {self.min_particles} for "
                f"{type(self).__name__}, got {num_particles!r}"
            )
        if not isinstance(vectorize_particles, bool):
            raise ValueError(
                f"expected vectorize_particles to be True or False, got {vectorize_particles!r}"
            )
        super().__init__(num_particles=num_particles, vectorize_particles=vectorize_particles)
        self._inspected: tuple[Program, Program, int] | None = None

    @abstractmethod
    def surrogate(self, pair: Pair) -> Tensor:
        """The loss, a scalar in nats, to be differentiated with autograd."""

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """The loss, a scalar in nats, summed over the data, to be differentiated with autograd.

        Args:
            model: scores data.
            guide: samples every latent of the model.
            args: passed to both.
            kwargs: passed to both.
        """
        dim = self._particle_dim(model, guide, args, kwargs)
        return self.surrogate(Pair(model, guide, args, kwargs, self.num_particles, dim))

    @torch.no_grad()
    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data."""
        return self._value(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """The loss in nats, summed over the data; its gradients are added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward()
        return self._value(loss)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments it was made with."""
        return {
            "num_particles": self.num_particles,
            "vectorize_particles": self.vectorize_particles,
        }

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({options})"

    def _value(self, loss: Tensor) -> float:
        value = loss.item()
        warn_if_nan(value, "loss")
        return value

    def _particle_dim(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> int | None:
        """Left of all plates of the pair, which is inspected when it is new."""
        if self.num_particles == 1 or not self.vectorize_particles:
            return None
        if self._inspected is None or self._inspected[:2] != (model, guide):
            self._inspected = model, guide, plate_nesting(model, guide, args, kwargs)
        return -1 - self._inspected[2]

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        """One trace of each, for code of Pyro's that asks for it."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


def expect_number(name: str, value: float, *, at_least: float | None = None) -> float:
    """A finite number.

    Raises:
        ValueError: it is something else, or too small.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) < float("inf"):
        raise ValueError(f"expected a finite number {name}, got {value!r}")
    if at_least is not None and value < at_least:
        raise ValueError(f"expected {name} >= {at_least:g}, got {value!r}")
    return float(value)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
