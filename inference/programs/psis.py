"""Pareto-smoothed importance weights, with whichever ArviZ is installed."""

import warnings

import numpy as np
import torch
from torch import Tensor

from evidence.inference.programs import estimators


def smoothed_log_weights(log_w: Tensor) -> Tensor:
    """Log-weights with a smoothed tail, normalized over the particles: `[S, B] -> [S, B]`.

    Float64, on the CPU; `exp` of each column sums to 1. Where no tail can be fitted (fewer
    than 30 particles, or a tail of equal weights, k̂ of 0) the weights are only normalized.

    Reference: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance
    Sampling", 2024, https://jmlr.org/papers/v25/19-556.html, section 3.
    """
    k_hat = estimators.k_hat(log_w)
    log_w = log_w.detach().cpu().double()
    fitted = k_hat.isfinite() & (k_hat != 0)
    smoothed = log_w - log_w.logsumexp(0)
    if fitted.any():
        by_datum = log_w[:, fitted].mT.contiguous().numpy()  # [B, S]
        smoothed[:, fitted] = torch.from_numpy(np.array(_psis(by_datum))).mT
    return smoothed


def _psis(log_w: np.ndarray) -> np.ndarray:
    """Call whichever ArviZ is installed. `[B, S] -> [B, S]`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `estimators`
        try:
            from arviz_stats.base import array_stats  # noqa: PLC0415 (1.x)
        except ImportError:
            from arviz import psislw  # noqa: PLC0415 (0.x)

            return psislw(log_w)[0]
        return array_stats.psislw(-log_w)[0]  # it takes log-likelihoods and negates them
