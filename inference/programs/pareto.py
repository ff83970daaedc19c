"""Generalized Pareto distributions fitted to the tails of many samples of weights at once."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_FEWEST = 5  # of a tail that is fitted; in a shorter one k̂ is infinite
_SMALLEST = math.log(torch.finfo(torch.float64).tiny)  # log-weights below it are no tail
_AT_ONCE = 64  # samples: the grid of scales takes 30 + √n values for each of n


class Fit(NamedTuple):
    """Shapes k̂ and scales σ of the tails' distributions, each `[B]`."""

    shape: Tensor
    scale: Tensor


def smooth_tails(log_w: Tensor, tail_size: int) -> tuple[Tensor, Tensor]:
    """Log-weights whose largest are the quantiles of the distribution fitted to them.

    Algorithm 1 of A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance
    Sampling", 2024, https://jmlr.org/papers/v25/19-556.html, with ArviZ's regularization of k̂.

    Args:
        log_w: float64 `[S, B]`, the largest of each column 0.
        tail_size: n, the most weights of a tail; fewer where some of them are equal to the next.

    Returns:
        The log-weights `[S, B]`, none above 0, and k̂ `[B]`.
    """
    smoothed, shapes = log_w.clone(), torch.full_like(log_w[0], math.inf)
    values, rows = log_w.topk(tail_size + 1, dim=0)
    cutoff = values[-1].clamp(min=_SMALLEST)
    sizes = (values > cutoff).sum(0)
    for size in sizes.unique().tolist():
        if size < _FEWEST:
            continue
        for columns in (sizes == size).nonzero().squeeze(1).split(_AT_ONCE):
            at = rows[:size, columns].flip(0), columns
            start = cutoff[columns].exp()
            fit = fit_tails(log_w[at].exp() - start)
            shapes[columns] = fit.shape
            quantiles = (_quantiles(fit, size) + start).log().clamp(max=0)
            smoothed[at] = torch.where(fit.shape.isfinite(), quantiles, log_w[at])
    return smoothed, shapes


def fit_tails(tails: Tensor) -> Fit:
    """Fit generalized Pareto distributions that begin at 0, by the mean over a grid of scales.

    Reference: J. Zhang, M. A. Stephens, "A New and Efficient Estimation Method for the Generalized
    Pareto Distribution", 2009, https://doi.org/10.1198/tech.2009.08017; k̂ is drawn towards 0.5 as
    by ten weights more (Vehtari et al. 2024, appendix G).

    Args:
        tails: positive, each column in rising order, `[n, B]`.
    """
    size = len(tails)
    num_scales = 30 + int(size**0.5)
    steps = torch.arange(1, num_scales + 1, dtype=tails.dtype, device=tails.device) - 0.5
    quartile = tails[int(size / 4 + 0.5) - 1]
    b = (1 - (num_scales / steps).sqrt()).unsqueeze(1) / (3 * quartile) + 1 / tails[-1]  # [m, B]
    k = torch.log1p(-b.unsqueeze(1) * tails).mean(1)
    share = (size * ((-b / k).log() - k - 1)).softmax(0)
    share = torch.where(share < 10 * torch.finfo(share.dtype).eps, 0.0, share)
    b = (b * share).sum(0) / share.sum(0)
    k = torch.log1p(-b * tails).mean(0)
    return Fit((size * k + 10 * 0.5) / (size + 10), -k / b)


def _quantiles(fit: Fit, size: int) -> Tensor:
    """Those of the fitted distributions at (i − ½)/n, `[n, B]`."""
    probabilities = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    exponential = -torch.log1p(-probabilities).to(fit.shape).unsqueeze(1)
    is_zero = fit.shape.abs() < torch.finfo(fit.shape.dtype).eps
    shape = torch.where(is_zero, 1.0, fit.shape)
    return fit.scale * torch.where(is_zero, exponential, (shape * exponential).expm1() / shape)
