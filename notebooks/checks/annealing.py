"""Exercises of notebook 6: a tempered density, the weight of a chain, a bound from above."""

import math

import torch
from torch import Tensor

from evidence.notebooks.checks.cases import size
from evidence.notebooks.checks.exercise import Case, Exercise


def _two_densities(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_chains = size(generator, 4, 9)
    log_f0, log_f1 = (torch.randn(num_chains, generator=generator, dtype=dtype) for _ in range(2))
    beta = 0.1 + 0.35 * torch.rand((), generator=generator).item()
    return {"beta": beta, "log_f0": log_f0 - 2, "log_f1": 3 * log_f1 - 7}


tempered = Exercise(
    "tempered",
    right=lambda beta, log_f0, log_f1: (1 - beta) * log_f0 + beta * log_f1,
    cases=_two_densities,
    has_gradients=False,
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
        "this is β (log f₁ − log f₀), a step of the weight: log f₀ is missing": (
            lambda beta, log_f0, log_f1: beta * (log_f1 - log_f0)
        ),
        "1 + β in place of 1 − β": (
            lambda beta, log_f0, log_f1: (1 + beta) * log_f0 + beta * log_f1
        ),
        "the terms are subtracted: the densities are multiplied, so their logs add up": (
            lambda beta, log_f0, log_f1: (1 - beta) * log_f0 - beta * log_f1
        ),
        "the logs are multiplied: the densities are, so their logs add up": (
            lambda beta, log_f0, log_f1: (1 - beta) * log_f0 * beta * log_f1
        ),
        "the powers are of the logs, and nan where these are negative: a log of a power is a "
        "product": lambda beta, log_f0, log_f1: log_f0 ** (1 - beta) * log_f1**beta,
        "this is normalized over the places: f_β is not": (
            lambda beta, log_f0, log_f1: ((1 - beta) * log_f0 + beta * log_f1).log_softmax(0)
        ),
        "this is halfway, whatever β is": lambda beta, log_f0, log_f1: (log_f0 + log_f1) / 2,
        "this is the log of the sum of both densities; the path is geometric": (
            lambda beta, log_f0, log_f1: torch.logaddexp(log_f0, log_f1)
        ),
        "this is (1 − β) log f₀ alone: log f₁ is missing": (
            lambda beta, log_f0, log_f1: (1 - beta) * log_f0
        ),
        "this is log f₁ alone: at β = 0 it has to be gone": (
            lambda beta, log_f0, log_f1: log_f1.clone()
        ),
        "β is squared": (lambda beta, log_f0, log_f1: (1 - beta**2) * log_f0 + beta**2 * log_f1),
        "the density is missing that moves: this is f₁^β alone": (
            lambda beta, log_f0, log_f1: beta * log_f1
        ),
    },
)


def _chains(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """What chains found at their T + 1 places z_0, …, z_T."""
    num_temperatures, num_chains = size(generator, 6, 12), size(generator, 3, 8)
    betas = torch.rand(num_temperatures - 1, generator=generator, dtype=dtype).sort().values
    ends = torch.tensor([0.0, 1.0], dtype=dtype)
    shape = num_temperatures + 1, num_chains
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
        "the last increment is missing, at z_{T−1}": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1])[:-1].sum(0)
        ),
        "the steps are taken for equal: they are betas.diff()": (
            lambda betas, f0, f1: (f1 - f0)[:-1].mean(0)
        ),
        "the temperatures run backwards: the steps are betas.diff() of rising β": (
            lambda betas, f0, f1: (_steps(betas.flip(0)) * (f1 - f0)[:-1]).sum(0)
        ),
        "β_{t−1} in place of the step β_t − β_{t−1}": (
            lambda betas, f0, f1: (betas[:-1, None] * (f1 - f0)[:-1]).sum(0)
        ),
        "β_t in place of the step, at z_t": (
            lambda betas, f0, f1: (betas[:, None] * (f1 - f0)).sum(0)
        ),
        "f₀ is added, it is divided by: log f₁ − log f₀": (
            lambda betas, f0, f1: (_steps(betas) * (f1 + f0)[:-1]).sum(0)
        ),
        "f₁ is missing in the increment: f_t/f_{t−1} = (f₁/f₀)^(β_t − β_{t−1})": (
            lambda betas, f0, f1: -(_steps(betas) * f0[:-1]).sum(0)
        ),
        "this is the running sum: expected its end": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).cumsum(0)
        ),
        "the increments are not summed over the temperatures": (
            lambda betas, f0, f1: _steps(betas) * (f1 - f0)[:-1]
        ),
        "the weights are summed, not their logs: weights are multiplied along a chain": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).logsumexp(0)
        ),
        "this sums over the chains: expected the sum over the temperatures, dimension 0": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).sum(1)
        ),
        "this is the mean over the chains: expected one number per chain": (
            lambda betas, f0, f1: (_steps(betas) * (f1 - f0)[:-1]).sum(0).mean()
        ),
        "this averages the weights of the chains already: expected one log-weight per chain": (
            lambda betas, f0, f1: _log_mean((_steps(betas) * (f1 - f0)[:-1]).sum(0))
        ),
        "both densities of a ratio are taken at z_{t−1}: here f_t is taken at z_t": (
            lambda betas, f0, f1: f1[-1] - f0[0]
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


def _reverse_weights(
    generator: torch.Generator, dtype: torch.dtype, num_data: tuple[int, ...] = ()
) -> Case:
    """Of chains from exact draws: their log w, so large that exp() of them is infinite."""
    shape = size(generator, 5, 12), *num_data
    log_w = torch.randn(shape, generator=generator, dtype=dtype)
    return {"log_w": log_w + 900}


def _of_several_data(generator: torch.Generator, dtype: torch.dtype) -> Case:
    return _reverse_weights(generator, dtype, (size(generator, 3, 6),))


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


upper_bound = Exercise(
    "upper_bound",
    right=lambda log_w: -_log_mean(-log_w),
    cases=(_of_several_data, _reverse_weights),
    has_gradients=False,
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
            lambda log_w: -((-log_w).logsumexp(-1) - math.log(log_w.shape[-1]))
        ),
        "log of the number of chains is to base 2: math.log2 is not the natural logarithm": (
            lambda log_w: math.log2(len(log_w)) - (-log_w).logsumexp(0)
        ),
        "log of the number of chains is to base 10: math.log10 is not the natural logarithm": (
            lambda log_w: math.log10(len(log_w)) - (-log_w).logsumexp(0)
        ),
        "the log of the number of data in place of the chains': these are the first dimension": (
            lambda log_w: math.log(log_w.shape[-1]) - (-log_w).logsumexp(0)
        ),
        "this is the log of the sum of w, not even of its mean, and w averages to nothing here": (
            lambda log_w: log_w.logsumexp(0)
        ),
        "this is the largest log-weight: above log p(x), but far looser than the bound": (
            lambda log_w: log_w.max(0).values
        ),
        "this is the smallest log-weight: the mean of 1/w is not its largest term": (
            lambda log_w: log_w.min(0).values
        ),
        "this is minus the mean of the log-weights: take the mean of 1/w first, then −log": (
            lambda log_w: -log_w.mean(0)
        ),
        "this is one over log of the mean weight: 1/w is exp(−log_w)": (
            lambda log_w: 1 / _log_mean(log_w)
        ),
        "the log-weights are inverted, not the weights: 1/w is exp(−log_w)": (
            lambda log_w: -_log_mean(1 / log_w)
        ),
        "a small number is added to the 1/w, which are far smaller: use logsumexp": (
            lambda log_w: torch.full_like(log_w[0], -math.log(1e-30))
        ),
        "the log-weight that was taken out is not added again": (
            lambda log_w: -_log_mean(log_w.max(0).values - log_w)
        ),
    },
)
