"""Temperatures of annealing, and step sizes: found in a pilot run, smoothed, then left alone."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_SMALLEST_GAIN = 0.2
_SMOOTHED_SHARE = 0.05  # of the temperatures, on either side
# How much of the spread of log f_1 − log f_0 the first temperature of the pilot run takes.
_FIRST_CHANGE = 0.3
# The share of the temperatures that are spread evenly over those of the pilot run.
_EVEN_SHARE = 0.1


def spread_of(change: Tensor) -> float:
    """The standard deviation of log f_1 − log f_0 `[C, B]` among chains, pooled over the data.

    By quantiles: of what some chains have far below the others only their number matters.
    """
    change = torch.where(change.isfinite(), change, torch.nan)
    deviations = (change - change.nanmedian(0).values).flatten()
    deviations = deviations[~deviations.isnan()]
    if len(deviations) < 2:
        return 0.0
    low, high = deviations.quantile(deviations.new_tensor([0.16, 0.84])).tolist()
    return (high - low) / 1.989  # of a normal distribution


def pilot_betas(num_temperatures: int, spread: float) -> Tensor:
    """Inverse temperatures of the pilot run, above 0 up to 1: a geometric sequence.

    Where data say much more than the prior, the density narrows by like factors from one to the
    next.

    Args:
        num_temperatures: of the pilot run.
        spread: of log f_1 − log f_0 at β = 0.
    """
    first = 1 / num_temperatures
    if spread > 0:
        first = min(first, _FIRST_CHANGE / spread)
    betas = torch.logspace(math.log10(first), 0, num_temperatures, dtype=torch.float64)
    betas[-1] = 1.0  # of a single one, too
    return betas


def equidistant(betas: Tensor, spreads: Tensor, num_temperatures: int) -> Tensor:
    """Where among the pilot run's temperatures those of the measured run lie: `[T + 1]`.

    Weights vary by Σ_t (β_t − β_{t−1})² Var_t[log f_1 − log f_0], if chains mix. This is least for
    temperatures at equal distances in ∫ sd dβ.

    Reference: R. B. Grosse, C. J. Maddison, R. Salakhutdinov, "Annealing between distributions by
    averaging moments", 2013, https://papers.nips.cc/paper/2013/hash/fb60d411a5c5b72b2e7d3527cfc84fd0-Abstract.html.

    Args:
        betas: of the pilot run, from 0 to 1 `[P + 1]`.
        spreads: sd of log f_1 − log f_0 at each of them `[P + 1]`.
        num_temperatures: T.

    Returns:
        Places `[T + 1]` between 0 and P, rising.
    """
    smooth = _moving_average(spreads.clamp(min=0).unsqueeze(0))[0]
    lengths = betas.diff() * (smooth[1:] + smooth[:-1]) / 2
    total = lengths.sum()
    even = 1 / len(lengths)
    shares = lengths / total if total > 0 else torch.full_like(lengths, even)
    shares = (1 - _EVEN_SHARE) * shares + _EVEN_SHARE * even
    reached = F.pad(shares.cumsum(0), (1, 0))
    levels = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64, device=betas.device)
    left = torch.searchsorted(reached, levels, right=True).clamp(1, len(lengths)) - 1
    places = left + ((levels - reached[left]) / shares[left]).clamp(0, 1)
    places[0], places[-1] = 0.0, len(lengths)
    return places


def at_places(values: Tensor, places: Tensor) -> Tensor:
    """Values `[P, ...]` at places between their rows, linearly interpolated."""
    left = places.floor().long().clamp(0, max(len(values) - 2, 0))
    right = (left + 1).clamp(max=len(values) - 1)
    share = (places - left).to(values.dtype)
    return torch.lerp(values[left], values[right], share.reshape(-1, *(1,) * (values.ndim - 1)))


def adapted(log_step_size: Tensor, acceptance: Tensor, target: float, step: int) -> Tensor:
    """The next log step size `[B]`: longer where acceptance `[C, B]` is above the target.

    A Robbins–Monro iteration whose gain falls, but not to zero: the temperature goes on moving.
    """
    gain = max((step + 1) ** -0.5, _SMALLEST_GAIN)
    return log_step_size + gain * (acceptance.mean(0) - target)


def smoothed(log_step_sizes: Tensor, places: Tensor) -> Tensor:
    """Step sizes at places `[T]` among the temperatures of the pilot run.

    Args:
        log_step_sizes: of the pilot run `[P, B]`, without its warm-up.
        places: between 0 and P − 1.

    Returns:
        exp of a moving average, linearly interpolated: `[T, B]`.
    """
    return at_places(_moving_average(log_step_sizes.mT).mT, places).exp()


def _moving_average(rows: Tensor) -> Tensor:
    """`[B, P] -> [B, P]`."""
    half = int(_SMOOTHED_SHARE * rows.shape[-1])
    padded = F.pad(rows.unsqueeze(0), (half, half), mode="replicate")
    return F.avg_pool1d(padded, 2 * half + 1, stride=1)[0]
