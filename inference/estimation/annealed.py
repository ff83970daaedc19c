"""Evidence by annealed importance sampling."""

import dataclasses
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evidence.inference.annealing.options import Options
from evidence.inference.annealing.run import AnnealingRun
from evidence.inference.estimation.evidence import Evidence, from_log_weights
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.evaluation import evaluation_mode, modules_of
from evidence.inference.programs.precision import fast_matmul
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program
from evidence.inference.soundness.pairs import expect_sound_model, expect_sound_pair
from evidence.inference.training.snapshots import Snapshot


@dataclass(frozen=True)
class Annealed:
    """What annealing leaves behind: weights, and where the chains ended.

    Args:
        log_w: log-weights `[C, B]`, in nats; their exponentials average to p(x).
        latents: the chains' last positions by site name, `[C, B, *plates, *event_shape]`; weighted
            by w they are draws from the posterior.
        acceptance: mean acceptance of the measured run `[B]`.
        on_edge: share of the evidence from chains that began or ended on the edge of a support
            `[B]`, where their dtype tells no numbers apart.
        data_set_size: N, if there is one weight for all data, `[C, 1]`; else None.
        num_evaluations: see `Evidence`; None for a run that went on from a snapshot.
    """

    log_w: Tensor
    latents: dict[str, Tensor]
    acceptance: Tensor
    on_edge: Tensor
    data_set_size: int | None = None
    num_evaluations: int | None = None

    @property
    def evidence(self) -> Evidence:
        """The record "ais": log of the mean weight per datum, a lower bound in expectation."""
        record = from_log_weights(self.log_w)["iw"]
        dtype = next(iter(self.latents.values())).dtype
        record = dataclasses.replace(
            record, estimator="ais", dtype=dtype, num_evaluations=self.num_evaluations
        )
        return record.of(self.on_edge, self.data_set_size)


def annealed_evidence(
    model: Program, x: Batch, *, guide: Program | None = None, **options: Any
) -> Evidence:
    """Log p(x) by annealed importance sampling, a lower bound in expectation.

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]`.
        guide: where the path begins; None for the prior.
        options: all others of `anneal`, which explains the method.

    Returns:
        The record "ais", in nats per datum, or of the data set where the data share latents; its
        particles are the chains.

    Raises:
        ValueError: as `anneal`.
    """
    return anneal(model, x, guide=guide, **options).evidence


def anneal(
    model: Program,
    x: Batch,
    *,
    guide: Program | None = None,
    progress: bool = False,
    resume_from: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    **options: Any,
) -> Annealed:
    """Annealed importance sampling with HMC, from the prior or from a guide to the posterior.

    Chains follow log f_β = (1 − β) log f_0 + β log p(x, z) from f_0, the prior or q(z | x), at
    β = 0 to the posterior at β = 1, and gather weights that average to p(x) whatever the number of
    temperatures; more temperatures make them more equal. Where the temperatures lie, step sizes,
    per datum and temperature, and the metric of HMC come from a pilot run with random numbers of
    its own and are frozen in the measured run: chains that adapt while they are measured have no
    such average. Any Pyro model with continuous latents will do; constrained latents move in
    unconstrained space. The random state outside is untouched.

    References: R. M. Neal, "Annealed importance sampling", 2001, https://arxiv.org/abs/physics/9803008;
    Y. Wu, Y. Burda, R. Salakhutdinov, R. Grosse, "On the Quantitative Analysis of Decoder-Based
    Generative Models", 2017, https://arxiv.org/abs/1611.04273.

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]`.
        guide: called with a batch; where the path begins. None for the prior.
        progress: show a progress bar.
        resume_from: a snapshot of the same run to go on from, bit for bit.
        on_snapshot: called with a snapshot now and then and at the end.
        options: by name, those of `Options`: num_chains, num_temperatures, metric, seed, …

    Raises:
        ValueError: bad options or data; latents that are discrete, or a prior or guide that cannot
            be drawn from or scored; a snapshot of another run.
    """
    chosen = Options(**options)
    x = as_data(x)
    model, guide = takes(model, x), None if guide is None else takes(guide, x)
    check_data(x)
    if guide is not None:
        expect_sound_pair(model, guide, x)
    with annealing_mode(model, guide, chosen.seed, x.device) as refuse_new_parameters:
        run = AnnealingRun(model, guide, x, chosen)
        if guide is None:  # after what has a word of its own for a prior that is none
            expect_sound_model(model, x)
        refuse_new_parameters()
        if resume_from is not None:
            run.restore(resume_from)
        results = run.run(progress=progress, on_snapshot=on_snapshot)
    latents = {
        name.removeprefix("latent."): value
        for name, value in results.items()
        if name.startswith("latent.")
    }
    per_datum = (results[name].squeeze(0) for name in ("acceptance", "on_edge"))
    size = len(x) if run.is_joint else None
    return Annealed(results["log_w"], latents, *per_datum, size, run.num_evaluations)


@contextmanager
def annealing_mode(
    model: Program, guide: Program | None, seed: int, device: torch.device
) -> Generator[Callable[[], None]]:
    """What all annealing runs in: random numbers of its own, and gradients of latents alone.

    Yields:
        The check of `evaluation_store`.
    """
    with (
        isolated_rng(seed, device),
        evaluation_mode(model, guide) as refuse_new_parameters,
        _frozen(model, guide),
        fast_matmul(device),
        torch.no_grad(),
    ):
        yield refuse_new_parameters


@contextmanager
def _frozen(*programs: Program | None) -> Generator[None]:
    """No gradients of the parameters of modules: only those of the latents are wanted."""
    parameters = [
        parameter
        for module in modules_of(*programs)
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
