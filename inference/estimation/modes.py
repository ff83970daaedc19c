"""Modes of a posterior that a guide never visits, and what they weigh.

Weights come from where the guide is: their k̂ and ESS cannot show what it has missed. A search of
its own can. It climbs log p(x, u) from draws of the prior and about the guide, lays a Student's t
over every peak that it reaches, and weighs draws from these: another unbiased estimate of p(x). Its
share from where

    p(x, u) / q(u) > p̂(x) S / 10

is missing in an estimate p̂(x) from S draws of the guide, of which ten, or fewer, are to be expected
there for the whole evidence, and as many less for a share of it. An unbiased estimate is unlikely
to be far too large: that keeps false alarms away. What no climber reaches stays unseen, as does
mass without a peak, in the neck of a funnel.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from evidence.inference.estimation.places import place
from evidence.inference.estimation.standard_error import standard_error
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.paths.mode_search import search, weighed
from evidence.inference.programs.data import Batch
from evidence.inference.programs.traces import Program

if TYPE_CHECKING:
    from evidence.inference.estimation.evidence import Evidence

_LARGEST_DIM = 200  # latents: of more, draws about a peak are far from the mass about it
_SEEN_SELDOM = 0.1  # of the evidence, what one draw of the guide is worth there, at the least
_FEWEST_NATS = 1e-3
_LOOKS = (1, 4)  # times the usual number of draws: more of them, where the first leave it open
_REMEDY = "anneal from the prior (annealed_evidence, --estimator ais)"


class Draws(NamedTuple):
    """Where an estimate has its mass: draws from the posterior, weighted.

    Args:
        log_ratio: log p(x, z) − log q(z) of the guide at each `[S]`, in nats.
        log_w: log of their weights, but for a constant `[S]`.
    """

    log_ratio: Tensor
    log_w: Tensor


class _Share(NamedTuple):
    """Of the evidence, as estimated, and its standard error."""

    mean: float
    se: float


def missed_modes(
    model: Program,
    guide: Program,
    x: Batch,
    *,
    log_evidence: float,
    mc_se: float,
    num_particles: int,
    draws: Draws | None = None,
    seed: int | None = None,
) -> str | None:
    """Why an estimate that came from a guide is too low, and what helps; None if nothing shows it.

    For data that share latents, up to 200 of them: of others nothing is said. Random state and
    parameters are left as they were.

    Args:
        model: called with the data; scores them.
        guide: called with the data; where the draws of the estimate began.
        x: the data.
        log_evidence: the estimate of log p(x), in nats.
        mc_se: its standard error: less than twice of it is not worth a word.
        num_particles: S, the draws from the guide.
        draws: of an estimate that goes on from there, as annealing, SMC and bridge sampling do:
            what they have found is not missed.
        seed: decides every random choice; without it, they go on from the random state outside.
    """
    with annealing_mode(model, guide, seed, x.device):
        try:
            prior = PriorPath(model, x)
        except ValueError:  # latents that no gradient moves
            return None
        if not prior.layout.is_joint or prior.dim > _LARGEST_DIM:
            return None
        path = _path_of(model, guide, x) or prior
        level = log_evidence + math.log(_SEEN_SELDOM * num_particles)
        proposal = search(path, prior, level)
        if proposal is None:
            return None
        has_density = isinstance(path, GuidePath)  # by which to split the evidence
        seen = _seen(draws, level) if has_density else _Share(1.0, mc_se)
        least = math.expm1(max(2 * mc_se, _FEWEST_NATS))
        for times in _LOOKS:
            found = weighed(path, proposal, times)
            seldom = found.log_ratio > level
            there = _mean((found.log_w - log_evidence).exp() * seldom)
            missed = there.mean - seen.mean
            if missed <= least:
                return None
            if missed - 2 * math.hypot(there.se, seen.se) > least:
                highest = torch.where(seldom, found.log_p_xz, -math.inf).argmax()
                return _in_words(missed / (1 + missed), place(path, found.z[highest]))
    return None


def _in_words(share: float, where: str) -> str:
    return f"the guide has missed about {100 * share:.2g}% of the evidence ({where}): {_REMEDY}"


def caveat_of_modes(
    record: "Evidence", model: Program, guide: Program, x: Batch, **options: Any
) -> str | None:
    """The caveat of a record of a data set that came from a guide: its own, or what it has missed.

    Args:
        record: the estimate.
        model: see `missed_modes`.
        guide: see `missed_modes`.
        x: see `missed_modes`.
        options: `draws` and `seed` of `missed_modes`.
    """
    if record.not_reliable is not None:  # nothing more need be found
        return record.caveat
    return missed_modes(
        model,
        guide,
        x,
        log_evidence=record.mean,
        mc_se=record.mc_se,
        num_particles=record.num_particles,
        **options,
    )


def _path_of(model: Program, guide: Program, x: Batch) -> GuidePath | None:
    """In the guide's coordinates; None where it cannot score what it has not just drawn."""
    try:
        return GuidePath(model, guide, x)
    except ValueError:
        return None


def _seen(draws: Draws | None, level: float) -> _Share:
    """The share of an estimate's own draws where the guide comes seldom."""
    if draws is None:
        return _Share(0.0, 0.0)
    weights = draws.log_w.double().flatten().softmax(0)
    seldom = (draws.log_ratio.flatten() > level).double()
    mean = weights @ seldom
    return _Share(mean.item(), (weights.square() @ (seldom - mean).square()).sqrt().item())


def _mean(values: Tensor) -> _Share:
    return _Share(values.mean().item(), standard_error(values))
