"""The pilot run of sequential Monte Carlo: it finds what is frozen in the measured run."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from evidence.inference.annealing import particles, pilot, schedule
from evidence.inference.annealing.pilot import Plan
from evidence.inference.annealing.smc_options import SMCOptions
from evidence.inference.paths import hmc, metric
from evidence.inference.paths.log_joint import AbstractPath, Way

_NUM_STEPS = 16
_JOINT_CHAINS, _CHAINS_PER_DATUM = 128, 16
_FIRST_STEP_SIZE = 0.5
_BISECTIONS = 60


def plan_for(path: AbstractPath, options: SMCOptions, on_temperature: Callable[[], object]) -> Plan:
    """Temperatures, and a metric and step sizes for each, from one adaptive run.

    Each temperature is as far from the last as the effective share of the particles allows. The
    metric there is of the reweighted particles; the step sizes are those that Robbins and Monro's
    iteration settles on.

    Raises:
        ValueError: more temperatures would be needed than are allowed.
    """
    has_batches = path.layout.is_joint and path.way is not Way.ONE_BY_ONE
    num_chains = _JOINT_CHAINS if has_batches else _CHAINS_PER_DATUM
    kind = metric.kind_for(options.metric, path.dim)
    cloud = particles.drawn(path, _NUM_STEPS, num_chains)
    changes, _ = particles.changes_at_start(path, cloud)
    log_step = cloud.z.new_full((cloud.z.shape[2],), math.log(_FIRST_STEP_SIZE))
    betas, sizes, factors = [0.0], [], []
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
        factor = metric.factor_of(metric.covariance_of(everywhere, kind))
        tuner = _Tuner(path, options, beta, factor.to(cloud.z), log_step)
        cloud = particles.moved(path, everywhere[::_NUM_STEPS], _NUM_STEPS, tuner)
        changes = path.log_ratio(cloud.log_probs)
        log_step = tuner.settled()
        betas.append(beta)
        sizes.append(log_step.exp())
        factors.append(factor.to(cloud.z))
        on_temperature()
    steps = torch.tensor(betas, dtype=torch.float64, device=cloud.z.device)
    return Plan(steps, torch.stack(sizes), torch.stack(factors))


class _Tuner:
    """A transition that adapts its step sizes; its chains have no part in the estimate."""

    def __init__(
        self,
        path: AbstractPath,
        options: SMCOptions,
        beta: float,
        factor: Tensor,
        log_step: Tensor,
    ) -> None:
        self.path, self.options, self.beta = path, options, beta
        self.factor = factor if len(factor) else None
        self.log_steps = [log_step]

    def __call__(self, state: hmc.State, number: int) -> hmc.State:
        state, info = pilot.move(
            self.path,
            state,
            self.beta,
            self.log_steps[-1].exp(),
            self.factor,
            self.options.num_leapfrog_steps,
        )
        target = self.options.target_acceptance
        self.log_steps.append(schedule.adapted(self.log_steps[-1], info.acceptance, target, number))
        return state

    def settled(self) -> Tensor:
        """The mean of the second half `[b]`."""
        return torch.stack(self.log_steps[len(self.log_steps) // 2 :]).mean(0)


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
