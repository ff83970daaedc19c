"""Shares of modes against quadrature, their error bars, and what planted errors do to them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from evidence.inference import guide_draws, mode_coverage, smc
from evidence.models import Energy2D, GaussianMixture2D
from evidence.models.modes import Modes, nearest
from evidence.models.problems import PROBLEMS

SQUARES = {
    "shells-2": (-6.0, 6.0),
    "eggbox": (0.0, 10 * math.pi),
    "student-mixture": (-30.0, 30.0),
    "separated-modes": (-25.0, 25.0),
}
SIZE = 800  # cells along a side


def on_a_square(low, high):
    side = low + (torch.arange(SIZE).double() + 0.5) * (high - low) / SIZE
    return torch.cartesian_prod(side, side)


@pytest.mark.parametrize("name", SQUARES)
def test_exact_shares_are_those_of_quadrature(name):
    """To 1e-5; the twin, all modes alike or in another order, is off where they differ."""
    problem, z = PROBLEMS[name], on_a_square(*SQUARES[name])
    trace = poutine.trace(poutine.condition(problem.model, {"z": z})).get_trace()
    sites = [s for s in trace.nodes.values() if s["type"] == "sample"]
    log_p = sum(site["fn"].log_prob(site["value"]) for site in sites)
    found = log_p.softmax(0) @ problem.modes.assign({"z": z}).double()
    assert torch.allclose(found, problem.modes.shares, atol=1e-5)
    if name != "shells-2":
        assert not torch.allclose(found, torch.full_like(found, 1 / len(found)), atol=1e-2)
    assert problem.modes.shares.sum().item() == pytest.approx(1)


def test_the_needle_has_the_share_of_its_mass():
    """In four dimensions, by Gaussian integrals written out: shares × N(c; 0, s² + 25)."""
    masses = [
        share * (math.exp(-(c**2) / (2 * (s**2 + 25))) / math.sqrt(s**2 + 25)) ** 4
        for share, c, s in ((0.2, -8.0, 0.2), (0.8, 8.0, 1.0))
    ]
    expected = [mass / sum(masses) for mass in masses]
    assert PROBLEMS["needle"].modes.shares.tolist() == pytest.approx(expected)


def test_models_in_the_plane_know_their_modes():
    """|z| < 5 for draws of the exact posteriors; the twin has the other datum's."""
    model, x = GaussianMixture2D(2).double(), torch.tensor([[2.0, 1.0], [-2.0, 0.3]]).double()
    seen = mode_coverage(model.modes(x), {"z": model.posterior(x).sample([4000])})
    z_scores = (seen.shares - seen.exact) / seen.se
    assert z_scores.abs().max() < 5
    assert ((seen.shares - seen.exact.flip(0)) / seen.se).abs().max() > 5
    assert torch.allclose(seen.exact.sum(1), torch.ones(2).double())
    energy = Energy2D(1)
    x = torch.zeros(1, 1)
    seen = mode_coverage(energy.modes(x), {"z": energy.posterior(x).sample([4000])})
    assert ((seen.shares - 0.5) / seen.se).abs().max() < 5
    assert Energy2D(1, energy="U2").modes(x) is None


def test_error_bars_of_independent_draws_are_true():
    """Over 400 data: z-scores of all three; half a draw for what is not met."""
    modes = nearest(torch.tensor([[-1.0], [1.0]]), torch.tensor([0.3, 0.7]))
    z = torch.where(torch.rand(1000, 400, 1) < 0.2, -1.0, 1.0).double()
    seen = mode_coverage(modes, {"z": z})
    spread = ((seen.shares[:, 0] - 0.2) / seen.se[:, 0]).std()
    assert spread.item() == pytest.approx(1, abs=0.15)
    entropy = -(0.2 * math.log(0.2) + 0.8 * math.log(0.8)) / math.log(2)
    errors = (seen.entropy.mean - entropy) / seen.entropy.se
    assert errors.std().item() == pytest.approx(1, abs=0.15)
    assert abs(errors.mean().item()) < 0.3
    shannon = sum(
        0.5 * a * math.log(2 * a / (a + b)) + 0.5 * b * math.log(2 * b / (a + b))
        for a, b in ((0.2, 0.3), (0.8, 0.7))
    )
    errors = (seen.jensen_shannon.mean - shannon) / seen.jensen_shannon.se
    assert errors.std().item() == pytest.approx(1, abs=0.2)
    assert abs(errors.mean().item()) < 0.3
    alone = mode_coverage(modes, {"z": torch.ones(1000, 1, 1)})
    assert alone.shares[0].tolist() == [0, 1]
    assert alone.se[0].tolist() == pytest.approx([5e-4, 5e-4])
    assert alone.entropy.mean.item() == 0
    assert alone.exact_entropy.item() == pytest.approx(
        -(0.3 * math.log(0.3) + 0.7 * math.log(0.7)) / math.log(2)
    )
    assert str(alone).startswith("modes 0.000 ± 0.001 (0.300), 1.000 ± 0.001 (0.700); entropy")


@pytest.mark.long
def test_error_bars_of_smc_know_that_its_islands_err_together():
    """z-scores over twelve seeds; draws taken by themselves, the twin, claim far too much."""
    problem = PROBLEMS["separated-modes"]
    z_scores, planted = [], []
    for seed in range(12):
        sampled = smc(problem.model, (), num_islands=16, num_chains=8, num_steps=8, seed=seed)
        for found, draws in ((z_scores, sampled), (planted, sampled.draws)):
            seen = mode_coverage(problem.modes, draws)
            found.append(((seen.shares - seen.exact) / seen.se)[0, 0].item())
    z_scores, planted = torch.tensor(z_scores), torch.tensor(planted)
    assert abs(z_scores.mean()) * math.sqrt(12) < 4
    assert 0.4 < z_scores.square().mean().sqrt() < 1.9
    assert planted.square().mean().sqrt() > 2


def test_draws_of_a_guide_and_bad_input():
    problem = PROBLEMS["shells-2"]

    def guide():
        pyro.sample("z", dist.Normal(torch.tensor([-3.5, 0.0]), 0.5).to_event(1))

    seen = mode_coverage(problem.modes, guide_draws(problem.model, guide, (), 500))
    assert seen.shares[0].tolist() == [1, 0]
    assert seen.jensen_shannon.mean.item() == pytest.approx(0.2158, abs=1e-3)
    modes = Modes(torch.ones(3, 2) / 2, lambda z: torch.cat([z, 1 - z], -1))
    with pytest.raises(ValueError, match=r"draws of 3 data with 2 modes each, got .*\(7, 2, 2\)"):
        mode_coverage(modes, {"z": torch.zeros(7, 2, 1)})
