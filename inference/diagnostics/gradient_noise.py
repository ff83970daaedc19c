"""How much of a gradient estimate is signal: its mean and spread over many draws."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro.infer import ELBO
from torch import Tensor

from evidence.inference.objectives.interface import Differentiable
from evidence.inference.programs.data import Batch
from evidence.inference.programs.traces import Program


@dataclass(frozen=True)
class GradientNoise:
    """Mean and standard deviation of single gradient draws, entry by entry.

    Args:
        mean: `[P]`, in nats per unit of the parameter.
        std: `[P]`, of one draw.
        num_draws: how many draws they are from.
    """

    mean: Tensor
    std: Tensor
    num_draws: int

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio |mean| / std: `[P]`; NaN where every draw is zero."""
        return self.mean.abs() / self.std

    @property
    def snr_se(self) -> Tensor:
        """Standard error of `snr` by the delta method, as for normal draws: `[P]`."""
        return ((1 + self.snr**2 / 2) / self.num_draws).sqrt()

    @property
    def mean_se(self) -> Tensor:
        """Standard error of `mean`: `[P]`."""
        return self.std / math.sqrt(self.num_draws)


def gradient_signal_to_noise(
    objective: ELBO,
    model: Program,
    guide: Program,
    x: Batch,
    *,
    parameters: Sequence[Tensor],
    num_draws: int = 1000,
) -> GradientNoise:
    """Signal and noise of an objective's gradient, from independent draws for the same data.

    The gradients of a parameter that the objective does not reach are zeros. Nothing is trained,
    and the `.grad` of the parameters is left alone.

    Reference: T. Rainforth et al., "Tighter Variational Bounds are Not Necessarily Better", 2018,
    https://arxiv.org/abs/1802.04537, which shows that for IWAE's guide the ratio falls as 1/√K.

    Args:
        objective: any with a `differentiable_loss`; Pyro's `RenyiELBO` has none.
        model: called with `x`.
        guide: called with `x`.
        x: data `[B, ...]`.
        parameters: leaf tensors that require gradients; their entries one after the other are P.
        num_draws: gradients drawn, two at least.

    Raises:
        ValueError: a bad objective, parameter or number of draws.
    """
    parameters = list(parameters)
    if not isinstance(objective, Differentiable):
        raise ValueError(
            f"expected an objective with a differentiable_loss, got {type(objective).__name__}"
        )
    _check(parameters, num_draws)
    mean = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    squares = mean.clone()  # Σ (g − mean)²
    for count in range(1, num_draws + 1):  # Welford: no draw is kept, and nothing cancels
        gradient = _gradient(objective.differentiable_loss(model, guide, x), parameters)
        delta = gradient - mean
        mean = mean + delta / count
        squares = squares + delta * (gradient - mean)
    return GradientNoise(mean, (squares / (num_draws - 1)).sqrt(), num_draws)


def _gradient(loss: Tensor, parameters: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.detach().flatten().double().cpu() for g in gradients])


def _check(parameters: list[Tensor], num_draws: int) -> None:
    if num_draws < 2:
        raise ValueError(f"expected num_draws of at least 2, got {num_draws}")
    if not parameters or not all(p.requires_grad and p.is_leaf for p in parameters):
        raise ValueError(
            f"expected parameters to be leaf tensors that require gradients, got {len(parameters)} "
            "tensors, not all of which are"
        )
