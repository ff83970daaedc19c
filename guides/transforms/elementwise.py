"""Increasing maps of single numbers, whose parameters a network gives."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class AbstractElementwise(ABC):
    """An increasing map of R, entry by entry, each with N parameters of its own.

    Zero parameters make the identity: a network with a small last layer starts calmly.
    """

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """N, the number of parameters of one entry."""

    @abstractmethod
    def push(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Images of `x`, `[...]`, and log-derivatives there, from parameters `[..., N]`."""

    @abstractmethod
    def pull(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Origins of `y`, `[...]`, and log-derivatives of the inverse at `y`."""


class BoundedAffine(AbstractElementwise):
    """y = m + exp(c tanh(s/c)) x, from m and s.

    The bound keeps a layer invertible in floating point whatever the network says, and is smooth:
    Pyro clamps s and lets gradients through as if it did not, so that where it clamps the gradients
    of its log-determinants are wrong.

    Args:
        bound: c, the largest absolute value of the log-scale.
    """

    num_parameters = 2

    def __init__(self, bound: float = 3.0) -> None:
        self.bound = bound

    def push(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Images of `x`, `[...]`, and log-derivatives there, from parameters `[..., 2]`."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return torch.addcmul(shift, log_scale.exp(), x), log_scale

    def pull(self, y: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Origins of `y`, `[...]`, and log-derivatives of the inverse at `y`."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (y - shift) * torch.exp(-log_scale), -log_scale

    def _shift_and_log_scale(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        shift, raw = parameters.unbind(-1)
        return shift, self.bound * torch.tanh(raw / self.bound)
