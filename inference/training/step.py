"""One training step: the loss of a batch, its gradients and the update, or what forbids one."""

import math
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.interface import Differentiable, Objective
from evidence.inference.programs.data import Batch
from evidence.inference.programs.draws import slices
from evidence.inference.programs.evaluation import no_training
from evidence.inference.programs.random_state import isolated_rng, set_seed
from evidence.inference.programs.sites import observed_sites
from evidence.inference.programs.traces import Program, Traces, takes_subsamples
from evidence.inference.programs.validation import in_one_line, validated
from evidence.inference.training.data import TrainingData
from evidence.inference.training.first_steps import NUM_WATCHED, GradientWatch
from evidence.inference.training.minibatches import (
    ScaleData,
    data_dims,
    dims_of_data,
    shares_latents,
)
from evidence.inference.training.optimizer import JointOptim
from evidence.inference.training.ranks import ALONE, Ranks
from evidence.inference.training.shared_draws import ShareDraws
from evidence.inference.training.support import CheckSupport
from evidence.inference.training.tempering import TemperLatents, TemperLikelihood

# After the first epoch, every so many steps what a transform makes, or a dataset reads, is checked;
# it takes 3% of one.
_STEPS_PER_CHECK = 10
# With which the objective is looked at, and of how many data at a time.
_NUM_SEEDS, _DATA_AT_ONCE = 16, 4096


class TrainingStep:
    """Takes steps of `pyro.infer.SVI`, whose losses and gradients are per datum.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        data: what is trained on.
        objective: in nats, summed over the data.
        optim: of all parameters.
        batch_size: data per step.
        first: traces of the pair on the first batch.
        ranks: the processes that take every step together.
    """

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: TrainingData,
        objective: Objective,
        optim: JointOptim,
        *,
        batch_size: int,
        first: Traces,
        ranks: Ranks,
    ) -> None:
        self.model, self.guide, self.data, self.objective = model, guide, data, objective
        self.optim, self.batch_size, self.ranks = optim, batch_size, ranks
        batch = data.x_train[:batch_size]
        self.gradients = GradientWatch(_to_be_trained(optim.parameters, objective, first.guide))
        self.is_watched = True
        # Asked once: each time it would take as long as a dozen small tensor operations.
        self._differentiable = objective if isinstance(objective, Differentiable) else None
        self._svi = SVI(
            model, guide, optim, loss=objective.loss, loss_and_grads=self._loss_and_grads
        )
        self._plate_total = _plate_total(first.model, len(batch))
        self._data_dims = data_dims(model, len(data), batch, first)
        self._adds_up = ranks.size == 1
        self._dims = frozenset() if ranks.size == 1 else dims_of_data(model, batch, first)
        if ranks.size > 1 and shares_latents(first, len(batch)):  # a share of all data is scaled
            self._data_dims = self._dims
        self._takes_subsamples = takes_subsamples(first.model, batch)

    def take(self, x: Batch, *, number: int, is_first_epoch: bool, weights: "Weights") -> float:
        """Step on a batch; returns its loss in nats per datum.

        Args:
            x: the batch.
            number: of steps before.
            is_first_epoch: whether these data are trained on for the first time.
            weights: of the warm-ups.

        Raises:
            FloatingPointError: loss or gradient is not finite; nothing was updated.
            InvalidArgumentError: a distribution refused its parameters; nothing was updated.
        """
        if not self._adds_up:
            self._expect_shares_to_add_up(x)
            self._adds_up = True
        self.is_watched = number < NUM_WATCHED
        is_due = is_first_epoch or number % _STEPS_PER_CHECK == 0
        is_unseen = self._takes_subsamples or (self.data.is_unseen and is_due)
        with (
            weights.tempered(),
            validated(x) if self.is_watched else in_one_line(x),  # Pyro's guards take time
            CheckSupport() if is_unseen else nullcontext(),
        ):
            return self._svi.step(x)

    def _loss_and_grads(self, model: Program, guide: Program, x: Batch) -> float:
        """What SVI calls for a step: loss and gradients per datum; stops before a ruinous update.

        Parameters are hidden from SVI, which would look for them in Pyro's store by name, where
        two modules can meet; `JointOptim` knows them all.
        """
        loss = self._shared(self.ranks, model, guide, x)
        if not math.isfinite(loss):
            self.optim.zero_grad()
            raise FloatingPointError(f"the loss is {loss}")
        if self.is_watched:
            self.gradients.observe(self.optim.parameters, x)
        return loss

    def _shared(self, ranks: Ranks, model: Program, guide: Program, x: Batch) -> float:
        """The loss of a batch, of which every process takes a share, and its gradients."""
        total, parameters = len(x), self.optim.parameters.values()
        part = x if ranks.size == 1 else x[ranks.share(total)]
        size = len(part)
        num_data = self._plate_total or (len(self.data) if self._data_dims else size)
        is_shared = self.ranks.size > 1  # also where one alone takes all
        draws = ShareDraws(self._dims, ranks.share(total), total) if is_shared else nullcontext()
        with (
            poutine.block(hide_types=["param"]),
            self._scaled(size),
            draws,
        ):
            if isinstance(self.objective, Compiled):
                loss = self.objective.mean_loss_and_grads(num_data, model, guide, part)
            elif self._differentiable is None:
                loss = self.objective.loss_and_grads(model, guide, part) / num_data
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad /= num_data
            else:
                surrogate = self._differentiable.differentiable_loss(model, guide, part) / num_data
                loss = surrogate.item()
                if math.isfinite(loss):
                    surrogate.backward()
        loss = ranks.mean(loss, total)
        if math.isfinite(loss):  # of all processes, or of none
            ranks.average(parameters, total)
        return loss

    def _expect_shares_to_add_up(self, x: Batch) -> None:
        """Check on a batch that what the processes do together is what one does.

        Raises:
            ValueError: it is not.
        """
        found = []
        for ranks in (ALONE, self.ranks):
            with isolated_rng(device=x.device), in_one_line(x):
                self._shared(ranks, self.model, self.guide, x)
            gradients = [p.grad for p in self.optim.parameters.values() if p.grad is not None]
            found.append(torch.cat([gradient.flatten().double() for gradient in gradients]))
            dtype = gradients[0].dtype
            self.optim.zero_grad()
        whole, shared = found
        if not (whole - shared).norm() <= torch.finfo(dtype).eps ** 0.5 * whole.norm():
            raise ValueError(
                "the gradients of shares of a minibatch do not add up to those of all of it, as "
                "they do where every datum is scored by itself, inside the plate over the data "
                "(batch normalization and dropout are not): train it in one process"
            )

    @torch.no_grad()
    def loss(self, x: Batch, seed: int) -> float:
        """The objective of a batch in nats, under a seed; draws nothing from training's own."""
        with self._looking(x.device), self._scaled(len(x)):
            set_seed(seed)
            return self.objective.loss(self.model, self.guide, x)

    @torch.no_grad()
    def losses(self) -> Tensor:
        """The objective of all training data in nats, as it is under several fixed seeds: `[R]`."""
        data, size = self.data, max(self.batch_size, _DATA_AT_ONCE)
        total = torch.zeros(_NUM_SEEDS, dtype=torch.float64)
        with self._looking(data.device):
            for rows in slices(len(data), size):  # read once, and what is shared drawn alike
                x = data.x_train[rows]
                share = len(x) / len(data) if self._data_dims else 1.0
                for seed in range(_NUM_SEEDS):
                    set_seed(seed)
                    with self._scaled(len(x)):
                        loss = self.objective.loss(self.model, self.guide, data.transformed(x))
                        total[seed] += share * loss
        return total

    @contextmanager
    def _looking(self, device: torch.device) -> Generator[None]:
        with (
            isolated_rng(device=device),
            no_training(self.model, self.guide),
            poutine.block(hide_types=["param"]),
        ):
            yield

    def _scaled(self, size: int) -> AbstractContextManager:
        """A batch of so many data standing for all, where these share latents."""
        if not self._data_dims:
            return nullcontext()
        return ScaleData(self._data_dims, size, len(self.data))


@dataclass(frozen=True)
class Weights:
    """Of the terms of the ELBO: below one while a warm-up is under way."""

    kl: float
    likelihood: float

    @contextmanager
    def tempered(self) -> Generator[None]:
        """The terms so weighted."""
        with (
            TemperLatents(self.kl) if self.kl < 1 else nullcontext(),
            TemperLikelihood(self.likelihood) if self.likelihood < 1 else nullcontext(),
        ):
            yield


def _plate_total(model_trace: Trace, size: int) -> int | None:
    """N of the plate over the data, if a batch is a subsample of it: the loss stands for all N."""
    observed = observed_sites(model_trace).values()
    frames = [frame for site in observed for frame in site["cond_indep_stack"]]
    subsampled = (f.full_size for f in frames if f.size == size and f.full_size not in (None, size))
    return next(subsampled, None)


def _to_be_trained(names: Iterable[str], objective: Objective, guide_trace: Trace) -> list[str]:
    """The parameters that the objective trains: some leave the model's alone."""
    if getattr(objective, "trains_model", True):
        return list(names)
    of_functions = {f"param.{n}" for n, s in guide_trace.nodes.items() if s["type"] == "param"}
    return [name for name in names if name.startswith("guide.") or name in of_functions]
