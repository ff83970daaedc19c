"""Shift and scale, entry by entry."""

from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform


class Affine(AbstractTransform):
    """z = μ + σ ε.

    Args:
        loc: μ, `[B, Z]`.
        log_scale: log σ, `[B, Z]`.
    """

    def __init__(self, loc: Tensor, log_scale: Tensor) -> None:
        super().__init__()
        self.loc = loc
        self.log_scale = log_scale

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        return self.loc + self.log_scale.exp() * x, self._ladj_at(x)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        return (y - self.loc) * (-self.log_scale).exp(), self._ladj_at(y)

    def _ladj_at(self, x: Tensor) -> Tensor:
        return self.log_scale.sum(-1).expand(x.shape[:-1])
