"""Evidence and posterior draws by waste-free sequential Monte Carlo."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from evidence.inference.annealing import particles, smc_pilot
from evidence.inference.annealing import smc as machine
from evidence.inference.annealing import smc_readings as readings
from evidence.inference.annealing.particles import Particles
from evidence.inference.annealing.smc import Passed
from evidence.inference.annealing.smc_options import SMCOptions
from evidence.inference.estimation import reliability
from evidence.inference.estimation.annealed import annealing_mode
from evidence.inference.estimation.evidence import Evidence, from_log_weights
from evidence.inference.estimation.unknown import unknown_beside
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.interweaving import coordinates_of
from evidence.inference.paths.log_joint import AbstractPath
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import as_data, takes
from evidence.inference.programs.traces import Program
from evidence.inference.soundness.pairs import expect_sound_model, expect_sound_pair


class Thermodynamic(NamedTuple):
    """Log p(x) by thermodynamic integration, each `[B]`, in nats.

    Args:
        log_px: the integral of the mean of log f_1 − log f_0 over β.
        se: its standard error, from the spread of the islands.
        trapezoid_error: by how much the correction of the trapezoids changed it, about what may be
            left. It is large where the first temperatures are: where the likelihood varies widely
            under the prior, the integral is a poor estimate, and the evidence none the worse.
    """

    log_px: Tensor
    se: Tensor
    trapezoid_error: Tensor


@dataclass(frozen=True)
class Sampled:
    """What sequential Monte Carlo leaves behind: evidence, posterior draws, diagnostics.

    Args:
        log_px: log-evidence of every island `[R, B]`, in nats; exponentials average to p(x).
        draws: from the posterior by site name, `[N, B, *plates, *event_shape]`, all alike in
            weight; chain after chain, P of each, so that their autocorrelation shows. B is 1 where
            the data share latents.
        betas: the inverse temperatures, from 0 to 1, of each block of data.
        chain_variance: the variance of log p̂(x) `[B]`, if chains began anew at each temperature;
            far below that of the evidence where chains do not mix and errors add up.
        least_ess: the smallest effective share of the particles at any step `[B]`.
        acceptance: the lowest mean acceptance at any temperature `[B]`.
        drift: how likely chains are to move as they do if they began in equilibrium `[B]`, see
            `smc_readings.drift`. Small where a part of the posterior is missing.
        lost_peak: by how many nats log f_1 − log f_0 was larger on the way than at the end `[B]`.
        r_hat: of the chains at β = 1 `[B]`, the largest over latents and log f_1 − log f_0.
            Large where chains stay in modes of their own, which does the evidence no harm.
        on_edge: share of the evidence from particles on the edge of a support `[B]`.
        thermodynamic: another reading of the same run.
        num_particles: N, at each temperature.
        num_evaluations: see `Evidence`.
        dtype: what was computed in.
        data_set_size: N of the data, if there is one estimate for all; else None.
        unknown: what to say of a log joint that is NaN beside the draws, or None; see
            `unknown_beside`.
    """

    log_px: Tensor
    draws: dict[str, Tensor]
    betas: tuple[Tensor, ...]
    chain_variance: Tensor
    least_ess: Tensor
    acceptance: Tensor
    drift: Tensor
    lost_peak: Tensor
    r_hat: Tensor
    on_edge: Tensor
    thermodynamic: Thermodynamic
    num_particles: int
    num_evaluations: int
    dtype: torch.dtype
    data_set_size: int | None = None
    unknown: str | None = None

    @property
    def evidence(self) -> Evidence:
        """The record "smc": log of the islands' mean, a lower bound in expectation.

        Its variance is that of the mean of independent islands, whatever goes on within them. Its
        ESS is the number of particles that would leave the same variance if each were weighed by
        itself. It has no k̂: temperatures keep the weights of each step alike, whatever their tail.
        """
        record = from_log_weights(self.log_px)["iw"]
        record = dataclasses.replace(
            record,
            estimator="smc",
            num_particles=self.num_particles,
            ess=(1 / (record.log_px_variance + 1 / self.num_particles)).clamp(min=1),
            k_hat=torch.full_like(self.drift, math.nan),
            dtype=self.dtype,
            num_evaluations=self.num_evaluations,
        )
        record = record.of(self.on_edge, self.data_set_size)
        caveat = record.caveat or self.unknown
        caveat = caveat or reliability.smc_caveat(self.log_px, self.drift, self.lost_peak)
        return dataclasses.replace(record, caveat=caveat)


def smc_evidence(
    model: Program, data: Any, *, guide: Program | None = None, **options: Any
) -> Evidence:
    """Log p(x) by waste-free sequential Monte Carlo, a lower bound in expectation.

    Args:
        model: called with a batch; scores it.
        data: `[B, *data_shape]`; or several tensors, as a tuple for `model(*data)` or as a mapping
            for `model(**data)`.
        guide: where the path begins; None for the prior.
        options: all others of `smc`, which explains the method.

    Returns:
        The record "smc", in nats per datum, or of the data set where the data share latents.

    Raises:
        ValueError: as `smc`.
    """
    return smc(model, data, guide=guide, **options).evidence


def smc(
    model: Program,
    data: Any,
    *,
    guide: Program | None = None,
    progress: bool = False,
    **options: Any,
) -> Sampled:
    """Waste-free sequential Monte Carlo, from the prior or from a guide to the posterior.

    Particles follow log f_β = (1 − β) log f_0 + β log p(x, z), as those of `anneal` do. At each
    temperature they are weighed by f_t / f_{t−1}, ancestors are resampled, and every position of
    the chains of HMC that set out from these is kept; the product of the mean weights averages to
    p(x). Temperatures, metrics and step sizes come from a pilot run with random numbers of its own
    and are frozen in the measured run, without which there is no such average.

    Where the prior of some latents moves with others, as in a hierarchy, chains move by turns in
    the model's own coordinates and in whitened ones, in which it does not, see
    `paths.interweaving`.

    All this is done by R islands side by side that share nothing but the pilot run. Chains that do
    not mix hand on the errors of one temperature to the next; no autocorrelation within a chain
    shows that, and the error bar that is made of it is too short. The spread of independent
    islands shows it, and costs nothing: they are one batch, and their mean is as sure as one large
    island. What no island finds, no error bar shows.

    The random state outside is untouched. A run cannot be gone on with once it is stopped.

    Reference: H.-D. Dau, N. Chopin, "Waste-Free Sequential Monte Carlo", 2022,
    https://arxiv.org/abs/2011.02328.

    Args:
        model: called with a batch; scores it. Its latents are continuous, or summed out.
        data: `[B, *data_shape]`; or several tensors, as a tuple for `model(*data)` or as a mapping
            for `model(**data)`.
        guide: called with a batch; where the path begins. None for the prior.
        progress: show a progress bar.
        options: by name, those of `SMCOptions`: num_islands, num_chains, num_steps, seed, …

    Raises:
        ValueError: bad options or data; latents that are discrete, or a prior or guide that cannot
            be drawn from or scored; more temperatures than are allowed.
    """
    chosen = SMCOptions(**options)
    x = as_data(data)
    model, guide = takes(model, x), None if guide is None else takes(guide, x)
    check_data(x)
    if guide is not None:
        expect_sound_pair(model, guide, x)
    with (
        annealing_mode(model, guide, chosen.seed, x.device) as refuse_new_parameters,
        tqdm(disable=not progress, unit="temperature") as bar,
    ):
        path = path_of(model, guide, x)
        if guide is None:  # after what has a word of its own for a prior that is none
            expect_sound_model(model, x)
        refuse_new_parameters()
        is_joint, num_chains = path.layout.is_joint, chosen.chains(path)
        size = max(1, chosen.chunk_size // num_chains)
        paths = [path] if is_joint else [path_of(model, guide, block) for block in x.split(size)]
        parts = [_block(path, chosen, bar.update) for path in paths]
    whole = _joined(parts)
    return dataclasses.replace(whole, data_set_size=len(x) if is_joint else None)


def _block(
    path: AbstractPath, options: SMCOptions, on_temperature: Callable[[], object]
) -> Sampled:
    """The record of the data of one path."""
    coordinates = coordinates_of(path)
    for one in coordinates:
        one.expect_calls(options.about_calls // len(coordinates), options.compile)
    plan = smc_pilot.plan_for(coordinates, options, on_temperature)
    passed = machine.run(path, plan, options, on_temperature)
    final, last = passed.final, passed.changes[-1]
    log_w = readings.log_weights(plan.betas, passed.changes)
    log_px = readings.log_evidence(log_w)
    integral, correction = readings.thermodynamic(plan.betas, passed.changes)
    unknown = unknown_beside(path, final.z.flatten(0, 1))  # evaluates the log joint once more
    return Sampled(
        log_px=log_px,
        draws=_draws(path, final, log_px),
        betas=(plan.betas,),
        chain_variance=readings.chain_variance(log_w, options.num_steps),
        least_ess=readings.effective_shares(log_w).min(0).values,
        acceptance=passed.acceptance.min(0).values,
        drift=readings.drift(plan.betas, passed.changes, final.z),
        lost_peak=readings.lost_peak(passed.changes),
        r_hat=readings.r_hat(_positions(final, last)),
        on_edge=_edge_share(path, passed, log_w[0], log_px),
        thermodynamic=Thermodynamic(
            integral.mean(0),
            integral.std(0) / math.sqrt(len(integral)),
            correction.mean(0).abs(),
        ),
        num_particles=last[..., 0].numel(),
        unknown=unknown,
        num_evaluations=sum(one.num_evaluations for one in coordinates),
        dtype=final.z.dtype,
    )


def _positions(final: Particles, changes: Tensor) -> Tensor:
    """Latents and log f_1 − log f_0 of the last particles `[P, C, b, Z + 1]`."""
    steps = final.z.shape[0]
    by_step = changes.unflatten(1, (-1, steps)).movedim(2, 0).flatten(1, 2)
    return torch.cat([final.z.double(), by_step.unsqueeze(-1)], -1)


def _edge_share(path: AbstractPath, passed: Passed, log_w: Tensor, log_px: Tensor) -> Tensor:
    """The share of the evidence from particles on the edge of a support `[b]`.

    At the first step or at the last, whichever is larger.
    """
    log_w, on_edge = log_w.flatten(0, 1), passed.began_on_edge.flatten(0, 1).double()
    began = (log_w.softmax(0).nan_to_num() * on_edge).sum(0)
    # Draws whose density is no number have no weight: as if they had that of the others.
    began = began + (on_edge * log_w.isneginf()).mean(0)
    ended = torch.stack([path.on_edge(z) for z in passed.final.z])
    ended = particles.by_island(ended, len(log_px)).double().mean(1)
    return torch.maximum(began, (log_px.softmax(0).nan_to_num() * ended).sum(0))


def _draws(path: AbstractPath, final: Particles, log_px: Tensor) -> dict[str, Tensor]:
    """The last particles as draws of equal weight: those of an island count for its evidence."""
    num_steps, num_chains = final.z.shape[:2]
    count = num_steps * num_chains
    log_w = log_px.repeat_interleave(count // len(log_px), 0).unsqueeze(0)  # [1, N, b]
    z = particles.resampled(final, log_w, count)
    rows = [path.site_values(some) for some in z.split(num_chains)]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _joined(parts: list[Sampled]) -> Sampled:
    """One record of blocks of data."""
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in (
            "chain_variance",
            "least_ess",
            "acceptance",
            "drift",
            "lost_peak",
            "r_hat",
            "on_edge",
        )
    }
    integrals = zip(*(part.thermodynamic for part in parts), strict=True)
    return dataclasses.replace(
        parts[0],
        log_px=torch.cat([part.log_px for part in parts], 1),
        draws={n: torch.cat([part.draws[n] for part in parts], 1) for n in parts[0].draws},
        betas=tuple(beta for part in parts for beta in part.betas),
        thermodynamic=Thermodynamic(*map(torch.cat, integrals)),
        num_evaluations=sum(part.num_evaluations for part in parts),
        unknown=next((part.unknown for part in parts if part.unknown), None),
        **joined,
    )
