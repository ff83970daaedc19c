"""Planar layers."""

import torch
from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.inversion import rise, unbend

_TINY = 1e-12  # in the place of a length of zero
_LEAST_LOG_SLOPE = -60.0  # what is less has no logarithm in float32


class PlanarLayers(AbstractTransform):
    """K planar layers, f(z) = z + û tanh(wᵀz + b), one after the other.

    û = u + (elu(a) − a) w/‖w‖² with a = wᵀu has wᵀû > −1, which makes f invertible:
    v = wᵀz + b solves v + wᵀû tanh v = wᵀy + b, and z = y − û tanh v. Then
    det ∂f/∂z = 1 + wᵀû tanh′ v = tanh² v + s tanh′ v with s = 1 + wᵀû: 1 + a, or eᵃ for a < 0.

    The paper has softplus(a) − 1 in place of elu(a) (appendix A.1): at w = 0 that is log 2 − 1, and
    û has a pole, which an encoder meets with one latent, as w(x) changes its sign. Here û has a
    bounded length, ‖û‖ ≤ 2 ‖u‖, and is u wherever a ≥ 0. As û is short where u is, layers that
    start small need larger learning rates than the paper's: in the plane 0.1, in place of 0.03.

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
    length = torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp(min=_TINY)
    a = (w * u).sum(-1, keepdim=True)
    falling = torch.where(a < 0, a, 0.0)
    along_w = (torch.expm1(falling) - falling) / length
    slope = torch.where(a < 0, falling.clamp(min=_LEAST_LOG_SLOPE).exp(), 1 + a)
    return torch.addcmul(u, along_w, w / length), slope
