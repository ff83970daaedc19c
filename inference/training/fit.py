"""Training a model/guide pair by stochastic variational inference."""

import warnings
from collections.abc import Callable
from typing import Any

import pyro
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch.utils.data import DataLoader, Dataset

from evidence.inference.compilation.functions import Compile
from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.choice import compiled_where_it_pays
from evidence.inference.objectives.draws import is_reparameterized
from evidence.inference.objectives.importance import STL
from evidence.inference.objectives.interface import Objective
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, as_rows, takes
from evidence.inference.programs.enumeration import sums_out
from evidence.inference.programs.masks import InFull, without_effect
from evidence.inference.programs.parameters import own_parameter_store
from evidence.inference.programs.precision import fast_matmul
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.stored import LoadedData, StoredData
from evidence.inference.programs.traces import (
    Program,
    Traces,
    checked_traces,
    outermost_dim,
)
from evidence.inference.programs.validation import validated
from evidence.inference.soundness.pairs import expect_sound_draws
from evidence.inference.training.averaging import UntilConverged
from evidence.inference.training.data import TrainingData
from evidence.inference.training.history import History
from evidence.inference.training.identity import Makers
from evidence.inference.training.minibatches import shares_latents
from evidence.inference.training.optimizer import MakeOptimizer, MakeScheduler, fused_adam
from evidence.inference.training.options import USUAL, TrainingOptions
from evidence.inference.training.ranks import ALONE, Ranks
from evidence.inference.training.run import ScalarWriter, TrainingRun
from evidence.inference.training.snapshots import Snapshot
from evidence.inference.training.stopping import UntilFlat
from evidence.inference.training.support import check_all_data

# Draws in the ELBO whose iterates are averaged: their noise is what an average has to overcome.
# Without the guide's score it vanishes as the guide nears the posterior; with it, a Gaussian of
# 100 latents, 5,150 parameters, walks away from an exact start, further than averages can mend.
_NUM_AVERAGED = 16


def fit(
    model: Program,
    guide: Program,
    x_train: Batch | Dataset | DataLoader,
    *,
    num_epochs: int | None = None,
    num_steps: int | None = None,
    until: UntilFlat | UntilConverged | None = None,
    max_steps: int = 100_000,
    batch_size: int | None = None,
    lr: float | None = None,
    lr_decay: float = 1.0,
    optimizer: MakeOptimizer = fused_adam,
    scheduler: MakeScheduler | None = None,
    objective: Objective | None = None,
    compile: Compile = "auto",
    x_test: Batch | Dataset | DataLoader | None = None,
    held_out: Batch | Dataset | DataLoader | None = None,
    transform: Callable[[Any], Any] | None = None,
    kl_warmup_epochs: float = 0.0,
    likelihood_warmup_epochs: float = 0.0,
    clip_norm: float | None = None,
    seed: int = 0,
    warm_start: bool = False,
    progress: bool = True,
    writer: ScalarWriter | None = None,
    resume_from: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    snapshot_every: int = 500,
    ranks: Ranks = ALONE,
) -> History:
    """Fit model and guide to `x_train` with `pyro.infer.SVI`, until nothing more is gained.

    Any pair of Pyro callables will do. Parameters that do not require gradients stay as they are:
    `model.requires_grad_(False)` fits a guide to a fixed model. Parameters stay in their modules;
    those of plain functions are in Pyro's store afterwards. The random state outside is untouched.
    The first steps run under Pyro's validation.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x_train: data `[N, *data_shape]`, on the device to train on; or several tensors, as a tuple
            for `model(*x)` or as a mapping for `model(**x)`. A dataset of `torch.utils.data` is
            read a minibatch at a time, and trained on as its tensors would be; a `DataLoader`
            makes the minibatches by itself, seeded anew for each epoch.
        num_epochs: passes over the data, or
        num_steps: training steps; None of the two for as many as it takes.
        until: what ends training then: `UntilFlat`, or `UntilConverged`, which averages the
            iterates at ever smaller learning rates, so that the posterior does not depend on the
            first one. By default the latter where data share latents, unless `lr_decay`,
            `scheduler` or `held_out` has a say; else the former.
        max_steps: the most steps to take, in whole epochs, if nothing else ends training.
        batch_size: data per step; the last batch of an epoch may be smaller. Where data share
            latents, the terms inside the plate over the data are scaled by N/B. 128 by default;
            under `UntilConverged` all data, up to 4,096. That of a `DataLoader` is its own.
        lr: learning rate, the first one if it is to fall. 0.001 by default; under
            `UntilConverged` 0.03, in the units of a guide that is standardized; the weights of a
            network's layer take it over the number of their inputs.
        lr_decay: factor on the learning rate after each epoch.
        optimizer: makes the optimizer as torch's classes do, `optimizer(tensors, lr=lr)`; options
            by `functools.partial(torch.optim.AdamW, weight_decay=0.01)`. A fused Adam by default.
        scheduler: makes a torch learning-rate scheduler for that optimizer, which is stepped after
            each epoch and then alone sets the learning rate.
        objective: any Pyro `ELBO`; `Trace_ELBO()` by default, or `TraceEnum_ELBO` of a model with
            discrete latents that it enumerates; under `UntilConverged` `STL` with 16 draws.
            `TraceMeanField_ELBO()` takes the KL divergence in closed form where there is one.
        compile: whether to compile loss and gradients with Torch's Inductor, see `Compiled`: True,
            False, or "auto": where it can be, if the number of steps is given and compiling takes
            less time than it saves, and otherwise recorded after 500 steps, see `Recorded`. Random
            numbers are the same.
        x_test: data to report the ELBO and its terms on after each epoch; not transformed.
        held_out: data that are not trained on, as `x_test`; their ELBO after each epoch decides
            when to stop, and the parameters of the best epoch are kept: against overfitting.
        transform: applied to each minibatch as it is drawn, e.g. `torch.bernoulli` for dynamic
            binarization.
        kl_warmup_epochs: epochs over which the weight of the KL term rises from 0 to 1: against a
            posterior that collapses to the prior.
        likelihood_warmup_epochs: epochs over which the weight of the log-likelihood rises from 0
            to 1: against a posterior that misses modes.
        clip_norm: largest joint gradient norm.
        seed: decides every random choice of training.
        warm_start: go on from parameters that an earlier fit of plain functions left in Pyro's
            store, instead of refusing to overwrite them. (Modules always go on from their own.)
        progress: show a progress bar with the loss in nats per datum.
        writer: a TensorBoard `SummaryWriter` to log each epoch to.
        resume_from: a snapshot to go on from.
        on_snapshot: called with a snapshot every `snapshot_every` steps, after ten seconds
            without one, and at the end.
        snapshot_every: steps between snapshots.
        ranks: the processes that each call `fit` with the same arguments and take a share of every
            minibatch, for the steps that one would take. The first alone shows, logs and saves;
            nothing is compiled.

    Returns:
        The history, one record per epoch, in nats per datum.

    Warns:
        NotConvergedWarning: `max_steps` ended training that was to go on until converged or flat.

    Raises:
        NonFiniteLossError: a loss or gradient is NaN or infinite; the parameters are those of the
            last good step. Or the last update of all ruined them; no snapshot of that is made.
        ValueError: bad data or options, data outside the likelihood's support, parameter names
            that an earlier fit took, a snapshot of another run, or a pair of which `ranks` cannot
            each take a share.
        RankLostError: another of the `ranks` has ended.
    """
    rows = _checked(x_train, "x_train").detach()  # simulated ones remember their parameters
    judged = (x_test, "x_test"), (held_out, "held_out")
    batch_size = _batch_size_of(rows, batch_size)
    given: dict[str, Any] = {"until": until, "batch_size": batch_size, "lr": lr}
    left_open = [name for name, value in given.items() if value is None]
    options = TrainingOptions(
        num_epochs=num_epochs,
        num_steps=num_steps,
        max_steps=max_steps,
        lr_decay=lr_decay,
        kl_warmup_epochs=kl_warmup_epochs,
        likelihood_warmup_epochs=likelihood_warmup_epochs,
        clip_norm=clip_norm,
        seed=seed,
        snapshot_every=snapshot_every,
        **given | {name: USUAL[name] for name in left_open},
    )
    is_guided = scheduler is not None or held_out is not None or lr_decay != 1
    _expect_one_rule(options, scheduler, is_guided=is_guided)
    data = TrainingData(rows, *(_checked(x, n) for x, n in judged), transform)
    model, guide = takes(model, rows), takes(guide, rows)
    with (
        isolated_rng(seed, data.device),
        pyro.validation_enabled(False),
        fast_matmul(data.device),
        own_parameter_store(warm_start=warm_start) as refuse_taken_names,
        warnings.catch_warnings(),
    ):
        # We stop, where Pyro warns and goes on.
        warnings.filterwarnings("ignore", "Encountered NaN")
        batch, x, traces = _first_run(model, guide, data, options.batch_size)
        shares = shares_latents(traces, len(batch))
        options = options.settled(left_open, shares_latents=shares, is_guided=is_guided)
        if shares:
            data.expect_all_alike()
        if len(batch) < min(len(data), options.batch_size):
            batch, x, traces = _first_run(model, guide, data, options.batch_size)
        if not data.is_unseen:
            check_all_data(model, guide, rows, batch=batch, model_trace=traces.model)
        refuse_taken_names()
        makers = Makers(optimizer, scheduler)
        objective = _objective_for(traces, objective, averages=options.averages)
        num_steps = options.known_steps(len(data))
        objective = compiled_where_it_pays(objective, compile, model, guide, x, num_calls=num_steps)
        run = TrainingRun(model, guide, data, options, objective, makers, writer, traces, ranks)
        if resume_from is not None:
            data.expect_resumable()
            run.restore(resume_from)
        with InFull(without_effect(model, batch, traces.model, traces.guide)):
            return run.train(progress, on_snapshot)


def _expect_one_rule(
    options: TrainingOptions, scheduler: MakeScheduler | None, *, is_guided: bool
) -> None:
    """Check that no more than one thing sets the learning rate, or ends the training."""
    if scheduler is not None and options.lr_decay != 1:
        raise ValueError("expected lr_decay or a scheduler, got both: leave lr_decay out")
    if options.averages and is_guided:
        raise ValueError(
            "UntilConverged sets the learning rate and averages the iterates by itself: leave out "
            "scheduler, lr_decay and held_out"
        )


def _checked(x: Any, name: str) -> Any:
    """Data in memory, looked at; those that are read later on are looked at then."""
    x = None if x is None else as_rows(x)
    if x is not None and not isinstance(x, StoredData):
        check_data(x, name)
    return x


def _batch_size_of(rows: Batch | StoredData, batch_size: int | None) -> int | None:
    """The data per step that are asked for, or those of a loader."""
    if not isinstance(rows, LoadedData):
        return batch_size
    if batch_size not in (None, rows.batch_size):
        raise ValueError(
            f"expected no batch_size beside a DataLoader, whose own is {rows.batch_size}, got "
            f"{batch_size}: leave it out"
        )
    return rows.batch_size


def _objective_for(traces: Traces, objective: Objective | None, *, averages: bool) -> Objective:
    """The objective, by default the one that the pair and the end of training need.

    Raises:
        ValueError: one that draws discrete latents that are to be summed out.
    """
    if objective is None and averages and is_reparameterized(traces.guide):
        return STL(_NUM_AVERAGED)
    if not sums_out(traces):
        return objective or Trace_ELBO()
    needed = TraceEnum_ELBO(max_plate_nesting=-outermost_dim(traces))
    if objective is None or isinstance(objective, TraceEnum_ELBO | AbstractObjective):
        return objective or needed
    raise ValueError(
        "expected an objective that sums out the discrete latents that the model enumerates, got "
        f"{type(objective).__name__}: leave it out, or pass pyro.infer.TraceEnum_ELBO("
        f"max_plate_nesting={needed.max_plate_nesting})"
    )


def _first_run(
    model: Program, guide: Program, data: TrainingData, size: int
) -> tuple[Batch, Batch, Traces]:
    """Run the pair once: it creates lazy parameters and shows what is wrong with it.

    Returns:
        The first batch before its transform and after it, and the traces.
    """
    rows = data.x_train[:size]
    x = data.transformed(rows)
    traces = checked_traces(model, guide, x)
    with validated(x):
        for trace in traces:
            trace.compute_log_prob()
    expect_sound_draws(model, guide, x, traces)
    return rows, x, traces
