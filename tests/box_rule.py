"""Integrals over boxes by a fixed Gauss-Legendre rule: for integrands that it surely resolves."""

import numpy as np
import torch
from torch import Tensor


def box_rule(
    low: float, high: float, dim: int = 1, *, num_panels: int = 50, order: int = 10
) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights of ∫ f over the box [low, high]^dim, in float64.

    The sides are cut into panels, each with Gauss-Legendre nodes, so that
    log ∫ f ≈ logsumexp(log f(nodes) + log_weights).

    Args:
        low: lower end of every side.
        high: upper end of every side.
        dim: number of dimensions, 1 or 2 for reasonable numbers of nodes.
        num_panels: panels per side.
        order: nodes per panel.

    Returns:
        `[N, dim]` and `[N]` with N = (num_panels · order)^dim.
    """
    unit_nodes, unit_weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(order))
    half = 0.5 * (high - low) / num_panels
    middles = low + half * (2 * torch.arange(num_panels, dtype=torch.float64) + 1)
    nodes = (middles.unsqueeze(1) + half * unit_nodes).flatten()
    log_weights = (half * unit_weights).log().repeat(num_panels)
    grid = torch.cartesian_prod(*[nodes] * dim).reshape(-1, dim)
    log_products = torch.cartesian_prod(*[log_weights] * dim).reshape(-1, dim).sum(1)
    return grid, log_products
