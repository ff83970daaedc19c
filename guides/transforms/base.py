"""What the layers of flows have in common: a cache that spares draws the inverse."""

from abc import ABC, abstractmethod

import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import Transform
from torch import Tensor


class AbstractTransform(Transform, ABC):
    """An invertible map of R^Z that yields log|det ∂y/∂x| along with its values.

    To write one, give `push` and `pull`. The last pair (x, y) is remembered with its ladj, so that
    a draw is scored without the inverse. A pair from inside `torch.no_grad()` is forgotten where
    gradients are recorded: it would silently score a draw with no gradients through x = f⁻¹(y).

    Parameters have batch shape `[B]`, and points any particle dimensions before it: `[..., B, Z]`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._ladj: Tensor | None = None
        self._has_gradients = False

    @abstractmethod
    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Image y = f(x) and log|det ∂f/∂x|: `[..., Z]` and `[...]`."""

    @abstractmethod
    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Origin x = f⁻¹(y) and log|det ∂f/∂x| at that x: `[..., Z]` and `[...]`."""

    def __call__(self, x: Tensor) -> Tensor:
        """Image of `x`, remembered: `[..., Z]`."""
        self._forget_if_without_gradients()
        return super().__call__(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        self._forget_if_without_gradients()
        return super()._inv_call(y)

    def _call(self, x: Tensor) -> Tensor:
        y, self._ladj = self.push(x)
        self._has_gradients = torch.is_grad_enabled()
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, self._ladj = self.pull(y)
        self._has_gradients = torch.is_grad_enabled()
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det ∂y/∂x| at `x` of shape `[..., Z]`: `[...]`."""
        self._forget_if_without_gradients()
        cached_x, cached_y = self._cached_x_y
        if self._ladj is None or x is not cached_x or y is not cached_y:
            return self.push(x)[1]
        return self._ladj

    def _forget_if_without_gradients(self) -> None:
        if torch.is_grad_enabled() and not self._has_gradients:
            self._cached_x_y = None, None
