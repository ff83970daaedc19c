"""Evidence by annealed importance sampling."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from evidence.inference.annealing.options import Options
from evidence.inference.annealing.run import AnnealingRun
from evidence.inference.estimation.evidence import Evidence, from_log_weights
from evidence.inference.estimation.modes import Draws, caveat_of_modes
from evidence.inference.estimation.unknown import beside_caveat
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, as_data, takes
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
        missed: what chains have missed, in words; None if nothing shows that.
        num_evaluations: see `Evidence`.
    """

    log_w: Tensor
    latents: dict[str, Tensor]
    acceptance: Tensor
    on_edge: Tensor
    data_set_size: int | None = None
    missed: str | None = None
    num_evaluations: int | None = None

    @property
    def evidence(self) -> Evidence:
        """The record "ais": log of the mean weight per datum, a lower bound in expectation."""
        record = from_log_weights(self.log_w)["iw"]
        dtype = next(iter(self.latents.values())).dtype
        record = dataclasses.replace(
            record, estimator="ais", dtype=dtype, num_evaluations=self.num_evaluations
        )
        record = record.of(self.on_edge, self.data_set_size)
        return record if record.caveat else dataclasses.replace(record, caveat=self.missed)


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
    search_modes: bool = True,
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
    such average. Where the prior of some latents moves with others, as in a hierarchy, transitions
    are by turns in the model's own coordinates and in whitened ones, see `paths.interweaving`. Any
    Pyro model with continuous latents will do; constrained latents move in unconstrained space. The
    random state outside is untouched.

    References: R. M. Neal, "Annealed importance sampling", 2001, https://arxiv.org/abs/physics/9803008;
    Y. Wu, Y. Burda, R. Salakhutdinov, R. Grosse, "On the Quantitative Analysis of Decoder-Based
    Generative Models", 2017, https://arxiv.org/abs/1611.04273.

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]`.
        guide: called with a batch; where the path begins. None for the prior.
        search_modes: where data share latents, look for modes that chains from a guide have missed;
            see `modes`.
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
    acceptance, on_edge = (results[name].squeeze(0) for name in ("acceptance", "on_edge"))
    size = len(x) if run.is_joint else None
    beside = beside_caveat(results["beside"], next(iter(latents.values())).dtype)
    found = Annealed(
        results["log_w"], latents, acceptance, on_edge, size, beside, run.num_evaluations
    )
    if beside is not None or guide is None or not (run.is_joint and search_modes):
        return found
    ends = Draws(results["log_ratio"], results["log_w"])
    caveat = caveat_of_modes(found.evidence, model, guide, x, draws=ends, seed=chosen.seed)
    return dataclasses.replace(found, missed=caveat)
