"""The standard error of a mean."""

import math

import torch
from torch import Tensor


def standard_error(values: Tensor, own: Tensor | float = 0.0) -> float:
    """Standard error of the mean of `values` `[N]`; NaN of a single one.

    Args:
        values: N of them, drawn independently.
        own: what their own variances `[N]` are, as of estimates, which is taken out.
    """
    if len(values) == 1:
        return math.nan
    spread = values.double().var().item() - torch.as_tensor(own).double().mean().item()
    return math.sqrt(max(spread, 0.0) / len(values))
