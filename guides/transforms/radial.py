"""Radial layers."""

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform


class RadialLayers(AbstractTransform):
    """K radial layers, f(z) = z + β/(α + r) (z − c) with r = ‖z − c‖, one after the other.

    α = softplus(α′) and β = −α + softplus(β′) > −α, which makes f invertible. With s = α + β,

        det ∂f/∂z = ((r + s)/(r + α))^{Z−1} (r² + 2αr + αs)/(r + α)²,

    and r is the positive root of r² + (s − ‖y − c‖) r − α‖y − c‖ = 0.

    Args:
        center: c, `[B, K, Z]`.
        raw_alpha: α′, `[B, K, 1]`.
        raw_beta: β′, `[B, K, 1]`.
    """

    def __init__(self, center: Tensor, raw_alpha: Tensor, raw_beta: Tensor) -> None:
        super().__init__()
        alpha, alpha_beta = F.softplus(raw_alpha), F.softplus(raw_beta)
        self.alpha, self.alpha_beta = alpha.squeeze(-1), alpha_beta.squeeze(-1)  # [B, K]
        self._layers = list(
            zip(center.unbind(-2), alpha.unbind(-2), alpha_beta.unbind(-2), strict=True)
        )

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        radii = []
        for center, alpha, alpha_beta in self._layers:
            offset = x - center
            radii.append(torch.linalg.vector_norm(offset, dim=-1, keepdim=True))
            x = torch.addcmul(x, (alpha_beta - alpha) / (alpha + radii[-1]), offset)
        return x, self._ladj_of(radii, x.shape[-1])

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        radii = []
        for center, alpha, alpha_beta in reversed(self._layers):
            offset = y - center
            image = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
            radii.append(_positive_root(image - alpha_beta, alpha * image))
            y = torch.addcmul(center, (radii[-1] + alpha) / (radii[-1] + alpha_beta), offset)
        return y, self._ladj_of(radii[::-1], y.shape[-1])

    def _ladj_of(self, radii: list[Tensor], dim: int) -> Tensor:
        """Σ log det, from r of each layer, `[..., B, 1]`: all layers in one go."""
        r = torch.cat(radii, -1)
        stretch_across = (r + self.alpha_beta) / (r + self.alpha)
        stretch_along = (r * (r + 2 * self.alpha) + self.alpha * self.alpha_beta) / (
            r + self.alpha
        ).square()
        return ((dim - 1) * stretch_across.log() + stretch_along.log()).sum(-1)


def _positive_root(p: Tensor, q: Tensor) -> Tensor:
    """The root r ≥ 0 of r² − p r − q = 0 with q ≥ 0, without cancellation (Vieta)."""
    size = torch.where(p > 0, p, -p)  # as abs, which has no slope at zero
    larger = (size + (p.square() + 4 * q).sqrt()) / 2
    return torch.where(p > 0, larger, q / larger)
