"""Pareto-smoothed importance weights, normalized."""

from torch import Tensor

from evidence.inference.programs import estimators


def smoothed_log_weights(log_w: Tensor) -> Tensor:
    """Log-weights with a smoothed tail, normalized over the particles: `[S, B] -> [S, B]`.

    Float64, on the CPU; `exp` of each column sums to 1. Where no tail can be fitted (fewer
    than 30 particles, or a tail of equal weights, k̂ of 0) the weights are only normalized.

    Reference: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance
    Sampling", 2024, https://jmlr.org/papers/v25/19-556.html, section 3.
    """
    smoothed, _ = estimators.pareto_smoothed(log_w)
    return smoothed - smoothed.logsumexp(0)
