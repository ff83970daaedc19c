"""Auxiliary draws of a guide, found from the latents that it makes of them."""

from collections.abc import Callable

import torch
from torch import Tensor

_Map = Callable[[Tensor], Tensor]  # `[C, B, Z] -> [C, B, Z]`, every row of Z by itself

_MOST_STEPS = 50  # a hierarchy of affine maps takes as many as it has levels
_MOST_NUMBERS = 2**22  # in Jacobians at a time


def solved(make: _Map, wanted: Tensor, start: Tensor) -> Tensor:
    """The u with make(u) = wanted, by Newton's method: `[C, B, Z]`.

    Most guides map their auxiliary draws affinely: one Jacobian per datum will do for all rows.

    Args:
        make: from auxiliary draws to unconstrained latents; differentiable.
        wanted: these latents `[C, B, Z]`.
        start: any u `[C, B, Z]`.

    Returns:
        NaN in the rows C of which there is no such u, or it is not found: latents that have been
        rounded onto the edge of their support come from none.
    """
    u, jacobian = start, _jacobian(make, start[:1])
    for _ in range(2):
        u = _step(u, jacobian, wanted - make(u))
    rows = (~_is_there(make(u), wanted)).nonzero().squeeze(1)
    at_once = max(1, _MOST_NUMBERS // (wanted[0].numel() * wanted.shape[-1]))
    for some in rows.split(at_once) if len(rows) else ():
        u[some] = _by_newton(make, wanted[some], start[some])
    return torch.where(_is_there(make(u), wanted)[:, None, None], u, torch.nan)


def _by_newton(make: _Map, wanted: Tensor, u: Tensor) -> Tensor:
    for _ in range(_MOST_STEPS):
        value = make(u)
        if _is_there(value, wanted).all():
            break
        u = _step(u, _jacobian(make, u), wanted - value)
    return u


def _step(u: Tensor, jacobian: Tensor, missing: Tensor) -> Tensor:
    step, _ = torch.linalg.solve_ex(jacobian, missing.unsqueeze(-1))
    return u + step.squeeze(-1)


def _is_there(value: Tensor, wanted: Tensor) -> Tensor:
    """Whether rows are equal to the rounding of their dtype: `[C]`."""
    tolerance = torch.finfo(wanted.dtype).eps ** 0.6
    return torch.isclose(value, wanted, rtol=tolerance, atol=tolerance).flatten(1).all(1)


def _jacobian(make: _Map, u: Tensor) -> Tensor:
    """∂make/∂u of every chain and datum `[C, B, Z, Z]`."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        value = make(u)
        rows = [
            torch.autograd.grad(
                value[..., entry].sum(),
                u,
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )[0]
            for entry in range(value.shape[-1])
        ]
    return torch.stack(rows, -2)
