"""The modes of the densities that have several, with what is known of their masses."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from scipy import stats
from torch import Tensor

from evidence.models.modes import Modes, components, nearest


def of_shells(dim: int, centre: float) -> Modes:
    """Two shells that mirror each other."""
    centres = torch.zeros(2, dim, dtype=torch.float64)
    centres[:, 0] = torch.tensor([-centre, centre])
    return nearest(centres, torch.ones(2))


def of_eggbox(num_cells: int) -> Modes:
    """Peaks where both cosines are 1, or both −1: all alike, but for what the edges cut off.

    A peak on an edge keeps a half, and one in a corner a quarter: a draw belongs to the nearest, in
    a diamond about it that the function's symmetries map onto every other.

    Args:
        num_cells: periods of 2π along a side.
    """
    places, masses = [], []
    for i in range(num_cells + 1):
        for j in range(i % 2, num_cells + 1, 2):
            places.append([2 * math.pi * i, 2 * math.pi * j])
            masses.append(0.5 ** ((i in (0, num_cells)) + (j in (0, num_cells))))
    return nearest(torch.tensor(places), torch.tensor(masses))


def of_gaussians(modes: Sequence[tuple[float, float, float]], dim: int, prior: float) -> Modes:
    """Gaussian modes under a Gaussian prior; each is a share, a centre and a scale."""
    log_masses = [
        math.log(share) + dim * float(stats.norm.logpdf(centre, 0, math.hypot(scale, prior)))
        for share, centre, scale in modes
    ]

    def log_densities(z: Tensor) -> Tensor:
        parts = [
            math.log(share) + dist.Normal(centre, scale).log_prob(z).sum(-1)
            for share, centre, scale in modes
        ]
        return torch.stack(parts, -1)

    return components(torch.tensor(log_masses), log_densities)


def of_students(centres: Sequence[tuple[float, float]], edge: float) -> Modes:
    """Products of two Student's t with three degrees of freedom, cut off; share and centre."""

    def inside(centre: float) -> float:
        return float(stats.t.cdf(edge - centre, 3) - stats.t.cdf(-edge - centre, 3))

    def log_densities(z: Tensor) -> Tensor:
        parts = [
            math.log(share) + dist.StudentT(3.0, centre, 1.0).log_prob(z).sum(-1)
            for share, centre in centres
        ]
        return torch.stack(parts, -1)

    log_masses = [math.log(share) + 2 * math.log(inside(centre)) for share, centre in centres]
    return components(torch.tensor(log_masses), log_densities)
