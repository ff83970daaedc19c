"""Whether ranks are uniform: exact simultaneous bands for their empirical distribution."""

import numpy as np
from scipy.stats import binom, poisson

_TIES = 1 + 1e-9  # a count whose tail is the smallest one seen lies outside, rounding or not


def rank_counts(ranks: np.ndarray, num_draws: int) -> np.ndarray:
    """How many ranks are below k = 1 … L: `[N] -> [L]`; uniform ranks have N·k/(L + 1)."""
    below = np.cumsum(np.bincount(ranks, minlength=num_draws + 1))
    return below[:-1]


def uniformity_p_value(ranks: np.ndarray, num_draws: int) -> float:
    """How often uniform ranks stray as far as these, anywhere: a number in [0, 1].

    Each count below k is binomial; the smallest of their tail probabilities is compared with its
    exact distribution, by the recursion over k of Säilynoja et al.

    Reference: T. Säilynoja, P.-C. Bürkner, A. Vehtari, "Graphical test for discrete uniformity and
    its applications in goodness-of-fit evaluation and multiple sample comparison", 2022,
    https://doi.org/10.1007/s11222-022-10090-6.

    Args:
        ranks: integers in 0..L, `[N]`.
        num_draws: L.
    """
    size, points = len(ranks), _points(num_draws)
    counts = rank_counts(ranks, num_draws)
    smallest = min(binom.cdf(counts, size, points).min(), binom.sf(counts - 1, size, points).min())
    return 1 - probability_inside(*_pointwise_band(smallest, size, points), size, points)


def simultaneous_band(size: int, num_draws: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest counts below k = 1 … L that pass at this level: two of `[L]`.

    All counts of `size` uniform ranks lie inside, ends included, with probability `level` or,
    counts being whole, a little more.

    Raises:
        ValueError: a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"expected a level between 0 and 1, got {level}")
    points = _points(num_draws)
    low, high = np.log(1e-3 * (1 - level) / num_draws), 0.0  # of the tail's log-probability
    for _ in range(40):
        middle = 0.5 * (low + high)
        band = _pointwise_band(np.exp(middle), size, points)
        inside = probability_inside(*band, size, points)
        low, high = (middle, high) if inside >= level else (low, middle)
    return _pointwise_band(np.exp(low), size, points)


def _points(num_draws: int) -> np.ndarray:
    return np.arange(1, num_draws + 1) / (num_draws + 1)


def _pointwise_band(tail: float, size: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts with more than `tail` probability at and beyond them, on either side."""
    tail = min(tail * _TIES, 1.0)
    return binom.ppf(tail, size, points).astype(int), binom.isf(tail, size, points).astype(int)


def probability_inside(
    lower: np.ndarray, upper: np.ndarray, size: int, points: np.ndarray
) -> float:
    """How likely all counts of uniform ranks are in [lower, upper] at these points of [0, 1].

    The counts are those of a Poisson process whose total is given, `size`: one convolution per
    point, and what is outside is cut off.
    """
    state = np.ones(1)  # over the counts first, first + 1, …
    first = 0
    for low, high, step in zip(lower, upper, np.diff(points, prepend=0.0), strict=True):
        mean = size * step
        jumps = np.arange(min(size, int(mean + 12 * np.sqrt(mean) + 30)) + 1)
        state = np.convolve(state, poisson.pmf(jumps, mean))
        counts = np.arange(first, first + len(state))
        kept = (counts >= low) & (counts <= high)
        if not kept.any():
            return 0.0
        state, first = state[kept], int(counts[kept][0])
    rest = poisson.pmf(size - np.arange(first, first + len(state)), size * (1 - points[-1]))
    return float(min(state @ rest / poisson.pmf(size, size), 1.0))
