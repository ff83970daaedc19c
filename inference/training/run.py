"""One training run: its steps and epochs, from the first or from a snapshot."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, Protocol

from tqdm import tqdm

from evidence.inference.objectives.interface import Objective
from evidence.inference.programs.data import Batch
from evidence.inference.programs.parameters import fan_ins, trainable_parameters
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.stored import StoredData
from evidence.inference.programs.traces import Program, Traces
from evidence.inference.programs.validation import InvalidArgumentError
from evidence.inference.programs.weights import log_prob_terms
from evidence.inference.training.averaging import IterateAverages, UntilConverged
from evidence.inference.training.data import TrainingData
from evidence.inference.training.history import EpochRecord, History, NotConvergedWarning
from evidence.inference.training.identity import Makers, identity_of
from evidence.inference.training.learning_rate import LearningRate
from evidence.inference.training.non_finite import (
    NonFiniteLossError,
    likely_cause,
    non_finite_parameter,
)
from evidence.inference.training.optimizer import JointOptim, joint_norm
from evidence.inference.training.options import TrainingOptions
from evidence.inference.training.ranks import Ranks
from evidence.inference.training.snapshots import Saver, Snapshot
from evidence.inference.training.state import Position, TrainingState
from evidence.inference.training.step import TrainingStep, Weights


class ScalarWriter(Protocol):
    """What `fit` needs of a TensorBoard `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any:
        """Log one value."""


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
        ranks: Ranks,
    ) -> None:
        self.model, self.guide, self.objective = model, guide, objective
        self.data, self.options, self.makers, self.ranks = data, options, makers, ranks
        self.writer = writer if ranks.is_first else None
        self.steps_per_epoch = data.num_batches(options.batch_size)
        self.parameters = trainable_parameters(model, guide)
        if not self.parameters:
            raise ValueError(
                "model and guide have no trainable parameters: there is nothing to fit"
            )
        self.optim = JointOptim(
            self.parameters,
            lr=options.lr,
            make=makers.optimizer,
            clip_norm=options.clip_norm,
            divisors=fan_ins(model, guide) if options.averages else None,
        )
        self.step = TrainingStep(
            model,
            guide,
            data,
            objective,
            self.optim,
            batch_size=options.batch_size,
            first=first,
            ranks=ranks,
        )
        self.averages = self._averages()
        self.state = TrainingState(model, guide, self.optim, self.averages, data.device)
        self.rate = self._rate()
        self.last_batch: Batch | None = None
        for x in (data.x_test, data.held_out):
            if x is not None:
                self._test_terms(x)  # what is wrong with them shows before an epoch is trained

    def train(self, progress: bool, on_snapshot: Callable[[Snapshot], None] | None) -> History:
        """Take every step that is left."""
        wanted = on_snapshot if self.ranks.is_first else None
        saver = Saver(wanted, every=self.options.snapshot_every)
        progress = progress and self.ranks.is_first
        max_epochs = self.options.max_epochs(self.steps_per_epoch)
        total = None if self.options.is_until else max_epochs * self.steps_per_epoch
        total = self.options.num_steps or total
        with tqdm(total=total, initial=self.steps_done, disable=not progress, unit="step") as bar:
            while self.position.epoch < max_epochs and not self.rate.has_ended:
                for loss in self._epoch():
                    bar.set_description(f"epoch {self.position.epoch + 1}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.2f} nats per datum", refresh=False)
                    bar.update()
                    saver.after_step(self.steps_done, self.snapshot)
                self._end_epoch()
        self.step.gradients.warn()
        self._mark_end()
        if self.averages is not None and not self.averages.has_ended:
            self.averages.settle()
        self._expect_finite_end()
        saver.save(self.snapshot)
        self.state.put_best()
        return self.history

    def _mark_end(self) -> None:
        """Say whether it was `max_steps` that ended training, and which epoch ended with it."""
        epochs = self.history.epochs
        for number, record in enumerate(epochs):
            if record.is_capped:  # by an earlier end, that has been gone on from
                epochs[number] = replace(record, is_capped=False)
        if self.options.is_until and not self.rate.has_ended:
            epochs[-1] = replace(epochs[-1], is_capped=True)
            warnings.warn(str(self.history.not_converged), NotConvergedWarning, stacklevel=4)

    @property
    def position(self) -> Position:
        """Where the run is."""
        return self.state.position

    @property
    def history(self) -> History:
        """The epochs behind it."""
        return History(self.position.history)

    @property
    def steps_done(self) -> int:
        """Training steps since the start of the run."""
        return self.position.epoch * self.steps_per_epoch + self.position.step

    def _averages(self) -> IterateAverages | None:
        """Of the iterates, if training ends with one."""
        options = self.options
        if not (options.averages and isinstance(options.until, UntilConverged)):
            return None
        return IterateAverages(
            options.until,
            self.parameters.values(),
            self.step.losses,
            steps_per_epoch=self.steps_per_epoch,
            warmup_epochs=options.warmup_epochs,
        )

    def _rate(self) -> LearningRate:
        """The learning rate after the epochs behind."""
        return LearningRate(
            self.options,
            self.optim,
            self.makers.scheduler,
            self.averages,
            steps_per_epoch=self.steps_per_epoch,
            behind=self.history.epochs,
        )

    def _epoch(self) -> Iterator[float]:
        """Take the steps that are left of this epoch; yields each loss, in nats per datum."""
        at, options = self.position, self.options
        self.rate.set(at.epoch)
        # The order depends on seed and epoch alone: a resumed run needs no sampler state.
        seed = options.seed * 1_000_003 + at.epoch
        batches = self.data.batches(options.batch_size, seed, at.step)
        while options.num_steps is None or self.steps_done < options.num_steps:
            started = time.perf_counter()
            x = next(batches, None)
            if x is None:
                return
            self.last_batch, loss = x, self._step(x)
            at.seconds += time.perf_counter() - started
            num_rows = len(x)
            at.loss_sum += loss * num_rows
            at.num_rows += num_rows
            at.step += 1
            if self.averages is not None:
                self.averages.after_step()
            yield loss

    def _step(self, x: Batch) -> float:
        """One step, or the reason why there was none, in nats per datum."""
        is_first_epoch, number = self.position.epoch == 0, self.steps_done
        try:
            return self.step.take(
                x, number=number, is_first_epoch=is_first_epoch, weights=self._weights()
            )
        except (FloatingPointError, InvalidArgumentError) as error:
            raise NonFiniteLossError(self._stopped(str(error), x)) from None

    def _weights(self) -> Weights:
        """Of the warm-ups that are under way: each rises from 0 to 1 within so many epochs."""
        steps, options = self.steps_done + 1, self.options
        lengths = options.kl_warmup_epochs, options.likelihood_warmup_epochs
        return Weights(
            *(min(1.0, steps / (n * self.steps_per_epoch)) if n > 0 else 1.0 for n in lengths)
        )

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
            beta=self._weights().kl,
            test_loss=test_loss,
            reconstruction=reconstruction,
            kl=kl,
            seconds=at.seconds,
            num_steps=at.step,
            held_out_loss=held_out_loss,
            lr=self.optim.lr,
        )
        self.rate.after_epoch(record)
        if self.rate.has_ended:
            record = replace(record, is_flat=True, is_average=self.averages is not None)
        if self.writer is not None:
            _log(self.writer, record)
        at.history.append(record)  # as a list of its own would cost each epoch all those before
        self.state.position = Position(at.epoch + 1, history=at.history)
        if held_out_loss is not None:
            self.state.keep_if_best(held_out_loss)

    def _test_terms(self, x: Batch | StoredData) -> tuple[float, float]:
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
        return self.state.snapshot(self._identity())

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: the snapshot is of another run.
        """
        self.state.restore(
            snapshot,
            self._identity(),
            steps_per_epoch=self.steps_per_epoch,
            num_epochs=self.options.num_epochs,
        )
        self.rate = self._rate()

    def _identity(self) -> dict[str, Any]:
        held_out = 0 if self.data.held_out is None else len(self.data.held_out)
        sizes = {"num_data": len(self.data), "num_held_out": held_out}
        return identity_of(self.options, self.makers, self.objective, sizes)

    def _expect_finite_parameters(self) -> None:
        """Look at what the last update made: no step has used it yet."""
        norm = joint_norm([*self.parameters.values()])
        if math.isfinite(norm.item()) or (name := non_finite_parameter(self.parameters)) is None:
            return
        raise NonFiniteLossError(
            f"parameter {name} is not finite after the update of {self._where()}: {self._advice()}"
        )

    def _expect_finite_end(self) -> None:
        """The last update, on the batch that it was made for: no step is left to look at it."""
        if self.last_batch is None:
            return
        loss = self.step.loss(self.last_batch, self.options.seed)
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


def _log(writer: ScalarWriter, record: EpochRecord) -> None:
    for name, value in asdict(record).items():
        if name != "epoch" and value is not None:
            writer.add_scalar(name, value, record.epoch)
