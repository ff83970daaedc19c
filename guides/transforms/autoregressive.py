"""Autoregressive layers."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.elementwise import AbstractElementwise
from evidence.guides.transforms.made import ConditionedMade


class Autoregressive(AbstractTransform):
    """y_i = g(x_i; θ_i), increasing in x_i, with θ_i from the entries before i of x or of y.

        given="x"  θ_i = network(x_1, …, x_{i−1}): all images at once, origins one by one (IAF)
        given="y"  θ_i = network(y_1, …, y_{i−1}): origins all at once, images one by one (MAF)

    The Jacobian is lower triangular. Gradients are exact in both directions.

    Args:
        network: gives θ, for the batch's contexts.
        element: g.
        given: what the network sees, "x" or "y".
    """

    def __init__(
        self, network: ConditionedMade, element: AbstractElementwise, *, given: Literal["x", "y"]
    ) -> None:
        super().__init__()
        self.network = network
        self.element = element
        self.given = given

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        if self.given == "y":
            return self._one_by_one(x, self.element.push)
        y, log_slopes = self.element.push(x, self.network(x))
        return y, log_slopes.sum(-1)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        if self.given == "x":
            x, ladj = self._one_by_one(y, self.element.pull)
            return x, -ladj
        x, log_slopes = self.element.pull(y, self.network(y))
        return x, -log_slopes.sum(-1)

    def _one_by_one(
        self, start: Tensor, through: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Entries that the network sees as soon as they are found, and Σ of log-slopes."""
        points = start.reshape(math.prod(start.shape[:-1]), start.shape[-1])
        entries, found, log_slopes = points.unbind(-1), [], []

        def solve(i: int, parameters: Tensor) -> Tensor:
            end, log_slope = through(entries[i], parameters)
            found.append(end)
            log_slopes.append(log_slope)
            return end

        self.network.one_by_one(start.shape, solve)
        ladj = torch.stack(log_slopes, -1).sum(-1)
        return torch.stack(found, -1).view(start.shape), ladj.view(start.shape[:-1])
