"""What tells one training run from another, for a snapshot of it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.interface import Objective
from evidence.inference.training.optimizer import MakeOptimizer, MakeScheduler, describe_maker
from evidence.inference.training.options import TrainingOptions

_VARYING = ("num_epochs", "until", "max_steps", "snapshot_every")


class Makers(NamedTuple):
    """What makes the optimizer and its scheduler."""

    optimizer: MakeOptimizer
    scheduler: MakeScheduler | None


def identity_of(
    options: TrainingOptions, makers: Makers, objective: Objective, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """What must agree for a run to be gone on with; more epochs are no other run.

    Args:
        options: of the run.
        makers: of its optimizer.
        objective: that it minimizes.
        sizes: of its data.
    """
    return {
        **{name: value for name, value in asdict(options).items() if name not in _VARYING},
        "until": repr(options.until),
        "optimizer": describe_maker(makers.optimizer),
        "scheduler": describe_maker(makers.scheduler),
        "objective": _describe(objective),
        **sizes,
    }


def _describe(objective: Objective) -> str:
    """An objective and its options, as far as it tells them: Pyro's own do not."""
    if isinstance(objective, Compiled):
        return _describe(objective.objective)
    if isinstance(objective, AbstractObjective):
        return repr(objective)
    return f"{type(objective).__name__}(num_particles={getattr(objective, 'num_particles', 1)})"
