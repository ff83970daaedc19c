"""Whether the log joint is a number not only at draws from the posterior, but beside them."""

import torch
from torch import Tensor

from evidence.inference.paths.hmc import weighted_sum
from evidence.inference.paths.log_joint import AbstractPath, Way
from evidence.inference.programs.random_state import isolated_rng

# How far is looked, in differences of two other draws: a normal's spread grows by a tenth.
_STEP = 0.3
_LOOKS, _LOOKS_ONE_BY_ONE = 2000, 400


@torch.no_grad()
def share_beside(
    path: AbstractPath, z: Tensor, log_w: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """The share of draws `[S, B, Z]` with a NaN a small step away `[B]`, and one such step.

    The step is a part of the difference of two other draws, and so as wide as the posterior.

    Args:
        path: in whose coordinates the draws are.
        z: the draws.
        log_w: their log-weights `[S, B]`; None of draws that are all alike.
    """
    most = _LOOKS_ONE_BY_ONE if path.way is Way.ONE_BY_ONE else _LOOKS
    kept = torch.arange(0, len(z), max(1, len(z) // most), device=z.device)
    z = z[kept]
    with isolated_rng(0, z.device):
        one, other = (torch.randperm(len(z), device=z.device) for _ in range(2))
    beside = z + _STEP * (z[one] - z[other])
    beside = torch.where(beside.isfinite().all(-1, keepdim=True), beside, z)
    is_unknown = weighted_sum(path.weights(1.0), torch.stack(list(path(beside)))).isnan()
    first = is_unknown.any(1).nonzero()[:1].flatten()
    log_w = torch.zeros_like(is_unknown, dtype=torch.float64) if log_w is None else log_w[kept]
    weights = log_w.softmax(0).nan_to_num(nan=0.0)
    return (weights * is_unknown).sum(0), beside[first] if len(first) else None
