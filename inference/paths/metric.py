"""The metric of annealing: a factor of the chains' covariance, estimated along the pilot run.

The scale of the density changes with the temperature, by orders of magnitude where data say much
more than the prior, and its shape with it. A running average over the last temperatures follows
both; it begins with draws from where the path begins, enough of them for a covariance of full rank.
Data are pooled, each about its own mean: all share one shape, and scale it by their step sizes.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["auto", "unit", "diagonal", "dense"]

# The largest Z for which "auto" is "dense": factors of many temperatures are kept.
_LARGEST_DENSE = 200
# Draws per entry that make a covariance, or a variance for "diagonal".
_DRAWS_PER_ENTRY = 10
_FEWEST_DRAWS = 100
# What a new temperature counts for in the running average, by draws there per entry.
_LOWEST_RATE, _HIGHEST_RATE = 0.05, 0.3
# Further out than so many standard deviations, by the median, chains are left out: they are stuck,
# or in the tails of a prior that has no variance.
_FARTHEST = 5.0
_MADS_PER_SD = 1.4826


def kind_for(kind: Kind, dim: int) -> Kind:
    """What "auto" is for Z entries; the kind itself, if it is another."""
    if kind != "auto":
        return kind
    return "dense" if 1 < dim <= _LARGEST_DENSE else "diagonal"


def num_draws(kind: Kind, num_data: int, dim: int) -> int:
    """How many draws per datum make the first covariance of Z entries."""
    wanted = {"unit": 0, "diagonal": _FEWEST_DRAWS, "dense": _FEWEST_DRAWS + _DRAWS_PER_ENTRY * dim}
    return math.ceil(wanted[kind] / num_data)


def covariance_of(z: Tensor, kind: Kind) -> Tensor:
    """Of chains `[C, B, Z]` about the mean of each datum: `[Z, Z]`, variances `[Z]`, or `[0]`."""
    if kind == "unit":
        return z.new_zeros(0, dtype=torch.float64)
    z = torch.where(z.isfinite(), z, 0.0).double()
    kept = _is_near(z).double().unsqueeze(-1)  # [C, B, 1]
    deviations = kept * (z - (kept * z).sum(0) / kept.sum(0).clamp(min=1))
    count = (kept.sum(0) - 1).clamp(min=0).sum().clamp(min=1)
    deviations = deviations.flatten(0, 1)
    if kind == "diagonal":
        return deviations.square().sum(0) / count
    return deviations.mT @ deviations / count


def _is_near(z: Tensor) -> Tensor:
    """Whether chains `[C, B, Z]` are among the others of their datum: `[C, B]`."""
    distances = (z - z.median(0).values).abs()
    typical = _MADS_PER_SD * distances.flatten(0, 1).median(0).values
    return (distances <= _FARTHEST * torch.where(typical > 0, typical, torch.inf)).all(-1)


def updated(covariance: Tensor, z: Tensor, kind: Kind) -> Tensor:
    """The running average after one temperature more, with chains at `z` `[C, B, Z]`."""
    per_entry = len(z) * z.shape[1] / (5 * z.shape[2])
    rate = min(max(per_entry, _LOWEST_RATE), _HIGHEST_RATE)
    return torch.lerp(covariance, covariance_of(z, kind), rate)


def factor_of(covariance: Tensor) -> Tensor:
    """L, of LLᵀ = Σ: `[Z, Z]` of a matrix, `[Z]` of variances; in float64.

    Entries without a spread, or a matrix that is not positive definite, get what is safe.
    """
    variance = covariance.diagonal() if covariance.ndim == 2 else covariance
    usable = variance.isfinite() & (variance > 0)
    scale = torch.where(usable, variance, 1.0).sqrt()
    if covariance.ndim == 1:
        return scale
    correlation = torch.where(usable & usable.unsqueeze(-1), covariance, 0.0)
    correlation = correlation / scale / scale.unsqueeze(-1)
    correlation.diagonal().fill_(1.0 + 1e-10)
    factor, failed = torch.linalg.cholesky_ex(correlation)
    return scale.unsqueeze(-1) * (torch.eye(len(scale)).to(factor) if failed else factor)
