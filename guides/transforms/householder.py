"""Householder reflections."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform


class Reflections(AbstractTransform):
    """K reflections, z − 2 v vᵀz with ‖v‖ = 1, one after the other; log|det| is 0.

    Args:
        vectors: v, unit vectors, `[B, K, Z]`.
    """

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self._vectors = vectors.unbind(-2)

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and zeros: `[..., B, Z]` and `[..., B]`."""
        y = reflect(x, self._vectors)
        return y, y.new_zeros(y.shape[:-1])

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and zeros; a reflection is its own inverse."""
        x = reflect(y, reversed(self._vectors))
        return x, x.new_zeros(x.shape[:-1])


def reflect(z: Tensor, vectors: Iterable[Tensor]) -> Tensor:
    """Reflect `z` by each of the unit vectors in turn, all of shape `[..., Z]`."""
    for v in vectors:
        z = torch.addcmul(z, v, (v * z).sum(-1, keepdim=True), value=-2)
    return z


def unit_vectors(raw: Tensor) -> Tensor:
    """K unit vectors from free numbers `[..., K, Z]`: zero gives the axes in turn.

    A direction has no derivative at zero, where an encoder's outputs begin; so zero is moved off.
    """
    number = torch.arange(raw.shape[-2], device=raw.device) % raw.shape[-1]
    axes = F.one_hot(number, raw.shape[-1]).to(raw.dtype)
    return F.normalize(raw + axes, dim=-1)
