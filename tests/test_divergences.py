"""Divergences on a grid, against the closed form for Gaussians."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from evidence.inference.diagnostics.divergences import grid_divergences, square_grid

GRID = square_grid(-8.0, 8.0, 400)
AREA = (16 / 400) ** 2


def gaussian(loc, scale_tril):
    return MultivariateNormal(
        torch.tensor(loc, dtype=torch.float64),
        scale_tril=torch.tensor(scale_tril, dtype=torch.float64),
    )


P = gaussian([0.5, -1.0], [[1.0, 0.0], [0.6, 0.5]])
Q = gaussian([0.2, -0.7], [[0.9, 0.0], [-0.3, 0.8]])


def divergences(log_z=0.0, q=Q):
    log_p = P.log_prob(GRID).unsqueeze(1) + log_z
    return grid_divergences(log_p, q.log_prob(GRID).unsqueeze(1), AREA)


def test_both_directions_are_the_closed_form():
    got = divergences()
    assert got.forward.item() == pytest.approx(kl_divergence(P, Q).item(), abs=1e-9)
    assert got.reverse.item() == pytest.approx(kl_divergence(Q, P).item(), abs=1e-9)
    assert got.mass.item() == pytest.approx(1.0, abs=1e-9)
    # the planted error: the two directions exchanged
    assert abs(got.forward.item() - kl_divergence(Q, P).item()) > 0.1


def test_the_normalizer_is_found_and_changes_neither():
    got = divergences(log_z=3.7)
    assert got.log_px.item() == pytest.approx(3.7, abs=1e-9)
    assert got.forward.item() == pytest.approx(kl_divergence(P, Q).item(), abs=1e-9)
    assert got.reverse.item() == pytest.approx(kl_divergence(Q, P).item(), abs=1e-9)


def test_mass_off_the_grid_shows():
    half, none = (
        divergences(q=gaussian([place, 0.0], [[1.0, 0.0], [0.0, 1.0]])) for place in (8, 99)
    )
    assert half.mass.item() < 0.51
    assert none.mass.item() == 0.0
    assert half.reverse.isnan()
    assert none.reverse.isnan()  # not the 0 of a perfect fit
    assert none.forward.item() > 1000


def test_a_support_without_density_counts_nothing():
    log_p = torch.full((len(GRID), 1), -math.inf, dtype=torch.float64)
    inside = (GRID.abs() < 2).all(1)
    log_p[inside] = 0.0  # uniform on a square of area 16
    got = grid_divergences(log_p, log_p - math.log(16.0), AREA)
    assert got.log_px.item() == pytest.approx(math.log(16.0), abs=1e-9)
    assert got.forward.item() == pytest.approx(0.0, abs=1e-9)
    assert got.reverse.item() == pytest.approx(0.0, abs=1e-9)
    outside = grid_divergences(log_p, Q.log_prob(GRID).unsqueeze(1), AREA)
    assert outside.reverse.item() == math.inf


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"got \(3, 1\) and \(3, 2\)"):
        grid_divergences(torch.zeros(3, 1), torch.zeros(3, 2), 1.0)
