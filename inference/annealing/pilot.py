"""The pilot run: it finds temperatures, step sizes and metrics, frozen in the measured run.

Where chains move in several sets of coordinates, transition number t, from 1, is in those of
number (t − 1) mod K, with a step size and a metric of their own; see `paths.interweaving`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evidence.inference.annealing import schedule
from evidence.inference.annealing.options import Options
from evidence.inference.paths import hmc, metric
from evidence.inference.paths.interweaving import moved_in, seen_from
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
        factors: of the metric in each coordinates, each for as many transitions `[K, G, Z]`,
            `[K, G, Z, Z]`, or `[K, G, 0]` for unit masses.
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
        log_step_sizes: in each coordinates `[K, P + 1, b]`, one row more each step.
        covariance: of the last temperatures in each `[K, ...]`, see `metric`.
        factors: of the metric in each, every few steps `[K, G, ...]`.
        spreads: sd of log f_1 − log f_0 at every temperature `[P]`.
    """

    state: hmc.State
    betas: Tensor
    log_step_sizes: Tensor
    covariance: Tensor
    factors: Tensor
    spreads: Tensor

    @classmethod
    def begin(cls, coordinates: Sequence[AbstractPath], options: Options) -> "Pilot":
        """At draws from where the path begins; chains are kept in the first coordinates."""
        path = coordinates[0]
        kind = metric.kind_for(options.metric, path.dim)
        num_data = path.layout.num_weights(len(path.x))
        num_chains = _num_chains(path, options)
        draws = path.sample(max(num_chains, metric.num_draws(kind, num_data, path.dim)))
        covariance = torch.stack(
            [metric.covariance_of(seen_from(path, draws, one), kind) for one in coordinates]
        )
        state = path.state(draws[:num_chains])
        rising = schedule.pilot_betas(
            options.num_pilot_temperatures, schedule.spread_of(path.log_ratio(state.log_probs))
        )
        betas = torch.cat([torch.zeros(NUM_WARMUP_STEPS, dtype=torch.float64), rising])
        num_metrics = math.ceil(len(betas) / _STEPS_PER_METRIC)
        shape = len(coordinates), len(betas) + 1, num_data
        first = draws.new_full(shape, math.log(_FIRST_STEP_SIZE))
        factors = draws.new_zeros(len(coordinates), num_metrics, *covariance.shape[1:])
        return cls(state, betas.to(draws.device), first, covariance, factors, 0 * betas)

    def advance(self, coordinates: Sequence[AbstractPath], options: Options, step: int) -> None:
        """One transition, and what is to be learned from it."""
        path = coordinates[0]
        kind = metric.kind_for(options.metric, path.dim)
        number, is_new = divmod(step, _STEPS_PER_METRIC)
        if is_new == 0 and kind != "unit":
            for factors, covariance in zip(self.factors, self.covariance, strict=True):
                factors[number] = metric.factor_of(covariance)
        before, turn = divmod(step, len(coordinates))
        self.state, info = move_in_turn(
            coordinates,
            turn,
            self.state,
            self.betas[step].item(),
            self.log_step_sizes[turn, step].exp(),
            factor_at(self.factors[turn], number),
            options.num_leapfrog_steps,
        )
        for one, covariance in zip(coordinates, self.covariance, strict=True):
            z = seen_from(path, self.state.z, one)
            covariance.copy_(metric.updated(covariance, z, kind))
        self.spreads[step] = schedule.spread_of(path.log_ratio(self.state.log_probs))
        self.log_step_sizes[:, step + 1] = self.log_step_sizes[:, step]
        self.log_step_sizes[turn, step + 1] = schedule.adapted(
            self.log_step_sizes[turn, step], info.acceptance, options.target_acceptance, before
        )

    def plan(self, options: Options) -> Plan:
        """All that is frozen for the measured run."""
        before = NUM_WARMUP_STEPS - 1  # the last step at temperature 0
        betas = self.betas[before:]
        places = schedule.equidistant(betas, self.spreads[before:], options.num_temperatures)
        after, at = NUM_WARMUP_STEPS + 1, (places[1:] - 1).clamp(min=0)
        of_each = torch.stack([schedule.smoothed(row[after:], at) for row in self.log_step_sizes])
        transitions = torch.arange(options.num_temperatures, device=of_each.device)
        sizes = of_each[transitions % len(of_each), transitions]
        count = min(_MOST_METRICS, options.num_temperatures)
        middle = (torch.arange(count) + 0.5) * options.num_temperatures / count
        steps = before + places[middle.long().to(places.device)]
        factors = self.factors[:, (steps / _STEPS_PER_METRIC).long()]
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


def move_in_turn(
    coordinates: Sequence[AbstractPath],
    turn: int,
    state: hmc.State,
    *how: Any,
    of_all_lengths: bool = False,
) -> tuple[hmc.State, hmc.Info]:
    """`move` in the coordinates whose turn it is, of chains that are kept in the first ones.

    In either it is reversible with respect to one and the same density of the latents, for which
    whitened coordinates carry their Jacobian: it is its own reversal.
    """
    path = coordinates[turn]

    def one(there: hmc.State) -> tuple[hmc.State, hmc.Info]:
        return move(path, there, *how, of_all_lengths=of_all_lengths)

    return moved_in(path, state, one, kept_in=coordinates[0])


def factor_at(factors: Tensor, number: int) -> Tensor | None:
    """One of the metrics; None for unit masses."""
    return factors[number] if factors.shape[1] else None


def _num_chains(path: AbstractPath, options: Options) -> int:
    """At least two, to tell how far they are apart."""
    num_chains = options.chains(is_joint=path.layout.is_joint)
    if path.layout.is_joint and path.way is not Way.ONE_BY_ONE:
        return max(num_chains, _JOINT_PILOT_CHAINS)
    return min(max(num_chains, 2), MAX_PILOT_CHAINS)
