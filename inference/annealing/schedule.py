"""Temperatures of annealing, and step sizes: found in a pilot run, smoothed, then left alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

# Data are tuned one by one, on the mean acceptance of at most so many chains of the pilot run.
MAX_PILOT_CHAINS = 8
# Steps at temperature 0, before the pilot run sets out.
NUM_WARMUP_STEPS = 50

_STEEPNESS = 4.0
_FIRST_STEP_SIZE = 0.5
_SMALLEST_GAIN = 0.2
_SMOOTHED_SHARE = 0.05  # of the temperatures, on either side


def sigmoidal_betas(num_temperatures: int) -> list[float]:
    """Inverse temperatures β_0 = 0 < … < β_T = 1, dense at both ends: T + 1 of them.

    β_t ∝ σ(δ(2t/T − 1)) with δ = 4, shifted and scaled to end at 0 and 1.

    Reference: R. B. Grosse, Z. Ghahramani, R. P. Adams, "Sandwiching the marginal likelihood using
    bidirectional Monte Carlo", 2015, https://arxiv.org/abs/1511.02543.
    """
    steps = torch.linspace(-_STEEPNESS, _STEEPNESS, num_temperatures + 1, dtype=torch.float64)
    heights = steps.sigmoid()
    betas = (heights - heights[0]) / (heights[-1] - heights[0])
    return betas.tolist()


def first_log_step_size(num_data: int, like: Tensor) -> Tensor:
    """Where the search for each datum's log step size begins: `[B]`."""
    return torch.full((num_data,), _FIRST_STEP_SIZE).to(like).log()


def adapted(log_step_size: Tensor, acceptance: Tensor, target: float, step: int) -> Tensor:
    """The next log step size `[B]`: longer where acceptance `[C, B]` is above the target.

    A Robbins–Monro iteration whose gain falls, but not to zero: the temperature goes on moving.
    """
    gain = max((step + 1) ** -0.5, _SMALLEST_GAIN)
    return log_step_size + gain * (acceptance.mean(0) - target)


def smoothed(log_step_sizes: Tensor, num_temperatures: int) -> Tensor:
    """Step sizes at every temperature of the measured run.

    Args:
        log_step_sizes: of the pilot run `[T₀, B]`, without its warm-up.
        num_temperatures: T.

    Returns:
        exp of a moving average, linearly interpolated: `[T, B]`.
    """
    rows = log_step_sizes.mT.unsqueeze(0)  # [1, B, T₀]
    half = int(_SMOOTHED_SHARE * rows.shape[-1])
    rows = F.avg_pool1d(F.pad(rows, (half, half), mode="replicate"), 2 * half + 1, stride=1)
    size = rows.shape[-1]
    position = torch.linspace(
        0, size - 1, num_temperatures, dtype=rows.dtype, device=rows.device
    )  # [T]
    left = position.floor().clamp(max=max(size - 2, 0)).long()
    right = (left + 1).clamp(max=size - 1)
    return torch.lerp(rows[0, :, left], rows[0, :, right], position - left).mT.exp()
