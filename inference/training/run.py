"""One training run: its steps and epochs, its snapshots, and how it goes on from one."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.interface import Differentiable, Objective
from evidence.inference.programs.data import Batch
from evidence.inference.programs.draws import slices
from evidence.inference.programs.evaluation import no_training
from evidence.inference.programs.parameters import tensors_of, trainable_parameters
from evidence.inference.programs.random_state import isolated_rng, rng_state, set_rng_state
from evidence.inference.programs.sites import observed_sites
from evidence.inference.programs.traces import Program, Traces, takes_subsamples
from evidence.inference.programs.validation import InvalidArgumentError, in_one_line, validated
from evidence.inference.programs.weights import log_prob_terms
from evidence.inference.training.averaging import IterateAverages, UntilConverged
from evidence.inference.training.first_steps import NUM_WATCHED, GradientWatch
from evidence.inference.training.history import EpochRecord, History
from evidence.inference.training.minibatches import ScaleData, data_dims
from evidence.inference.training.non_finite import (
    NonFiniteLossError,
    likely_cause,
    non_finite_parameter,
)
from evidence.inference.training.optimizer import (
    JointOptim,
    MakeOptimizer,
    MakeScheduler,
    Schedule,
    describe_maker,
)
from evidence.inference.training.options import TrainingOptions
from evidence.inference.training.snapshots import Snapshot, copy_into, matching, within
from evidence.inference.training.state import Position, expect_same_run, position_of
from evidence.inference.training.stopping import Plateau, UntilFlat
from evidence.inference.training.support import CheckSupport
from evidence.inference.training.tempering import TemperLatents, TemperLikelihood

# What a crash may cost at the most, whatever a step takes.
_SECONDS_UNSAVED = 10.0
# After the first epoch, every so many steps what a transform makes is checked; it takes 3% of one.
_STEPS_PER_CHECK = 10
# With which the objective is looked at, and of how many data at a time.
_NUM_SEEDS, _DATA_AT_ONCE = 16, 4096


class ScalarWriter(Protocol):
    """What `fit` needs of a TensorBoard `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Log one value."""


@dataclass(frozen=True)
class TrainingData:
    """What is trained on, and what else there is to look at."""

    x_train: Batch
    x_test: Batch | None
    held_out: Batch | None
    transform: Callable[[Any], Any] | None

    def batch(self, rows: Tensor | slice) -> Batch:
        """Rows of the training data, as they are trained on."""
        x = self.x_train[rows]
        return x if self.transform is None else self.transform(x)


class Makers(NamedTuple):
    """What makes the optimizer and its scheduler."""

    optimizer: MakeOptimizer
    scheduler: MakeScheduler | None


class TrainingRun:
    """One training run, from its first step or from a snapshot."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        data: TrainingData,
        options: TrainingOptions,
        objective: Objective,
        makers: Makers,
        writer: ScalarWriter | None,
        first: Traces,
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.data, self.options, self.makers, self.writer = data, options, makers, writer
        self.position = Position()
        self.parameters = trainable_parameters(model, guide)
        if not self.parameters:
            raise ValueError(
                "model and guide have no trainable parameters: there is nothing to fit"
            )
        self.optim = JointOptim(
            self.parameters, lr=options.lr, make=makers.optimizer, clip_norm=options.clip_norm
        )
        self.svi = SVI(
            model, guide, self.optim, loss=objective.loss, loss_and_grads=self._loss_and_grads
        )
        batch = data.x_train[: options.batch_size]
        self.plate_total = _plate_total(first.model, len(batch))
        self.data_dims = data_dims(model, data.x_train, batch, first)
        self.takes_subsamples = takes_subsamples(first.model, batch)
        self.gradients = GradientWatch(_to_be_trained(self.parameters, objective, first.guide))
        self.steps_per_epoch = math.ceil(len(data.x_train) / options.batch_size)
        self.best: dict[str, Tensor] | None = None  # where held-out data say which is
        self.last_batch: Batch | None = None
        self.last_snapshot = time.monotonic()
        self.averages: IterateAverages | None = None
        if options.averages and isinstance(options.until, UntilConverged):
            self.averages = IterateAverages(
                options.until,
                self.parameters.values(),
                self.losses,
                steps_per_epoch=self.steps_per_epoch,
                warmup_epochs=options.warmup_epochs,
            )
        self._start_schedule([])
        for x in (data.x_test, data.held_out):
            if x is not None:
                self._test_terms(x)  # what is wrong with them shows before an epoch is trained

    def train(self, progress: bool, on_snapshot: Callable[[Snapshot], None] | None) -> History:
        """Take every step that is left."""
        max_epochs = self.options.max_epochs(self.steps_per_epoch)
        total = None if self.options.is_until else max_epochs * self.steps_per_epoch
        total = self.options.num_steps or total
        with tqdm(total=total, initial=self.steps_done, disable=not progress, unit="step") as bar:
            while self.position.epoch < max_epochs and not self._has_ended():
                for loss in self._epoch():
                    bar.set_description(f"epoch {self.position.epoch + 1}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.2f} nats per datum", refresh=False)
                    bar.update()
                    if on_snapshot and self._snapshot_is_due():
                        on_snapshot(self.snapshot())
                        self.last_snapshot = time.monotonic()
                self._end_epoch()
        self.gradients.warn()
        if self.averages is not None and not self.averages.has_ended:
            self.averages.settle()
        self._expect_finite_end()
        if on_snapshot:
            on_snapshot(self.snapshot())
        if self.best is not None:
            copy_into(tensors_of(self.model, self.guide), self.best)
        return self.history

    @property
    def history(self) -> History:
        """The epochs behind it."""
        return History.from_rows(self.position.history)

    def _has_ended(self) -> bool:
        ended = self.plateau.is_flat if self.averages is None else self.averages.has_ended
        return self.options.is_until and ended

    def _snapshot_is_due(self) -> bool:
        waited = time.monotonic() - self.last_snapshot
        return self.steps_done % self.options.snapshot_every == 0 or waited > _SECONDS_UNSAVED

    @property
    def steps_done(self) -> int:
        """Training steps since the start of the run."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def _start_schedule(self, epochs: list[EpochRecord]) -> None:
        """The learning rate after these epochs: it depends on their losses alone."""
        self.schedule: Schedule | None = None
        if self.makers.scheduler is not None:
            self.schedule = Schedule(self.optim, self.makers.scheduler)
        until = self.options.until
        self.plateau = Plateau(
            until if isinstance(until, UntilFlat) else UntilFlat(),
            steps_per_epoch=self.steps_per_epoch,
            warmup_epochs=self.options.warmup_epochs,
        )
        for record in epochs:
            self._observe(record.judged_loss)

    def _observe(self, loss: float) -> None:
        self.plateau.observe(loss)
        if self.schedule is not None:
            self.schedule.step(loss)

    def _lr(self) -> float:
        """The learning rate of this epoch, where no scheduler sets it."""
        rule = self.plateau if self.averages is None else self.averages
        factor = rule.lr_factor if self.options.is_until else 1.0
        return self.options.lr * self.options.lr_decay**self.position.epoch * factor

    def _epoch(self) -> Iterator[float]:
        """Take the steps that are left of this epoch; yields each loss, in nats per datum."""
        at, options, x_train = self.position, self.options, self.data.x_train
        if self.schedule is None:
            self.optim.set_lr(self._lr())
        # The order depends on seed and epoch alone: a resumed run needs no sampler state.
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + at.epoch)
        order = torch.randperm(len(x_train), generator=generator).to(x_train.device)
        if options.batch_size >= len(x_train):  # a guide may have a parameter per datum
            order = order.sort().values
        for rows in order.split(options.batch_size)[at.step :]:
            if options.num_steps is not None and self.steps_done >= options.num_steps:
                return
            started = time.perf_counter()
            self.last_batch = self.data.batch(rows)
            loss = self._step(self.last_batch)
            at.seconds += time.perf_counter() - started
            at.loss_sum += loss * len(rows)
            at.num_rows += len(rows)
            at.step += 1
            if self.averages is not None:
                self.averages.after_step()
            yield loss

    def _step(self, x: Batch) -> float:
        try:
            with self._tempered(), self._guarded(x):
                return self.svi.step(x)
        except (FloatingPointError, InvalidArgumentError) as error:
            raise NonFiniteLossError(self._stopped(str(error), x)) from None

    @contextmanager
    def _guarded(self, x: Batch) -> Generator[None]:
        """Pyro's guards, which take time, for the first steps; data that no check has seen."""
        with (
            validated(x) if self.steps_done < NUM_WATCHED else in_one_line(x),
            CheckSupport() if self._has_unseen_data() else nullcontext(),
        ):
            yield

    def _has_unseen_data(self) -> bool:
        """Whether to check this batch: what a transform makes, for an epoch, then now and then."""
        is_due = self.position.epoch == 0 or self.steps_done % _STEPS_PER_CHECK == 0
        return self.takes_subsamples or (self.data.transform is not None and is_due)

    def _loss_and_grads(self, model: Program, guide: Program, x: Batch) -> float:
        """What SVI calls for a step: loss and gradients per datum; stops before a ruinous update.

        Parameters are hidden from SVI, which would look for them in Pyro's store by name, where
        two modules can meet; `JointOptim` knows them all.
        """
        num_data = self.plate_total or (len(self.data.x_train) if self.data_dims else len(x))
        with poutine.block(hide_types=["param"]), self._scaled(len(x)):
            if isinstance(self.objective, Compiled):
                loss = self.objective.mean_loss_and_grads(num_data, model, guide, x)
            elif not isinstance(self.objective, Differentiable):
                loss = self.objective.loss_and_grads(model, guide, x) / num_data
                for parameter in self.parameters.values():
                    if parameter.grad is not None:
                        parameter.grad /= num_data
            else:
                surrogate = self.objective.differentiable_loss(model, guide, x) / num_data
                loss = surrogate.item()
                if math.isfinite(loss):
                    surrogate.backward()
        if not math.isfinite(loss):
            self.optim.zero_grad()
            raise NonFiniteLossError(self._stopped(f"the loss is {loss}", x))
        if self.steps_done < NUM_WATCHED:
            self.gradients.observe(self.parameters, x)
        return loss

    def _scaled(self, size: int) -> AbstractContextManager:
        """A batch of so many data standing for all, where these share latents."""
        if not self.data_dims:
            return nullcontext()
        return ScaleData(self.data_dims, size, len(self.data.x_train))

    @contextmanager
    def _tempered(self) -> Generator[None]:
        """The warm-ups that are under way."""
        kl, likelihood = self._kl_weight(), self._weight(self.options.likelihood_warmup_epochs)
        with (
            TemperLatents(kl) if kl < 1 else nullcontext(),
            TemperLikelihood(likelihood) if likelihood < 1 else nullcontext(),
        ):
            yield

    def _kl_weight(self) -> float:
        return self._weight(self.options.kl_warmup_epochs)

    def _weight(self, warmup_epochs: float) -> float:
        """Rises from 0 to 1 within so many epochs."""
        if warmup_epochs == 0:
            return 1.0
        return min(1.0, (self.steps_done + 1) / (warmup_epochs * self.steps_per_epoch))

    def _end_epoch(self) -> None:
        at, data = self.position, self.data
        self._expect_finite_parameters()
        if self.averages is not None:
            self.averages.after_epoch()
        test_loss = reconstruction = kl = held_out_loss = None
        if data.x_test is not None:
            reconstruction, kl = self._test_terms(data.x_test)
            test_loss = kl - reconstruction
        if data.held_out is not None:
            reconstruction_there, kl_there = self._test_terms(data.held_out)
            held_out_loss = kl_there - reconstruction_there
        record = EpochRecord(
            epoch=at.epoch + 1,
            train_loss=at.loss_sum / at.num_rows,
            beta=self._kl_weight(),
            test_loss=test_loss,
            reconstruction=reconstruction,
            kl=kl,
            seconds=at.seconds,
            num_steps=at.step,
            held_out_loss=held_out_loss,
            lr=self.optim.lr,
        )
        self._observe(record.judged_loss)
        ended = self._has_ended()
        record = replace(record, is_flat=ended, is_average=ended and self.averages is not None)
        if self.writer is not None:
            _log(self.writer, record)
        self.position = Position(at.epoch + 1, history=[*at.history, asdict(record)])
        if held_out_loss is not None and self.history.best_epoch == record.epoch:
            self.best = _copies(tensors_of(self.model, self.guide))

    @torch.no_grad()
    def losses(self) -> Tensor:
        """The objective of all training data in nats, as it is under several fixed seeds: `[R]`."""
        data, size = self.data, max(self.options.batch_size, _DATA_AT_ONCE)
        total = torch.zeros(_NUM_SEEDS, dtype=torch.float64)
        with (
            isolated_rng(device=data.x_train.device),
            no_training(self.model, self.guide),
            poutine.block(hide_types=["param"]),
        ):
            for seed in range(_NUM_SEEDS):
                pyro.set_rng_seed(seed)
                for rows in slices(len(data.x_train), size):
                    x = data.batch(rows)
                    share = len(x) / len(data.x_train) if self.data_dims else 1.0
                    with self._scaled(len(x)):
                        total[seed] += share * self.objective.loss(self.model, self.guide, x)
        return total

    def _test_terms(self, x: Batch) -> tuple[float, float]:
        """Reconstruction and KL on other data; draws nothing from the training's randomness."""
        with isolated_rng(self.options.seed, x.device):
            terms = log_prob_terms(self.model, self.guide, x)
        # Per datum, also where there is one weight for all.
        per_datum = terms.log_p_x.shape[1] / len(x)
        kl = (terms.log_q_z - terms.log_p_z).double().mean().item()
        return terms.log_p_x.double().mean().item() * per_datum, kl * per_datum

    def snapshot(self) -> Snapshot:
        """The run as it is now; with held-out data, its parameters are the best so far.

        Raises:
            NonFiniteLossError: the last update ruined the parameters.
        """
        self._expect_finite_parameters()
        tensors = tensors_of(self.model, self.guide)
        if self.best is not None:
            tensors = self.best | {f"last.{n}": t for n, t in tensors.items()}
        tensors = tensors | {f"optimizer.{n}": t for n, t in self.optim.get_state().items()}
        tensors |= {f"rng.{n}": t for n, t in rng_state(self.data.x_train.device).items()}
        if self.averages is not None:
            tensors |= {f"averages.{n}": t for n, t in self.averages.get_state().items()}
        meta = {
            "identity": self._identity(),
            "trained": list(self.parameters),
            "position": asdict(self.position),
        }
        return Snapshot(_copies(tensors), meta)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot, all of which is looked at before any of it is used.

        Raises:
            ValueError: the snapshot is of another run.
        """
        position = position_of(snapshot, self.steps_per_epoch, self.options.num_epochs)
        expect_same_run(snapshot, self._identity(), list(self.parameters))
        state, device = tensors_of(self.model, self.guide), self.data.x_train.device
        kept = matching(snapshot.tensors, state)
        last = within("last.", snapshot.tensors)
        current = matching(last, state) if last else kept
        set_rng_state(within("rng.", snapshot.tensors), device)
        self.optim.set_state(within("optimizer.", snapshot.tensors))
        if self.averages is not None:
            self.averages.set_state(within("averages.", snapshot.tensors))
        copy_into(state, current)
        self.best = _copies(kept) if last else None
        self.position = position
        self._start_schedule(self.history.epochs)

    def _identity(self) -> dict[str, Any]:
        """What must agree for a run to be gone on with; more epochs are no other run."""
        varying = ("num_epochs", "until", "max_steps", "snapshot_every")
        options = {k: v for k, v in asdict(self.options).items() if k not in varying}
        return {
            **options,
            "until": repr(self.options.until),
            "optimizer": describe_maker(self.makers.optimizer),
            "scheduler": describe_maker(self.makers.scheduler),
            "objective": _describe(self.objective),
            "num_data": len(self.data.x_train),
            "num_held_out": 0 if self.data.held_out is None else len(self.data.held_out),
        }

    def _expect_finite_parameters(self) -> None:
        """Look at what the last update made: no step has used it yet."""
        norm = torch.nn.utils.get_total_norm(self.parameters.values())
        if torch.isfinite(norm) or (name := non_finite_parameter(self.parameters)) is None:
            return
        raise NonFiniteLossError(
            f"parameter {name} is not finite after the update of {self._where()}: {self._advice()}"
        )

    @torch.no_grad()
    def _expect_finite_end(self) -> None:
        """The last update, on the batch that it was made for: no step is left to look at it."""
        if self.last_batch is None:
            return
        with (
            isolated_rng(self.options.seed, self.last_batch.device),
            no_training(self.model, self.guide),
            poutine.block(hide_types=["param"]),
            self._scaled(len(self.last_batch)),
        ):
            loss = self.objective.loss(self.model, self.guide, self.last_batch)
        if not math.isfinite(loss):
            raise NonFiniteLossError(f"the loss is {loss} after the last update: {self._advice()}")

    def _where(self) -> str:
        at = self.position
        return f"epoch {at.epoch + 1}, step {at.step + 1} of {self.steps_per_epoch}"

    def _stopped(self, what: str, x: Batch) -> str:
        cause = likely_cause(
            self.model,
            self.guide,
            x,
            self.parameters,
            was_updated=self.steps_done > 0,
            advice=self._advice(),
        )
        return f"{what} at {self._where()}; stopped before the update. {cause}"

    def _advice(self) -> str:
        lower = f"lower the learning rate (lr = {self.options.lr:g})"
        return lower + (" or set clip_norm" if self.options.clip_norm is None else "")


def _describe(objective: Objective) -> str:
    """An objective and its options, as far as it tells them: Pyro's own do not."""
    if isinstance(objective, Compiled):
        return _describe(objective.objective)
    if isinstance(objective, AbstractObjective):
        return repr(objective)
    return f"{type(objective).__name__}(num_particles={getattr(objective, 'num_particles', 1)})"


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


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _log(writer: ScalarWriter, record: EpochRecord) -> None:
    for name, value in asdict(record).items():
        if name != "epoch" and value is not None:
            writer.add_scalar(name, value, record.epoch)
