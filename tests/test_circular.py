"""Latent angles: a turn of the circle counts once, however far a proposal reaches."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.special import ive

from evidence.guides import FullRank
from evidence.inference import (
    check,
    fit,
    importance_weighted_evidence,
    marginal_likelihood,
    nuts_reference,
)
from evidence.inference.programs.random_state import isolated_rng

ANGLES = torch.tensor([0.4, 0.2], dtype=torch.float64)
PRIOR, CONCENTRATION = 0.2, 0.5


def directions(y):
    """A mean direction, of a prior and data that tell little of it."""
    mean = pyro.sample("mean", dist.VonMises(y.new_zeros(()), PRIOR))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.VonMises(mean, CONCENTRATION), obs=y)


def wide(y):
    """A guide that goes around the circle more than once."""
    pyro.sample("mean", dist.Normal(y.new_zeros(()), 4.0))


def exact():
    """The product of von Mises densities is one of the resultant's length, in Bessel functions."""

    def log_i0(concentration):
        return math.log(ive(0, concentration)) + concentration

    east = PRIOR + CONCENTRATION * ANGLES.cos().sum().item()
    north = CONCENTRATION * ANGLES.sin().sum().item()
    of_data = len(ANGLES) * (log_i0(CONCENTRATION) + math.log(2 * math.pi))
    return log_i0(math.hypot(east, north)) - log_i0(PRIOR) - of_data


def expect_right(evidence):
    assert evidence.not_reliable is None
    assert abs(evidence.mean - exact()) < 4 * evidence.mc_se < 0.2


def test_a_turn_counts_once(monkeypatch):
    """The planted error is torch's support: a normal of three turns and more counts them all."""
    options = {"num_particles": 4000, "search_modes": False}
    expect_right(importance_weighted_evidence(directions, wide, ANGLES, **options))
    monkeypatch.setattr(dist.VonMises, "support", constraints.real)
    planted = importance_weighted_evidence(directions, wide, ANGLES, **options)
    assert planted.mean - exact() > max(0.5, 8 * planted.mc_se)


@pytest.mark.parametrize("turns", [0, 1])
def test_latent_angles_from_the_check_to_the_evidence(turns):
    """Observed angles are any: from 0 to 2π as well."""
    y = ANGLES + 2 * math.pi * turns
    with isolated_rng(0):
        guide = FullRank.for_model(directions, y).double()
        assert check(directions, guide, y) == []
        fit(directions, guide, y, num_steps=500, lr=0.03, progress=False)
        expect_right(importance_weighted_evidence(directions, guide, y, 4000, defensive=0.3))
    found = marginal_likelihood(directions, y, target_se=0.02)
    assert len([one for one in found.estimates.values() if one.not_reliable is None]) > 1
    for one in found.estimates.values():
        assert one.not_reliable or abs(one.mean - exact()) < 4 * one.mc_se
    assert found.not_reliable is None


def test_the_reference_stays_on_the_circle():
    found = nuts_reference(directions, ANGLES, num_samples=50, num_warmup=50, num_chains=2)
    assert found.site_values["mean"].abs().max() <= math.pi
