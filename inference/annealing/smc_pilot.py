"""The pilot run of sequential Monte Carlo: it finds what is frozen in the measured run."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.annealing import particles, pilot, schedule
from evidence.inference.annealing.smc_options import SMCOptions
from evidence.inference.paths import hmc, metric
from evidence.inference.paths.interweaving import in_turn, moved_in, seen_from
from evidence.inference.paths.log_joint import AbstractPath, Way

_NUM_STEPS = 16
_JOINT_CHAINS, _CHAINS_PER_DATUM = 128, 16
_FIRST_STEP_SIZE = 0.5
_BISECTIONS = 60


class Move(NamedTuple):
    """HMC at one temperature, in one set of coordinates.

    Args:
        path: in these coordinates.
        step_sizes: of each datum `[b]`.
        factor: of the metric, or None for unit masses.
    """

    path: AbstractPath
    step_sizes: Tensor
    factor: Tensor | None

    def __call__(
        self,
        state: hmc.State,
        beta: float,
        options: SMCOptions,
        *,
        kept_in: AbstractPath,
        of_all_lengths: bool = False,
    ) -> tuple[hmc.State, hmc.Info]:
        """One step at β, of chains whose state is kept in the coordinates of another path."""

        def move(there: hmc.State) -> tuple[hmc.State, hmc.Info]:
            return pilot.move(
                self.path,
                there,
                beta,
                self.step_sizes,
                self.factor,
                options.num_leapfrog_steps,
                of_all_lengths=of_all_lengths,
            )

        return moved_in(self.path, state, move, kept_in=kept_in)


class SMCPlan(NamedTuple):
    """What the measured run takes from the pilot run.

    Args:
        betas: inverse temperatures, from 0 to 1 `[T + 1]`, in float64.
        moves: at each temperature but the first, those that chains make by turns.
    """

    betas: Tensor
    moves: Sequence[Sequence[Move]]


def plan_for(
    coordinates: Sequence[AbstractPath],
    options: SMCOptions,
    on_temperature: Callable[[], object],
) -> SMCPlan:
    """Temperatures, and a metric and step sizes for each, from one adaptive run.

    Each temperature is as far from the last as the effective share of the particles allows. The
    metric there is of the reweighted particles; the step sizes are those that Robbins and Monro's
    iteration settles on.

    Raises:
        ValueError: more temperatures would be needed than are allowed.
    """
    path, *_ = coordinates
    has_batches = path.layout.is_joint and path.way is not Way.ONE_BY_ONE
    num_chains = _JOINT_CHAINS if has_batches else _CHAINS_PER_DATUM
    cloud = particles.drawn(path, _NUM_STEPS, num_chains)
    changes, _ = particles.changes_at_start(path, cloud)
    first = cloud.z.new_full((cloud.z.shape[2],), _FIRST_STEP_SIZE)
    betas, moves = [0.0], [[Move(one, first, None) for one in coordinates]]
    while betas[-1] < 1:
        if len(betas) > options.max_temperatures:
            raise ValueError(
                f"{options.max_temperatures} temperatures reach no further than β = "
                f"{betas[-1]:.3g}: begin nearer to the posterior (guide), or allow more "
                "(max_temperatures)"
            )
        changes = particles.by_island(changes, 1)  # [1, N, b]
        beta = next_beta(changes[0], betas[-1], options.ess_share)
        log_w = (beta - betas[-1]) * changes
        everywhere = particles.resampled(cloud, log_w, _NUM_STEPS * num_chains)
        tuners = [_Tuner(move, path, everywhere, options, beta) for move in moves[-1]]
        cloud = particles.moved(path, everywhere[::_NUM_STEPS], _NUM_STEPS, in_turn(tuners))
        changes = path.log_ratio(cloud.log_probs)
        betas.append(beta)
        moves.append([tuner.settled() for tuner in tuners])
        on_temperature()
    return SMCPlan(torch.tensor(betas, dtype=torch.float64, device=cloud.z.device), moves[1:])


class _Tuner:
    """A transition that adapts its step sizes; its chains have no part in the estimate.

    Args:
        before: the move at the last temperature.
        kept_in: the path in whose coordinates chains are kept.
        everywhere: particles at this temperature `[N, b, Z]`, in these.
        options: of the run.
        beta: the inverse temperature.
    """

    def __init__(
        self,
        before: Move,
        kept_in: AbstractPath,
        everywhere: Tensor,
        options: SMCOptions,
        beta: float,
    ) -> None:
        z = seen_from(kept_in, everywhere, before.path)
        kind = metric.kind_for(options.metric, kept_in.dim)
        factor = metric.factor_of(metric.covariance_of(z, kind)).to(z)
        self.move = before._replace(factor=factor if len(factor) else None)
        self.kept_in, self.options, self.beta = kept_in, options, beta
        self.log_steps = [before.step_sizes.log()]

    def __call__(self, state: hmc.State) -> hmc.State:
        move = self.move._replace(step_sizes=self.log_steps[-1].exp())
        state, info = move(state, self.beta, self.options, kept_in=self.kept_in)
        number, target = len(self.log_steps) - 1, self.options.target_acceptance
        self.log_steps.append(schedule.adapted(self.log_steps[-1], info.acceptance, target, number))
        return state

    def settled(self) -> Move:
        """With the step sizes of the second half, their mean in logarithms."""
        late = torch.stack(self.log_steps[len(self.log_steps) // 2 :])
        return self.move._replace(step_sizes=late.mean(0).exp())


def next_beta(changes: Tensor, beta: float, ess_share: float) -> float:
    """The largest inverse temperature that leaves every datum its effective share of particles.

    Particles at which the likelihood is zero are lost at any temperature: the share is of the rest.

    Args:
        changes: log f_1 − log f_0 `[N, b]`.
        beta: where the particles are.
        ess_share: between 0 and 1.
    """
    wanted = ess_share * (changes > -math.inf).sum(0)

    def is_allowed(step: float) -> bool:
        log_w = step * changes
        ess = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
        return not bool((ess < wanted).any())  # a datum without any weight has NaN, and no wish

    if is_allowed(1 - beta):
        return 1.0
    # In logarithms: where data say much, the first step is smaller than the last by many orders.
    low, high = math.log(1e-30), math.log(1 - beta)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_allowed(math.exp(middle)) else (low, middle)
    return min(max(beta + math.exp(low), math.nextafter(beta, 1.0)), 1.0)
