"""The numeric inverse behind planar and Sylvester layers, with exact gradients."""

from typing import Any

import torch
from torch import Tensor

MAX_STEPS = 100


def unbend(slope: Tensor, target: Tensor) -> Tensor:
    """The root v of v + (slope − 1) tanh v = target, to rounding error.

    With slope > 0, the derivative at 0, the left side rises everywhere and the root is unique. Its
    derivatives are those of the implicit function theorem, to every order. A target that is NaN or
    infinite gives NaN or infinity.

    Args:
        slope: positive; broadcasts against `target`.
        target: any shape.

    Returns:
        v, of the common shape.
    """
    return _Root.apply(*torch.broadcast_tensors(slope, target))


class _Root(torch.autograd.Function):
    """The root, with dv = (dtarget − tanh v dslope) / (1 + (slope − 1) tanh′ v).

    The backward pass reads v as the output that it is, so it can itself be differentiated.
    """

    @staticmethod
    def forward(slope: Tensor, target: Tensor) -> Tensor:
        return newton(slope, target)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        slope, v = ctx.saved_tensors
        t = torch.tanh(v)
        grad_target = grad / rise(slope, t)
        return -grad_target * t, grad_target


def rise(slope: Tensor, t: Tensor) -> Tensor:
    """1 + (slope − 1)(1 − t²), the derivative where tanh is `t`, without a negative term."""
    square = t * t
    return torch.addcmul(square, slope, 1 - square)


def newton(slope: Tensor, target: Tensor, max_steps: int = MAX_STEPS) -> tuple[Tensor, int]:
    """The root by Newton's method, started and kept in a bracket, and the steps it took.

    The equation is odd in (v, target), so solve it for v ≥ 0, where the left side is concave
    (slope ≥ 1) or convex (slope < 1). From the end of the bracket at which it lies below the target
    or above it, Newton's steps are then monotone and need no line search.
    """
    excess, goal = slope - 1, target.abs()
    by_slope, by_limit = goal / slope, goal - excess  # the left side lies below both tangents, or
    start = torch.where(  # above both
        excess >= 0, torch.maximum(by_slope, by_limit), torch.minimum(by_slope, by_limit)
    )
    low, high = torch.minimum(start, goal), torch.maximum(start, goal)
    v, rounding = start, 2 * torch.finfo(target.dtype).eps
    for step in range(max_steps):
        t = torch.tanh(v)
        error = v + excess * t - goal
        tolerance = rounding * (v + excess.abs() * t + goal)
        if not (error.abs() > tolerance).any():  # so put, NaN counts as done
            return v.copysign(target), step
        v = (v - error / rise(slope, t)).clamp(low, high)
    return v.copysign(target), max_steps
