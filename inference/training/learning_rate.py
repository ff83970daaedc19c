"""The learning rate from epoch to epoch, and whether training has come to its end."""

from collections.abc import Iterable

from evidence.inference.training.averaging import IterateAverages
from evidence.inference.training.history import EpochRecord
from evidence.inference.training.optimizer import JointOptim, MakeScheduler, Schedule
from evidence.inference.training.options import TrainingOptions
from evidence.inference.training.stopping import Plateau, UntilFlat


class LearningRate:
    """Follows the losses of the epochs, on which alone it depends, or the averages of the iterates.

    Args:
        options: of the run.
        optim: whose learning rate it is.
        make_scheduler: makes what alone sets the rate, if anything does.
        averages: of the iterates, if training ends with one.
        steps_per_epoch: training steps of an epoch.
        behind: the epochs so far.
    """

    def __init__(
        self,
        options: TrainingOptions,
        optim: JointOptim,
        make_scheduler: MakeScheduler | None,
        averages: IterateAverages | None,
        *,
        steps_per_epoch: int,
        behind: Iterable[EpochRecord] = (),
    ) -> None:
        self._options, self._optim, self._averages = options, optim, averages
        self._schedule = None if make_scheduler is None else Schedule(optim, make_scheduler)
        self._plateau = Plateau(
            options.until if isinstance(options.until, UntilFlat) else UntilFlat(),
            steps_per_epoch=steps_per_epoch,
            warmup_epochs=options.warmup_epochs,
        )
        for record in behind:
            self.after_epoch(record)

    def set(self, epoch: int) -> None:
        """Set the rate of an epoch, counted from 0, where no scheduler does."""
        if self._schedule is None:
            rule = self._plateau if self._averages is None else self._averages
            factor = rule.lr_factor if self._options.is_until else 1.0
            self._optim.set_lr(self._options.lr * self._options.lr_decay**epoch * factor)

    def after_epoch(self, record: EpochRecord) -> None:
        """Take the loss of an epoch."""
        self._plateau.observe(record.judged_loss)
        if self._schedule is not None:
            self._schedule.step(record.judged_loss)

    @property
    def has_ended(self) -> bool:
        """Whether the rule that is to end training says so."""
        ended = self._plateau.is_flat if self._averages is None else self._averages.has_ended
        return self._options.is_until and ended
