"""What objectives have in common: Pyro's interface, particles, and how to write another one."""

import inspect
from abc import abstractmethod
from typing import Any, ClassVar, NamedTuple

import pyro
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
from evidence.inference.programs.mapping import mapped
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import (
    Layout,
    Program,
    check_batch_shapes,
    common_plate,
    outermost_dim,
    takes_subsamples,
    trace_pair,
)
from evidence.inference.programs.validation import Unvalidated


class AbstractObjective(ELBO):
    """A loss to minimize over the parameters of a model and a guide, any pair of Pyro callables.

    It goes wherever Pyro's objectives go: `SVI(model, guide, optim, loss=IWAE())`,
    `IWAE()(model, guide)(x).backward()`, `fit(model, guide, x, objective=IWAE())`.

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
    shows that it broadcasts over them rightly; else, if the loss is a mean over particles, in one
    call by `torch.vmap`; else in one call each.

    Args:
        num_particles: K, draws per datum; None for what is usual for the objective.

    Raises:
        ValueError: a bad option; on use, sites of model and guide that do not match, or a latent
            that is not reparameterized where the objective needs that.
    """

    min_particles: ClassVar[int] = 1
    default_particles: ClassVar[int] = 1
    trains_model: ClassVar[bool] = True
    is_mean: ClassVar[bool] = False  # whether the loss of K particles is the mean of K losses
    draws_particles: ClassVar[bool] = True  # whether by runs of the pair under a plate, or alone

    def __init__(self, num_particles: int | None = None) -> None:
        num_particles = self.default_particles if num_particles is None else num_particles
        if not _is_count(num_particles) or num_particles < self.min_particles:
            raise ValueError(
                f"expected num_particles to be an integer of at least {self.min_particles} for "
                f"{type(self).__name__}, got {num_particles!r}"
            )
        super().__init__(num_particles=num_particles)
        self._probed_pair: tuple[Program, Program] | None = None
        self._probed: dict[int, _Way] = {}  # by the number of data

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
        way = self._way(model, guide, data)
        if way.is_mapped:
            try:
                alone = Pair(model, guide, data, 1, None)
                return mapped(lambda: self.surrogate(alone), self.num_particles).mean()
            except RuntimeError:
                pass  # what vmap refuses, such as the checks of Pyro's validation
        return self.surrogate(Pair(model, guide, data, self.num_particles, way.particle_dim))

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

    def _way(self, model: Program, guide: Program, data: Batch) -> "_Way":
        """How particles of this pair are drawn, which is asked once."""
        if self.num_particles == 1 or not self.draws_particles:
            return _Way(None, False)
        pair = unwrapped(model), unwrapped(guide)
        if self._probed_pair != pair:
            self._probed_pair, self._probed = pair, {}
        if len(data) not in self._probed:
            self._probed[len(data)] = self._probe(model, guide, data)
        return self._probed[len(data)]

    @torch.no_grad()
    def _probe(self, model: Program, guide: Program, data: Batch) -> "_Way":
        """Try the ways, the fastest one first; the runs leave no trace.

        Raises:
            ValueError: a site has batch dims that belong to no plate.
        """
        with isolated_rng(device=data.device), poutine.block(), no_training(model, guide):
            traces = trace_pair(model, guide, data)
            check_batch_shapes(traces)
            plate, dim = common_plate(traces), outermost_dim(traces) - 1
            layout = Layout(None if plate is None else plate.dim, dim)
            num_data = 1 if plate is None else plate.size
            if broadcasts(model, guide, data, self.num_particles, layout, num_data=num_data):
                return _Way(dim, False)
            alone = Pair(model, guide, data, 1, None)
            if not takes_subsamples(traces.model, data) and self._can_be_mapped(alone):
                return _Way(None, True)
        warn_one_by_one()
        return _Way(None, False)

    def _can_be_mapped(self, pair: Pair) -> bool:
        """Whether the loss is a mean over particles, and nothing of the pair is refused by vmap."""
        if not self.is_mean:
            return False
        try:
            with pyro.validation_enabled(False), Unvalidated():
                mapped(lambda: self.surrogate(pair), 2)
        except Exception:  # whatever a program raises that was not written for it
            return False
        return True

    def _get_trace(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Trace, Trace]:
        """One trace of each, for code of Pyro's that asks for it."""
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class _Way(NamedTuple):
    """How K particles are drawn: under a plate, by vmap, or, with neither, one after the other."""

    particle_dim: int | None
    is_mapped: bool


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
