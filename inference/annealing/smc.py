"""Waste-free sequential Monte Carlo along a path, by independent islands."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.annealing import particles
from evidence.inference.annealing.particles import Particles
from evidence.inference.annealing.smc_options import SMCOptions
from evidence.inference.annealing.smc_pilot import Move, SMCPlan
from evidence.inference.paths import hmc
from evidence.inference.paths.interweaving import in_turn
from evidence.inference.paths.log_joint import AbstractPath


class Passed(NamedTuple):
    """One measured pass through the temperatures, of R islands of N particles and b data.

    Args:
        changes: log f_1 − log f_0 of the particles at each temperature `[T + 1, R, N, b]`, chain
            after chain, in float64: all that the estimate and its diagnostics are made of.
        acceptance: mean acceptance at each temperature but the first `[T, b]`.
        began_on_edge: whether the first particles were on the edge of a support `[R, N, b]`.
        final: the particles at β = 1.
    """

    changes: Tensor
    acceptance: Tensor
    began_on_edge: Tensor
    final: Particles


def run(
    path: AbstractPath, plan: SMCPlan, options: SMCOptions, on_temperature: Callable[[], object]
) -> Passed:
    """One pass with everything frozen: unbiased, and a lower bound of log p(x) in expectation.

    At each temperature every island weighs its particles by f_t / f_{t−1}, draws ancestors from
    them, and keeps every position of the chains of HMC that set out from these. The product of mean
    weights averages to p(x), whatever the number of particles, chains or steps.

    Reference: H.-D. Dau, N. Chopin, "Waste-Free Sequential Monte Carlo", 2022,
    https://arxiv.org/abs/2011.02328, algorithm 2.

    Raises:
        ValueError: the log joint of draws from f_0 is NaN or +inf.
    """
    num_chains, islands = options.chains(path), options.num_islands
    cloud = particles.drawn(path, options.num_steps, num_chains)
    start, began = particles.changes_at_start(path, cloud)
    changes, acceptance = [particles.by_island(start, islands)], []
    for t in range(1, len(plan.betas)):
        log_w = (plan.betas[t] - plan.betas[t - 1]) * changes[-1]
        ancestors = particles.resampled(cloud, log_w, num_chains // islands)
        beta = plan.betas[t].item()
        kernels = [_Kernel(move, path, beta, options) for move in plan.moves[t - 1]]
        cloud = particles.moved(path, ancestors, options.num_steps, in_turn(kernels))
        changes.append(particles.by_island(path.log_ratio(cloud.log_probs), islands))
        accepted = torch.stack([kernel.accepted for kernel in kernels]).sum(0)
        acceptance.append(accepted / (options.num_steps - 1))
        on_temperature()
    began = particles.by_island(began, islands)
    return Passed(torch.stack(changes), torch.stack(acceptance), began, cloud)


class _Kernel:
    """A move at one temperature, its step sizes and metric frozen."""

    def __init__(self, move: Move, path: AbstractPath, beta: float, options: SMCOptions) -> None:
        self.move, self.kept_in, self.beta, self.options = move, path, beta, options
        self.accepted = torch.zeros_like(move.step_sizes)  # mean acceptance, summed over the steps

    def __call__(self, state: hmc.State) -> hmc.State:
        state, info = self.move(
            state,
            self.beta,
            self.options,
            kept_in=self.kept_in,
            of_all_lengths=self.kept_in.layout.is_joint,
        )
        self.accepted += info.acceptance.mean(0)
        return state
