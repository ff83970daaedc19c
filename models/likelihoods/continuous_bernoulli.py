"""Pixels in the unit interval, scored with the normalizer that a Bernoulli lacks there."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

_NO_SHAPE = torch.Size()
_MIDDLE = 0.02  # |η| below which draws are those of a series

# log(sinh u / u) = Σ c_n u^2n with c_n = 2^2n B_2n / (2n (2n)!); below it six terms give 1e-15.
_SMALL = 0.3
_SERIES = (1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)


class ContinuousBernoulli(TorchDistribution):
    """Continuous Bernoulli by logits η: p(x) = C(η) σ(η)^x σ(−η)^(1−x) on [0, 1].

    As an exponential family, log p(x) = xη − A(η) with A(η) = log((e^η − 1)/η), which is evaluated
    as η/2 + log(sinh(η/2)/(η/2)): smooth at 0, where p is uniform, and for any η without overflow.
    (torch's class clamps the probabilities at both ends, and is 1% off for logits like 200.)

    Reference: G. Loaiza-Ganem, J. P. Cunningham, "The continuous Bernoulli: fixing a pervasive
    error in variational autoencoders", 2019, https://arxiv.org/abs/1907.06845, section 3.

    Args:
        logits: η, any shape.
        validate_args: as in torch.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012 (torch's name and type)
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "ContinuousBernoulli":
        """The same distribution for a larger batch."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """E[x] = A′(η) = ½ + ½ (coth(η/2) − 2/η), of the shape of `logits`."""
        u = 0.5 * self.logits
        is_small = u.abs() < _SMALL
        safe = torch.where(is_small, 1.0, u)
        slopes = [2 * n * c for n, c in enumerate(_SERIES, start=1)]
        series = u * _polynomial(slopes, u * u)
        return 0.5 + 0.5 * torch.where(is_small, series, 1 / safe.tanh() - 1 / safe)

    def log_prob(self, value: Tensor) -> Tensor:
        """Elementwise log p(x) in nats."""
        if self._validate_args:
            self._validate_sample(value)
        # About the middle of the interval: the two large terms of xη − A(η) would cancel.
        return (value - 0.5) * self.logits - _log_sinhc(0.5 * self.logits)

    def icdf(self, value: Tensor) -> Tensor:
        """The x with distribution function F(x) = value, of the common shape.

        x = log(1 + F (e^η − 1))/η, smooth in η: gradients are those of the draws.
        """
        if self._validate_args:
            self._validate_sample(value)
        logits, value = torch.broadcast_tensors(self.logits, value)
        # Solved for η ≤ 0, where nothing overflows; x at η and F is 1 − x at −η and 1 − F.
        is_positive, is_small = logits > 0, logits.abs() < _MIDDLE
        share = torch.where(is_positive, 1 - value, value)
        eta = torch.where(is_positive, -logits, logits)
        eta = torch.where(is_small, -1.0, eta)
        x = torch.log1p(share * torch.expm1(eta)) / eta
        x = torch.where(is_positive, 1 - x, x)
        return torch.where(is_small, _icdf_near_zero(logits, value), x).clamp(0, 1)

    def rsample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """Draws by the inverse of the distribution function: `[*sample_shape, *batch_shape]`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        return self.icdf(torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device))


def _icdf_near_zero(eta: Tensor, u: Tensor) -> Tensor:
    """The inverse distribution function for |η| below `_MIDDLE`, where its formula cancels.

    η x = log(1 + u(e^η − 1)) is the cumulant generating function of a coin of probability u: six
    cumulants leave an error of 1e-14.
    """
    small = torch.where(eta.abs() < _MIDDLE, eta, 0.0)
    w, d = u * (1 - u), 1 - 2 * u
    cumulants = (
        u,
        w,
        w * d,
        w * (1 - 6 * w),
        w * d * (1 - 12 * w),
        w * (1 - 30 * w + 120 * w * w),
    )
    return _polynomial([c / math.factorial(n) for n, c in enumerate(cumulants, 1)], small)


def _log_sinhc(u: Tensor) -> Tensor:
    """log(sinh u / u), even and smooth, 0 at 0."""
    is_small = u.abs() < _SMALL
    safe = torch.where(is_small, 1.0, u.abs())
    large = safe + torch.log(-torch.expm1(-2 * safe)) - torch.log(2 * safe)
    square = torch.where(is_small, u * u, 0.0)
    return torch.where(is_small, square * _polynomial(_SERIES, square), large)


def _polynomial(coefficients: Sequence[float | Tensor], x: Tensor) -> Tensor:
    """Σ c_n xⁿ by Horner's rule."""
    total = torch.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total
