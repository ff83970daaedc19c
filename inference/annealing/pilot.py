"""The pilot run: it finds temperatures, step sizes and metrics, frozen in the measured run."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.annealing import schedule
from evidence.inference.annealing.options import Options
from evidence.inference.paths import hmc, metric
from evidence.inference.paths.log_joint import AbstractPath, Way

# Steps at temperature 0, before the pilot run sets out.
NUM_WARMUP_STEPS = 50
# Data are tuned one by one, on the mean acceptance of at most so many chains.
MAX_PILOT_CHAINS = 8
# Where all data share one weight, one density is tuned: so many chains cost little more.
_JOINT_PILOT_CHAINS = 64

_FIRST_STEP_SIZE = 0.5
_STEPS_PER_METRIC = 5
_MOST_METRICS = 40  # of the measured run
_JITTER = 0.2
# Of the measured run's steps, where one density is moved: this share is shorter, by up to exp(3).
_SHORT_SHARE, _SHORTEST = 0.5, 3.0
# A quarter of an orbit, where the metric makes a Gaussian round: further, chains turn back.
_LONGEST_TRAJECTORY = math.pi / 2


class Plan(NamedTuple):
    """What the measured run takes from the pilot run.

    Args:
        betas: inverse temperatures, from 0 to 1 `[T + 1]`, in float64.
        step_sizes: of each transition and datum `[T, b]`.
        factors: of the metric, each for as many transitions `[G, Z]`, `[G, Z, Z]`, or `[G, 0]` for
            unit masses.
    """

    betas: Tensor
    step_sizes: Tensor
    factors: Tensor


@dataclass
class Pilot:
    """The chains of a pilot run, and what they have found so far. P steps, the warm-up included.

    Args:
        state: of the chains.
        betas: inverse temperatures `[P]`, in float64.
        log_step_sizes: `[P + 1, b]`, one row more each step.
        covariance: of the last temperatures, see `metric`.
        factors: of the metric, every few steps `[G, ...]`.
        spreads: sd of log f_1 − log f_0 at every temperature `[P]`.
    """

    state: hmc.State
    betas: Tensor
    log_step_sizes: Tensor
    covariance: Tensor
    factors: Tensor
    spreads: Tensor

    @classmethod
    def begin(cls, path: AbstractPath, options: Options) -> "Pilot":
        """At draws from where the path begins."""
        kind = metric.kind_for(options.metric, path.dim)
        num_data = path.layout.num_weights(len(path.x))
        num_chains = _num_chains(path, options)
        draws = path.sample(max(num_chains, metric.num_draws(kind, num_data, path.dim)))
        covariance = metric.covariance_of(draws, kind)
        state = path.state(draws[:num_chains])
        rising = schedule.pilot_betas(
            options.num_pilot_temperatures, schedule.spread_of(path.log_ratio(state.log_probs))
        )
        betas = torch.cat([torch.zeros(NUM_WARMUP_STEPS, dtype=torch.float64), rising])
        num_metrics = math.ceil(len(betas) / _STEPS_PER_METRIC)
        first = draws.new_full((len(betas) + 1, num_data), math.log(_FIRST_STEP_SIZE))
        factors = draws.new_zeros(num_metrics, *covariance.shape)
        return cls(state, betas.to(draws.device), first, covariance, factors, 0 * betas)

    def advance(self, path: AbstractPath, options: Options, step: int) -> None:
        """One transition, and what is to be learned from it."""
        kind = metric.kind_for(options.metric, path.dim)
        number, is_new = divmod(step, _STEPS_PER_METRIC)
        if is_new == 0 and kind != "unit":
            self.factors[number] = metric.factor_of(self.covariance)
        self.state, info = move(
            path,
            self.state,
            self.betas[step].item(),
            self.log_step_sizes[step].exp(),
            factor_at(self.factors, number),
            options.num_leapfrog_steps,
        )
        self.covariance = metric.updated(self.covariance, self.state.z, kind)
        self.spreads[step] = schedule.spread_of(path.log_ratio(self.state.log_probs))
        self.log_step_sizes[step + 1] = schedule.adapted(
            self.log_step_sizes[step], info.acceptance, options.target_acceptance, step
        )

    def plan(self, options: Options) -> Plan:
        """All that is frozen for the measured run."""
        before = NUM_WARMUP_STEPS - 1  # the last step at temperature 0
        betas = self.betas[before:]
        places = schedule.equidistant(betas, self.spreads[before:], options.num_temperatures)
        sizes = schedule.smoothed(
            self.log_step_sizes[NUM_WARMUP_STEPS + 1 :], (places[1:] - 1).clamp(min=0)
        )
        count = min(_MOST_METRICS, options.num_temperatures)
        middle = (torch.arange(count) + 0.5) * options.num_temperatures / count
        steps = before + places[middle.long().to(places.device)]
        factors = self.factors[(steps / _STEPS_PER_METRIC).long()]
        return Plan(schedule.at_places(betas, places), sizes, factors)


def move(
    path: AbstractPath,
    state: hmc.State,
    beta: float,
    step_size: Tensor,
    factor: Tensor | None,
    num_leapfrog_steps: int,
    *,
    of_all_lengths: bool = False,
) -> tuple[hmc.State, hmc.Info]:
    """One transition at inverse temperature β.

    Step sizes are jittered by draws that know nothing of the chains: where L steps make half a turn
    of an orbit or a full one, chains would not mix. With `of_all_lengths` half of them are far
    shorter: step sizes that suit most chains of a pilot run let none into the neck of a funnel, and
    where that is narrow for a while on the way, all weights are too small by nats and do not vary.
    """
    if of_all_lengths and torch.rand(()) < _SHORT_SHARE:
        step_size = step_size * torch.exp(-_SHORTEST * torch.rand(())).item()
    if factor is not None:
        enough = max(1, round(_LONGEST_TRAJECTORY / step_size.mean().item()))
        num_leapfrog_steps = min(num_leapfrog_steps, enough)
    jitter = torch.empty_like(state.z[..., 0]).uniform_(1 - _JITTER, 1 + _JITTER)
    return hmc.step(
        state,
        path.state,
        step_size * jitter,
        num_leapfrog_steps=num_leapfrog_steps,
        weights=path.weights(beta),
        factor=factor,
    )


def factor_at(factors: Tensor, number: int) -> Tensor | None:
    """One of the metrics; None for unit masses."""
    return factors[number] if factors.shape[1] else None


def _num_chains(path: AbstractPath, options: Options) -> int:
    """At least two, to tell how far they are apart."""
    num_chains = options.chains(is_joint=path.layout.is_joint)
    if path.layout.is_joint and path.way is not Way.ONE_BY_ONE:
        return max(num_chains, _JOINT_PILOT_CHAINS)
    return min(max(num_chains, 2), MAX_PILOT_CHAINS)
