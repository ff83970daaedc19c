"""How much the draws of Markov chains are worth, for many functions of them at once."""

import math

import torch
from torch import Tensor

_ROUNDING = 1e-10  # relative: what varies less is a constant


def mean_ess(values: Tensor) -> Tensor:
    """Independent draws that chains `[C, N, ...]` are worth for the mean of a function: `[...]`.

    As Stan has it: N and the spectral density at zero, by Geyer's initial monotone sequence of the
    autocorrelations of split chains, whose level counts. Chains of a constant are worth all draws.

    References: C. J. Geyer, "Practical Markov Chain Monte Carlo", 1992,
    https://doi.org/10.1214/ss/1177011137; A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C.
    Bürkner, "Rank-Normalization, Folding, and Localization: An Improved R̂", 2021,
    https://doi.org/10.1214/20-BA1221, section 3.

    Raises:
        ValueError: fewer than eight draws in a chain.
    """
    if values.shape[1] < 8:
        raise ValueError(f"expected eight or more draws in every chain, got {values.shape[1]}")
    split = in_halves(values.double())
    num_chains, num_draws = split.shape[:2]
    covariances = _autocovariances(split)  # [N, 2C, ...]
    within = covariances[0].mean(0) * num_draws / (num_draws - 1)
    total = covariances[0].mean(0) + split.mean(1).var(0)
    correlations = 1 - (within - covariances.mean(1)) / total
    correlations[0] = 1
    pairs = correlations[: num_draws // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cumprod(0)
    monotone = pairs.cummin(0).values * positive
    end = (2 * positive.sum(0)).clamp(max=num_draws - 1)
    beyond = correlations.gather(0, end.unsqueeze(0)).squeeze(0).clamp(min=0)  # half of a pair
    count = num_chains * num_draws
    time = (2 * monotone.sum(0) - 1 + beyond).clamp(min=1 / math.log10(count))
    size = math.prod(values.shape[:2])
    is_constant = total <= _ROUNDING**2 * split.square().mean((0, 1))
    return torch.where(is_constant, float(size), size / time).nan_to_num(nan=0.0)


def in_halves(values: Tensor) -> Tensor:
    """The first and the second halves of chains as chains: `[C, N, ...] -> [2C, N // 2, ...]`."""
    half = values.shape[1] // 2
    return torch.cat([values[:, :half], values[:, values.shape[1] - half :]])


def _autocovariances(values: Tensor) -> Tensor:
    """Of each chain at every lag, by convolution: `[C, N, ...] -> [N, C, ...]`."""
    num_draws = values.shape[1]
    away = values - values.mean(1, keepdim=True)
    spectrum = torch.fft.rfft(away, n=2 * num_draws, dim=1)
    powers = torch.fft.irfft(spectrum.abs().square(), n=2 * num_draws, dim=1)
    return powers[:, :num_draws].transpose(0, 1) / num_draws
