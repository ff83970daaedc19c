"""Models with a posterior in the plane: every guide beside the truth, on a grid."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.experiments.storage.records import PlaneDivergences
from evidence.guides import AbstractPosterior
from evidence.inference.diagnostics.divergences import Divergences, grid_divergences, square_grid
from evidence.models import AbstractModel

_SIZE = 400  # cells along a side
_DATA = 16  # how many data the divergences are averaged over
_RESOLVED = 0.01  # nats by which the evidence on the grid may be off the exact one


@dataclass(frozen=True)
class Plane:
    """Log-densities of one datum on the cells of the model's square.

    Args:
        log_p_xz: log p(x, z) `[N, 1]`, −inf outside of the support.
        log_q_z: log q(z | x) `[N, 1]`.
        bounds: low and high end of the square's sides.
    """

    log_p_xz: Tensor
    log_q_z: Tensor
    bounds: tuple[float, float]

    @property
    def divergences(self) -> Divergences:
        """Both directions of KL between the posterior and the guide."""
        low, high = self.bounds
        return grid_divergences(self.log_p_xz, self.log_q_z, (high - low) ** 2 / len(self.log_p_xz))


@torch.no_grad()
def plane_of(
    model: AbstractModel, guide: AbstractPosterior, x: Tensor, *, size: int = _SIZE
) -> Plane:
    """The densities of model and guide for one datum `x` of shape `[1, D]`.

    Raises:
        ValueError: the model's posterior is not in the plane.
    """
    if model.plane is None:
        raise ValueError(f"expected a model in the plane, got {type(model).__name__}")
    grid = square_grid(*model.plane, size).to(x).unsqueeze(1)  # [N, 1, 2]
    log_p_xz = model.log_joint(x, grid)
    log_q_z = guide.posterior(x).log_prob(grid)
    return Plane(log_p_xz.expand(len(grid), 1), log_q_z.expand(len(grid), 1), model.plane)


def mean_divergences(
    model: AbstractModel, guide: AbstractPosterior, x: Tensor
) -> PlaneDivergences | None:
    """Both KL divergences, averaged over the first data; None for a model not in the plane.

    A divergence that is infinite, or not known as the guide lies off the grid, is None itself; so
    are both if the grid misses a posterior: its evidence there is off the exact one. Without
    information in x, one datum stands for all.
    """
    if model.plane is None:
        return None
    rows = x[:_DATA].unique(dim=0)
    found = [plane_of(model, guide, row).divergences for row in rows.split(1)]
    on_the_grid = torch.cat([d.log_px for d in found])
    exact = model.log_evidence(rows)
    is_seen = exact is not None and bool(((on_the_grid - exact).abs() < _RESOLVED).all())
    forward = sum(d.forward.item() for d in found) / len(found) if is_seen else math.nan
    reverse = sum(d.reverse.item() for d in found) / len(found) if is_seen else math.nan
    return PlaneDivergences(
        forward=forward,
        reverse=reverse,
        mass=min(d.mass.item() for d in found),
        num_data=len(found),
    )
