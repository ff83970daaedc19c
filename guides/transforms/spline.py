"""Rational-quadratic splines."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.guides.transforms.elementwise import AbstractElementwise

MIN_BIN, MIN_SLOPE = 1e-3, 1e-3  # of the box's side, and of the slope outside of it


class RationalQuadratic(AbstractElementwise):
    """An increasing rational-quadratic spline on [−B, B], the identity outside, smooth at ±B.

    In a bin of width w and height h, with slopes d₀ and d₁ at its ends, s = h/w and ξ ∈ [0, 1],

        y = y₀ + h (s ξ² + d₀ ξ(1−ξ)) / (s + (d₀ + d₁ − 2s) ξ(1−ξ)).

    Here all is divided by s, and written so that only positive terms are added: both directions are
    exact to rounding. Parameters p are bounded, as c tanh(p/c), so that a layer stays invertible in
    floating point whatever the network says: without a bound, slopes in the middle of a bin fall
    to 1e-8, and no formula gets back through them. With c = 1 and 8 bins they stay between e^−6.5
    and e^4. Pyro's spline has
    slopes of 0.999 at ±B, where its density jumps, moves the bins' edges by 1e-6, past which steep
    bins give NaN, and stops with a failed assertion when its formula for the inverse cancels.

    Reference: C. Durkan, A. Bekasov, I. Murray, G. Papamakarios, "Neural Spline Flows", 2019,
    https://arxiv.org/abs/1906.04032, section 3.1.

    Args:
        num_bins: number of bins.
        tail_bound: B.
        bound: c, the largest absolute value of a parameter.
    """

    def __init__(self, num_bins: int = 8, tail_bound: float = 5.0, *, bound: float = 1.0) -> None:
        if not 1 <= num_bins < 1 / MIN_BIN:
            raise ValueError(f"expected num_bins from 1 to {1 / MIN_BIN - 1:.0f}, got {num_bins}")
        if not tail_bound > 0:
            raise ValueError(f"expected tail_bound > 0, got {tail_bound}")
        self.num_bins = num_bins
        self.tail_bound = tail_bound
        self.bound = bound

    @property
    def num_parameters(self) -> int:
        """Widths, heights, and the slopes between bins."""
        return 3 * self.num_bins - 1

    def push(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Images of `x`, `[...]`, and log-derivatives there, from parameters `[..., N]`."""
        inside = x.clamp(-self.tail_bound, self.tail_bound)
        (x0, y0, d0), (x1, y1, d1) = self._bin_of(inside, parameters, axis=0)
        width, height = x1 - x0, y1 - y0
        left, right = (inside - x0) / width, (x1 - inside) / width  # ξ and 1 − ξ
        d0, d1, slope = d0 * width / height, d1 * width / height, height / width
        y = y0 + height * left * (left + d0 * right) / _denominator(left, right, d0, d1)
        return self._with_tails(x, y, slope.log() + _log_slope(left, right, d0, d1))

    def pull(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Origins of `y`, `[...]`, and log-derivatives of the inverse at `y`."""
        inside = y.clamp(-self.tail_bound, self.tail_bound)
        (x0, y0, d0), (x1, y1, d1) = self._bin_of(inside, parameters, axis=1)
        width, height = x1 - x0, y1 - y0
        below, above = (inside - y0) / height, (y1 - inside) / height  # η and 1 − η
        d0, d1, slope = d0 * width / height, d1 * width / height, height / width
        left, right = _invert(below, above, d0, d1)
        return self._with_tails(
            y, x0 + width * left, -slope.log() - _log_slope(left, right, d0, d1)
        )

    def _with_tails(self, start: Tensor, end: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
        """The identity where `start` is outside of the box."""
        is_inside = start.abs() < self.tail_bound
        return torch.where(is_inside, end, start), torch.where(is_inside, ladj, 0.0)

    def _bin_of(
        self, inside: Tensor, parameters: Tensor, axis: int
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Position, height and slope at both ends of the bin, `[...]` each.

        `inside` is a position (axis 0) or a height (axis 1) in the box.
        """
        knots = self._knots(parameters)
        is_passed = inside.unsqueeze(-1) >= knots[..., axis, 1:-1]
        index = is_passed.sum(-1)[..., None, None].expand(*inside.shape, 3, 1)
        knots = knots.expand(*inside.shape, 3, self.num_bins + 1)
        ends = (knots.gather(-1, i).squeeze(-1).unbind(-1) for i in (index, index + 1))
        return next(ends), next(ends)

    def _knots(self, parameters: Tensor) -> Tensor:
        """Positions, heights and slopes of the knots, `[..., 3, num_bins + 1]`."""
        bins, bounded = self.num_bins, self.bound * torch.tanh(parameters / self.bound)
        sizes, raw_slopes = bounded.split((2 * bins, bins - 1), dim=-1)
        shares = MIN_BIN + (1 - MIN_BIN * bins) * sizes.unflatten(-1, (2, bins)).softmax(-1)
        inner = self.tail_bound * (2 * shares[..., :-1].cumsum(-1) - 1)
        slope_at_zero = math.log(math.expm1(1 - MIN_SLOPE))  # softplus of it and MIN_SLOPE make 1
        slopes = MIN_SLOPE + F.softplus(raw_slopes + slope_at_zero)
        bound = self.tail_bound
        return torch.cat(
            (
                F.pad(F.pad(inner, (1, 0), value=-bound), (0, 1), value=bound),
                F.pad(slopes, (1, 1), value=1.0).unsqueeze(-2),
            ),
            dim=-2,
        )


def _denominator(left: Tensor, right: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """1 + (d₀ + d₁ − 2) ξ(1−ξ), without a negative term."""
    return left.square() + right.square() + (d0 + d1) * left * right


def _log_slope(left: Tensor, right: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
    """The logarithm of ∂η/∂ξ, η = (y − y₀)/h."""
    numerator = d1 * left.square() + 2 * left * right + d0 * right.square()
    return numerator.log() - 2 * _denominator(left, right, d0, d1).log()


def _invert(below: Tensor, above: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """ξ and 1 − ξ from η and 1 − η.

    ξ is a root of (1 − b) ξ² + b ξ = η with b = q + 2η and q = d₀(1−η) − d₁η. The discriminant
    b² + 4(1 − b)η is q² + 4η(1−η), and of the two forms of the root the one with |q| adds up.
    """
    q = d0 * above - d1 * below
    is_left = q >= 0
    size = torch.where(is_left, q, -q)  # as abs, which has no slope at zero
    reach = size + (q.square() + 4 * below * above).sqrt()
    near = 2 * torch.where(is_left, below, above)
    small, large = near / (near + reach), reach / (near + reach)
    return torch.where(is_left, small, large), torch.where(is_left, large, small)
