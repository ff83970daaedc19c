"""Planar layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.inversion import rise, unbend

LEAST_LENGTH = 0.1  # ε, of a w for which û is as if it were so long
_LEAST_LOG_SLOPE = -60.0  # what is less has no logarithm in float32


class PlanarLayers(AbstractTransform):
    """K planar layers, f(z) = z + û tanh(wᵀz + b), one after the other.

    û = (u + (elu(a) − a) n w/‖w‖²)/n with n² = ‖w‖² + ε² and a = wᵀu/n has wᵀû = elu(a) > −1, which
    makes f invertible: v = wᵀz + b solves v + wᵀû tanh v = wᵀy + b, and z = y − û tanh v. Then
    det ∂f/∂z = 1 + wᵀû tanh′ v = tanh² v + s tanh′ v with s = 1 + wᵀû: 1 + a, or eᵃ for a < 0.

    The paper has û = u + (softplus(wᵀu) − 1 − wᵀu) w/‖w‖² (appendix A.1), with a pole at w = 0,
    which an encoder meets with one latent, as w(x) changes its sign. Here ‖û‖ ≤ 2 ‖u‖/ε. Without
    the division by n no pole were left, but where u and w are short a layer did hardly anything,
    and trained slowly; with it the slope of a layer, as the paper's, depends on the direction of w,
    not on its length.

    Args:
        bias: b, `[B, K, 1]`.
        u: `[B, K, Z]`.
        w: `[B, K, Z]`.

    Attributes:
        layers: of each layer b, û, w and s.
    """

    def __init__(self, bias: Tensor, u: Tensor, w: Tensor) -> None:
        super().__init__()
        u_hat, slope = invertible(u, w)
        self.slope = slope.squeeze(-1)  # [B, K]
        self.layers = list(
            zip(bias.unbind(-2), u_hat.unbind(-2), w.unbind(-2), slope.unbind(-2), strict=True)
        )

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        bends = []
        for bias, u_hat, w, _ in self.layers:
            bends.append(torch.tanh((w * x).sum(-1, keepdim=True) + bias))
            x = torch.addcmul(x, u_hat, bends[-1])
        return x, self._ladj_of(bends)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        bends = []
        for bias, u_hat, w, slope in reversed(self.layers):
            bends.append(torch.tanh(unbend(slope, (w * y).sum(-1, keepdim=True) + bias)))
            y = torch.addcmul(y, u_hat, bends[-1], value=-1)
        return y, self._ladj_of(bends[::-1])

    def _ladj_of(self, bends: list[Tensor]) -> Tensor:
        """Σ log det, from tanh v of each layer, `[..., B, 1]`: all layers in one go."""
        return rise(self.slope, torch.cat(bends, -1)).log().sum(-1)


def invertible(u: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """û and 1 + wᵀû > 0, for u and w of shape `[..., Z]`: `[..., Z]` and `[..., 1]`."""
    length = (w.square().sum(-1, keepdim=True) + LEAST_LENGTH**2).sqrt()
    direction = F.normalize(w, dim=-1)
    a = (w * u).sum(-1, keepdim=True) / length
    # (elu(a) − a) n/‖w‖, without a division by ‖w‖.
    along_w = (direction * u).sum(-1, keepdim=True) * a * _lack(a)
    slope = torch.where(a < 0, a.clamp(min=_LEAST_LOG_SLOPE, max=0).exp(), 1 + a)
    return torch.addcmul(u, along_w, direction) / length, slope


def _lack(a: Tensor) -> Tensor:
    """(eᵃ − 1 − a)/a² below zero, and zero above."""
    is_small = a > -0.01
    large = torch.where(is_small, -1.0, a)
    series = 0.5 + a * (1 / 6 + a * (1 / 24 + a * (1 / 120 + a / 720)))
    below = torch.where(is_small, series, (torch.expm1(large) - large) / large.square())
    return torch.where(a < 0, below, 0.0)
