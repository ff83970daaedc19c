"""Waste-free sequential Monte Carlo along a path, by independent islands."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.inference.annealing import hmc, particles, pilot
from evidence.inference.annealing.log_joint import AbstractPath
from evidence.inference.annealing.particles import Particles
from evidence.inference.annealing.pilot import Plan
from evidence.inference.annealing.smc_options import SMCOptions
from evidence.inference.programs import estimators


@dataclass
class Passed:
    """What one measured pass through the temperatures leaves, of R islands and b data.

    Args:
        log_increments: log of the mean weight at each step between them `[T, R, b]`, in float64.
        means: mean of log f_1 − log f_0 at each temperature `[T + 1, R, b]`.
        variances: its variance there `[T + 1, R, b]`.
        chain_variance: of the log-evidence, if chains began anew at each temperature: from the
            spread of their own means `[b]`.
        ess_shares: effective share of all particles at each step `[T, b]`.
        k_hat: Pareto shape of the weights at the step with the smallest effective share `[b]`.
        acceptance: mean acceptance at each temperature but the first `[T, b]`.
        r_hat: of the chains at β = 1, the largest over latents and log f_1 − log f_0 `[b]`.
        on_edge: share of the evidence from particles on the edge of a support, at the start or at
            the end `[b]`.
    """

    log_increments: Tensor
    means: Tensor
    variances: Tensor
    chain_variance: Tensor
    ess_shares: Tensor
    k_hat: Tensor
    acceptance: Tensor
    r_hat: Tensor
    on_edge: Tensor

    @property
    def log_z(self) -> Tensor:
        """The estimate of every island `[R, b]`; its exponential averages to p(x)."""
        return self.log_increments.sum(0)


def run(
    path: AbstractPath, plan: Plan, options: SMCOptions, on_temperature: Callable[[], None]
) -> tuple[Passed, Particles]:
    """One pass with everything frozen: unbiased, and a lower bound of log p(x) in expectation.

    At each temperature every island weighs its particles by f_t / f_{t−1}, draws ancestors from
    them, and keeps every position of the chains of HMC that set out from these. The product of mean
    weights averages to p(x), whatever the number of particles, chains or steps.

    Reference: H.-D. Dau, N. Chopin, "Waste-Free Sequential Monte Carlo", 2022,
    https://arxiv.org/abs/2011.02328.

    Returns:
        What was found, and the particles at β = 1.
    """
    num_chains, islands = options.chains(path), options.num_islands
    cloud = particles.drawn(path, options.num_steps, num_chains)
    record = _Record(path, cloud, islands)
    for t in range(1, len(plan.betas)):
        before, after = plan.betas[t - 1].item(), plan.betas[t].item()
        log_w = particles.by_island((after - before) * particles.change(path, cloud), islands)
        record.weigh(log_w, cloud)
        ancestors = particles.resampled(cloud, log_w, num_chains // islands)
        kernel = _Kernel(path, options, after, plan.step_sizes[t - 1], plan.factors[t - 1])
        cloud = particles.moved(path, ancestors, options.num_steps, kernel)
        record.arrive(cloud, kernel.acceptance())
        on_temperature()
    return record.passed(cloud), cloud


class _Kernel:
    """HMC at one temperature, its step sizes and metric frozen."""

    def __init__(
        self,
        path: AbstractPath,
        options: SMCOptions,
        beta: float,
        step_sizes: Tensor,
        factor: Tensor,
    ) -> None:
        self.path, self.options, self.beta = path, options, beta
        self.step_sizes, self.factor = step_sizes, factor if len(factor) else None
        self.accepted = torch.zeros_like(step_sizes)

    def __call__(self, state: hmc.State, number: int) -> hmc.State:
        length = self.options.num_leapfrog_steps
        state, info = pilot.move(self.path, state, self.beta, self.step_sizes, self.factor, length)
        self.accepted += info.acceptance.mean(0)
        return state

    def acceptance(self) -> Tensor:
        """The mean `[b]`."""
        return self.accepted / (self.options.num_steps - 1)


class _Record:
    """What is kept of each temperature once its particles are gone."""

    def __init__(self, path: AbstractPath, cloud: Particles, num_islands: int) -> None:
        self.path, self.num_islands = path, num_islands
        self.log_increments: list[Tensor] = []
        self.means: list[Tensor] = []
        self.variances: list[Tensor] = []
        self.chain_variances: list[Tensor] = []
        self.ess_shares: list[Tensor] = []
        self.acceptance: list[Tensor] = []
        self.lightest: Tensor | None = None  # log-weights [R·N, b] with the smallest ESS so far
        self.began_on_edge = torch.stack([path.on_edge(z) for z in cloud.z])
        self.edge_share: Tensor | None = None
        self._see(cloud)

    def _see(self, cloud: Particles) -> None:
        changes = particles.by_island(particles.change(self.path, cloud), self.num_islands)
        self.means.append(changes.mean(1))
        self.variances.append(changes.var(1))

    def weigh(self, log_w: Tensor, cloud: Particles) -> None:
        """The weights `[R, N, b]` of the particles of one temperature."""
        self.log_increments.append(particles.log_mean_exp(log_w))
        together = log_w.flatten(0, 1)
        ess = estimators.ess(together).nan_to_num(nan=0.0)
        self.ess_shares.append(ess / len(together))
        is_lightest = ess <= torch.stack(self.ess_shares).min(0).values * len(together)
        before = together if self.lightest is None else self.lightest
        self.lightest = torch.where(is_lightest, together, before)
        self.chain_variances.append(chain_variance(log_w, cloud.z.shape[0]))
        if self.edge_share is None:
            began = particles.by_island(self.began_on_edge, self.num_islands).flatten(0, 1)
            self.edge_share = (together.softmax(0).nan_to_num() * began).sum(0)

    def arrive(self, cloud: Particles, acceptance: Tensor) -> None:
        """The particles of the next temperature."""
        self.acceptance.append(acceptance)
        self._see(cloud)

    def passed(self, cloud: Particles) -> Passed:
        """All of it, with what the last particles `[P, C, b]` show."""
        log_increments = torch.stack(self.log_increments)
        shares = log_increments.sum(0).softmax(0).nan_to_num(nan=1 / self.num_islands)  # [R, b]
        on_edge = torch.stack([self.path.on_edge(z) for z in cloud.z])
        ends = particles.by_island(on_edge, self.num_islands).double().mean(1)
        assert self.lightest is not None and self.edge_share is not None
        return Passed(
            log_increments,
            torch.stack(self.means),
            torch.stack(self.variances),
            torch.stack(self.chain_variances).sum(0),
            torch.stack(self.ess_shares),
            estimators.k_hat(self.lightest),
            torch.stack(self.acceptance),
            r_hat_of(torch.cat([cloud.z, particles.change(self.path, cloud).unsqueeze(-1)], -1)),
            torch.maximum(self.edge_share, (shares * ends).sum(0)),
        )


def chain_variance(log_w: Tensor, num_steps: int) -> Tensor:
    """Variance of log of the mean weight over all islands, chains being independent: `[b]`.

    From the spread of the means of chains within their islands, which holds all autocovariances
    within a chain: what Dau and Chopin (2022, section 4) estimate from a long chain by a window.

    Args:
        log_w: chain after chain, `[R, K · P, b]`.
        num_steps: P.
    """
    weights = (log_w - particles.log_mean_exp(log_w).unsqueeze(1)).exp().nan_to_num(nan=1.0)
    chains = weights.unflatten(1, (-1, num_steps)).mean(2)  # [R, K, b]
    num_islands, num_chains, _ = chains.shape
    if num_chains < 2:
        return torch.full_like(chains[0, 0], math.nan)
    return chains.var(1).mean(0) / (num_islands * num_chains)


def r_hat_of(values: Tensor) -> Tensor:
    """Potential scale reduction of C chains, the largest of the last dimension: `[P, C, b, V]`.

    Reference: A. Gelman, D. B. Rubin, "Inference from Iterative Simulation Using Multiple
    Sequences", 1992, https://doi.org/10.1214/ss/1177011136.
    """
    within, between = values.var(0).mean(0), values.mean(0).var(0)
    share = (len(values) - 1) / len(values)
    return (share + between / within).sqrt().nan_to_num(nan=1.0).max(-1).values
