"""Divergences between a posterior and its guide where a grid can cover both: in the plane."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergences:
    """Both directions of KL between p(z | x) and q(z | x), per datum, in nats, on a grid.

    Args:
        forward: KL(p(z | x) ‖ q(z | x)) `[B]`; large where q misses what p has.
        reverse: KL(q(z | x) ‖ p(z | x)) `[B]`, evidence − ELBO; large where q has what p lacks. NaN
            where more than 1% of q lies off the grid.
        log_px: log p(x) `[B]`, the integral of p(x, z) over the grid.
        mass: what of q lies on the grid `[B]`; near 1, or the divergences are not to be trusted.
    """

    forward: Tensor
    reverse: Tensor
    log_px: Tensor
    mass: Tensor


_LEAST_MASS = 0.99


def square_grid(low: float, high: float, size: int, like: Tensor | None = None) -> Tensor:
    """Centres of size × size equal cells of a square, row by row: `[size², 2]`."""
    centres = low + (torch.arange(size, dtype=torch.float64) + 0.5) * (high - low) / size
    grid = torch.cartesian_prod(centres, centres)
    return grid if like is None else grid.to(like)


def grid_divergences(log_p_xz: Tensor, log_q_z: Tensor, cell_area: float) -> Divergences:
    """Both divergences from log-densities on the centres of equal cells, by the midpoint rule.

    Args:
        log_p_xz: log p(x, z), `[N, B]`; −inf outside of the support.
        log_q_z: log q(z | x), `[N, B]`.
        cell_area: area of one of the N cells.

    Raises:
        ValueError: the two are not of one shape `[N, B]`.
    """
    if log_p_xz.ndim != 2 or log_p_xz.shape != log_q_z.shape:
        raise ValueError(
            "expected log_p_xz and log_q_z of one shape (N, B), got "
            f"{tuple(log_p_xz.shape)} and {tuple(log_q_z.shape)}"
        )
    log_area = torch.tensor(cell_area, dtype=torch.float64, device=log_q_z.device).log()
    log_joint, log_q = log_p_xz.double(), log_q_z.double()
    log_px = log_joint.logsumexp(0) + log_area
    log_p = log_joint - log_px
    p, q = (log_p + log_area).exp(), (log_q + log_area).exp()  # masses of the cells

    def expectation(mass: Tensor, difference: Tensor) -> Tensor:
        return torch.where(mass > 0, mass * difference, 0.0).sum(0)

    mass, reverse = q.sum(0), expectation(q, log_q - log_p)
    return Divergences(
        forward=expectation(p, log_p - log_q),
        reverse=torch.where(mass < _LEAST_MASS, torch.nan, reverse),
        log_px=log_px,
        mass=mass,
    )
