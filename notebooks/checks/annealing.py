"""Exercises of notebook 6: a tempered density, the weight of a chain, a bound from above."""

import math

import torch
from torch import Tensor

from evidence.notebooks.checks.exercise import Case, Exercise

_NUM_CHAINS, _NUM_TEMPERATURES = 6, 9


def _two_densities(generator: torch.Generator, dtype: torch.dtype) -> Case:
    log_f0, log_f1 = (torch.randn(_NUM_CHAINS, generator=generator, dtype=dtype) for _ in range(2))
    beta = 0.1 + 0.35 * torch.rand((), generator=generator).item()
    return {"beta": beta, "log_f0": log_f0 - 2, "log_f1": 3 * log_f1 - 7}


tempered = Exercise(
    "tempered",
    right=lambda beta, log_f0, log_f1: (1 - beta) * log_f0 + beta * log_f1,
    cases=_two_densities,
    mistakes={
        "β and 1 − β are swapped: the path begins at f₀, where β = 0": (
            lambda beta, log_f0, log_f1: beta * log_f0 + (1 - beta) * log_f1
        ),
        "f₀ keeps its full power: at β = 1 it has to be gone": (
            lambda beta, log_f0, log_f1: log_f0 + beta * log_f1
        ),
        "f₁ comes in at once, at full power: it is f₁^β": (
            lambda beta, log_f0, log_f1: (1 - beta) * log_f0 + log_f1
        ),
        "β multiplies the sum of both: at β = 0 the density would be flat": (
            lambda beta, log_f0, log_f1: beta * (log_f0 + log_f1)
        ),
        "this is the log of a mixture, (1 − β) f₀ + β f₁; the path is geometric": (
            lambda beta, log_f0, log_f1: torch.logaddexp(
                log_f0 + math.log(1 - beta), log_f1 + math.log(beta)
            )
        ),
        "this is the density itself; expected its log": (
            lambda beta, log_f0, log_f1: ((1 - beta) * log_f0 + beta * log_f1).exp()
        ),
        "this is one number: expected one per chain": (
            lambda beta, log_f0, log_f1: ((1 - beta) * log_f0 + beta * log_f1).sum()
        ),
        "the density is missing that moves: this is f₁^β alone": (
            lambda beta, log_f0, log_f1: beta * log_f1
        ),
    },
)


def _chains(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """What chains found at their T + 1 places z_0, …, z_T."""
    betas = torch.rand(_NUM_TEMPERATURES - 1, generator=generator, dtype=dtype).sort().values
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    shape = (_NUM_TEMPERATURES + 1, _NUM_CHAINS)
    log_f0, log_f1 = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return {
        "betas": torch.cat([ends[:1], betas, ends[1:]]),
        "log_f0": log_f0 - 2,
        "log_f1": 3 * log_f1 - 7,
    }


def _steps(betas: Tensor) -> Tensor:
    return betas.diff()[:, None]


chain_log_weight = Exercise(
    "chain_log_weight",
    right=lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).sum(0),
    cases=_chains,
    has_gradients=False,
    mistakes={
        "the increments are taken after the move, at z_t: the weight changes at z_{t−1}, before": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[1:]).sum(0)
        ),
        "the increments are taken halfway between z_{t−1} and z_t: they belong at z_{t−1}": (
            lambda betas, f0, f1: (_steps(betas) * ((f1 - f0)[1:] + (f1 - f0)[:-1]) / 2).sum(0)
        ),
        "the sign is flipped: this is the log of 1/w": (
            lambda betas, f0, f1: -(_steps(betas) * (f1 - f0)[:-1]).sum(0)
        ),
        "f₀ is missing in the increment: f_t/f_{t−1} = (f₁/f₀)^(β_t − β_{t−1})": (
            lambda betas, f0, f1: (_steps(betas) * f1[:-1]).sum(0)
        ),
        "the increments are not multiplied by the steps of β": (
            lambda betas, f0, f1: (f1 - f0)[:-1].sum(0)
        ),
        "β_t in place of the step β_t − β_{t−1}": (
            lambda betas, f0, f1: (betas[1:, None] * (f1 - f0)[:-1]).sum(0)
        ),
        "this is the mean over the temperatures: increments add up": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).mean(0)
        ),
        "the first increment is missing, at z_0": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1])[1:].sum(0)
        ),
        "this is the plain importance weight f₁/f₀ of z_0: nothing was annealed": (
            lambda betas, f0, f1: f1[0] - f0[0]
        ),
        "this is f₁/f₀ at the end of the chain: that is no weight": (
            lambda betas, f0, f1: f1[-1] - f0[-1]
        ),
        "this sums over the chains too: expected one number per chain": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).sum()
        ),
        "this is the weight itself; expected its log": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).sum(0).exp()
        ),
    },
)


def _reverse_weights(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Of chains from exact draws: their log w, so large that exp() of them is infinite."""
    log_w = torch.randn(_NUM_CHAINS, 4, generator=generator, dtype=dtype)
    return {"log_w": log_w + 900}


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


upper_bound = Exercise(
    "upper_bound",
    right=lambda log_w: -_log_mean(-log_w),
    cases=_reverse_weights,
    mistakes={
        "exp(−log_w) is zero for log-weights of 900: use logsumexp": (
            lambda log_w: torch.full_like(log_w[0], math.inf)
        ),
        "this averages w: of chains from exact draws 1/w averages to 1/p(x), w to nothing": (
            _log_mean
        ),
        "this is log of the mean of 1/w, which estimates −log p(x): flip its sign": (
            lambda log_w: _log_mean(-log_w)
        ),
        "this is the mean of the log-weights: above log p(x), but far looser": (
            lambda log_w: log_w.mean(0)
        ),
        "log of the number of chains is missing: the mean of 1/w is its sum divided by C": (
            lambda log_w: -(-log_w).logsumexp(0)
        ),
        "log of the number of chains has the wrong sign": (
            lambda log_w: -(-log_w).logsumexp(0) - math.log(len(log_w))
        ),
        "this is one number for all data: expected one per datum": (
            lambda log_w: -_log_mean(-log_w).mean()
        ),
        "the mean is over the data: chains are the first dimension": (
            lambda log_w: -((-log_w).logsumexp(1) - math.log(log_w.shape[1]))
        ),
    },
)
