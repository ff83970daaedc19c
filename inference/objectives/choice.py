"""Whether an objective is compiled, or recorded."""

from functools import partial
from typing import Any

from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from evidence.inference.compilation.functions import Compile, expect_compile, is_worth_compiling
from evidence.inference.compilation.recording import NotRecordableError, traced, work_of
from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.interface import Differentiable, Objective
from evidence.inference.objectives.loss_graphs import Call, loss_and_gradients
from evidence.inference.objectives.recorded import Recorded
from evidence.inference.programs.data import Batch, tensors_in
from evidence.inference.programs.random_state import isolated_rng

_FEWEST_CALLS = 200  # that are worth a look at what they would cost
_FEWEST_RECORDED = 1000  # of a run whose length is known: shorter ones gain hardly anything


def compiled_where_it_pays(
    objective: Objective,
    compile: Compile,
    model: Any,
    guide: Any,
    data: Batch,
    *,
    num_calls: int | None,
) -> Objective:
    """The objective, compiled, recorded or as it is.

    Args:
        objective: to be compiled; one that is stays as it is.
        compile: True, False, or "auto": where it can be, and takes less time than it saves, and
            recorded where it does not; see `Recorded`.
        model: called with the data.
        guide: called with the data.
        data: a batch of the usual size.
        num_calls: how often it will be called; None where that is not known.
    """
    expect_compile(compile)
    if isinstance(objective, Compiled):
        return objective
    if compile is True:
        return Compiled(objective)
    if compile is False or not isinstance(objective, Differentiable):
        return objective
    if num_calls is not None and num_calls >= _FEWEST_CALLS:
        call = Call(objective, model, guide, data)
        try:
            with isolated_rng(device=data.device), poutine.block():
                call.loss(*tensors_in(data))
                work = work_of(traced(partial(loss_and_gradients, call), tensors_in(data)))
        except NotRecordableError:
            return objective
        if is_worth_compiling(work, num_calls):
            return Compiled(objective)
    is_short = num_calls is not None and num_calls < _FEWEST_RECORDED
    return Recorded(objective) if not is_short and _keeps_nothing(objective) else objective


def _keeps_nothing(objective: Objective) -> bool:
    """Whether calls to try a graph leave an objective as it was: one that is known, and no path."""
    if isinstance(objective, AbstractObjective):
        return objective.draws_particles
    return type(objective) in (Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO)
