"""What objectives have in common: Pyro's interface, particles, and how to write another one."""

import inspect
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from pyro.util import warn_if_nan
from torch import Tensor

from evidence.inference.objectives.draws import Pair
from evidence.inference.programs.broadcasting import broadcasts, warn_one_by_one
from evidence.inference.programs.data import Batch, Data, takes, unwrapped
from evidence.inference.programs.evaluation import no_training
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import (
    Layout,
    Program,
    check_batch_shapes,
    common_plate,
    outermost_dim,
    trace_pair,
)


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

    All particles are drawn in one call, under a plate left of all others, where a probe of the pair
    shows that it broadcasts over them rightly; else in one call each.

    Args:
        num_particles: K, draws per datum; None for what is usual for the objective.

    Raises:
        ValueError: a bad option; on use, sites of model and guide that do not match, or a latent
            that is not reparameterized where the objective needs that.
    """

    min_particles: ClassVar[int] = 1
    default_particles: ClassVar[int] = 1
    trains_model: ClassVar[bool] = True

    def __init__(self, num_particles: int | None = None) -> None:
        num_particles = self.default_particles if num_particles is None else num_particles
        if not _is_count(num_particles) or num_particles < self.min_particles:
            raise ValueError(
                f"expected num_particles to be an integer of at least {self.min_particles} for "
                f"{type(self).__name__}, got {num_particles!r}"
            )
        super().__init__(num_particles=num_particles)
        self._probed_pair: tuple[Program, Program] | None = None
        self._probed: dict[int, int | None] = {}  # particle dims, by the number of data

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
        is_batch = len(args) == 1 and not kwargs and isinstance(args[0], Batch)
        data = args[0] if is_batch else Data(args, kwargs)
        if not is_batch:
            model, guide = takes(model, data), takes(guide, data)
        dim = self._particle_dim(model, guide, data)
        return self.surrogate(Pair(model, guide, data, self.num_particles, dim))

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
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({options})"

    def _value(self, loss: Tensor) -> float:
        return warn_if_nan(loss.detach(), "loss").item()

    def _particle_dim(self, model: Program, guide: Program, data: Batch) -> int | None:
        """Left of all plates of a pair that broadcasts over particles, which is asked once."""
        if self.num_particles == 1:
            return None
        pair = unwrapped(model), unwrapped(guide)
        if self._probed_pair != pair:
            self._probed_pair, self._probed = pair, {}
        if len(data) not in self._probed:
            self._probed[len(data)] = _probe(model, guide, data, self.num_particles)
        return self._probed[len(data)]

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        """One trace of each, for code of Pyro's that asks for it."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


@torch.no_grad()
def _probe(model: Program, guide: Program, data: Batch, num_particles: int) -> int | None:
    """The dim for a plate of particles, or None if the pair does not broadcast over them.

    Its runs leave no trace. Raises ValueError for a site whose batch dims belong to no plate.
    """
    with isolated_rng(device=data.device), poutine.block(), no_training(model, guide):
        traces = trace_pair(model, guide, data)
        check_batch_shapes(traces)
        plate, dim = common_plate(traces), outermost_dim(traces) - 1
        layout = Layout(None if plate is None else plate.dim, dim)
        num_data = 1 if plate is None else plate.size
        probed = broadcasts(model, guide, data, num_particles, layout, num_data=num_data)
    if probed is None:
        warn_one_by_one()
    return None if probed is None else dim


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
