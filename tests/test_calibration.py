"""Simulation-based calibration: exact guides pass, planted errors do not."""

import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import chi2

from evidence.guides import MeanField
from evidence.inference.diagnostics.calibration import (
    LOG_P_X,
    LOG_Q_Z,
    Calibration,
    simulation_based_calibration,
)
from evidence.inference.diagnostics.uniformity import (
    probability_inside,
    rank_counts,
    simultaneous_band,
    uniformity_p_value,
)
from evidence.models import VAE
from tests.test_weights import exact_guide, layered_guide, layered_model
from tests.test_wrappers import gamma_model

LEVEL = 0.999
LATENTS = ("z[0]", "z[1]", "z[2]")


def altered(model, *, shift=0.0, scale=1.0):
    """The exact posterior, moved by `shift` of its own standard deviations, or widened."""

    def guide(x):
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            loc = exact.loc + shift * exact.stddev
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale * exact.scale_tril))

    return guide


def prior_guide(model):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", model.prior())

    return guide


def failures(calibration):
    return {name for name, passed in calibration.passed(LEVEL).items() if not passed}


@pytest.mark.parametrize("seed", range(5))
def test_an_exact_guide_is_inside_the_band(oracle, seed):
    """25 checks at 99.9%; the seeds are fixed."""
    calibration = simulation_based_calibration(oracle, exact_guide(oracle), seed=seed)
    assert set(calibration.ranks) == {*LATENTS, LOG_P_X, LOG_Q_Z}
    assert failures(calibration) == set()
    assert np.abs(calibration.coverage().z_scores).max() < 5


@pytest.mark.parametrize("seed", range(3))
def test_a_biased_guide_is_outside(oracle, seed):
    calibration = simulation_based_calibration(oracle, altered(oracle, shift=0.5), seed=seed)
    assert set(LATENTS) <= failures(calibration)
    assert (calibration.coverage([0.5]).z_scores < -5).all()  # a biased region misses the truth


@pytest.mark.parametrize("seed", range(3))
def test_an_overconfident_guide_is_outside(oracle, seed):
    calibration = simulation_based_calibration(oracle, altered(oracle, scale=0.75), seed=seed)
    assert failures(calibration) == {*LATENTS, LOG_P_X, LOG_Q_Z}
    assert (calibration.coverage().z_scores < -5).all()
    ranks = torch.cat([calibration.ranks[name] for name in LATENTS])
    assert ((ranks < 10) | (ranks > 89)).double().mean() > 0.22  # piled up at the ends; 0.2 is due


@pytest.mark.parametrize("seed", range(3))
def test_a_guide_that_is_too_wide_is_outside(oracle, seed):
    calibration = simulation_based_calibration(oracle, altered(oracle, scale=1.33), seed=seed)
    assert failures(calibration) == {*LATENTS, LOG_P_X, LOG_Q_Z}
    assert (calibration.coverage().z_scores > 5).all()


@pytest.mark.parametrize("seed", range(3))
def test_only_the_likelihood_catches_a_guide_that_ignores_the_data(oracle, seed):
    """The prior's own ranks are uniform (Modrák et al. 2023): the planted error of plain SBC."""
    calibration = simulation_based_calibration(oracle, prior_guide(oracle), seed=seed)
    assert failures(calibration) == {LOG_P_X}


def test_coverage_of_a_scaled_gaussian_is_the_closed_form(oracle):
    """The region of mass α of a guide s times too wide covers P(χ² < s²·q_α), q_α of χ²."""
    calibration = simulation_based_calibration(
        oracle, altered(oracle, scale=1.2), num_simulations=4000
    )
    coverage = calibration.coverage([0.2, 0.5, 0.8, 0.9])
    expected = chi2.cdf(1.2**2 * chi2.ppf(coverage.nominal, 3), 3)
    # Among finitely many draws the region is of mass α only on average: a little less is covered.
    assert np.abs(coverage.estimate - expected).max() < 5 * coverage.se.max()
    assert np.abs(coverage.estimate - coverage.nominal).min() > 5 * coverage.se.max()


def test_coverage_of_perfectly_uniform_ranks_is_nominal():
    coverage = Calibration({LOG_Q_Z: torch.arange(100)}, 99).coverage([0.01, 0.5, 0.93])
    assert np.allclose(coverage.estimate, coverage.nominal)


def test_coverage_is_at_the_masses_it_names(oracle):
    calibration = simulation_based_calibration(
        oracle, exact_guide(oracle), num_simulations=50, num_draws=9
    )
    coverage = calibration.coverage([0.0, 0.52, 1.0])
    assert coverage.nominal.tolist() == [0.1, 0.5, 0.9]
    assert np.allclose(coverage.se, np.sqrt(np.array([0.09, 0.25, 0.09]) / 50))


def test_plain_functions_with_plates_are_simulated_like_a_batch():
    x = torch.zeros(3, 4).double()
    exact = simulation_based_calibration(layered_model, layered_guide, x=x)
    assert set(exact.ranks) == {"top", "bottom", LOG_P_X, LOG_Q_Z}
    assert failures(exact) == set()

    def twin(x):
        layered_guide(x + 0.3)

    assert "bottom" in failures(simulation_based_calibration(layered_model, twin, x=x))


@pytest.mark.parametrize("rate", [1.0, 1.15])
def test_constrained_latents(rate):
    """The gamma posterior is conjugate; the twin's data are scaled, and so is its tau."""

    def guide(x):
        with pyro.plate("data", len(x)):
            shape = torch.full((len(x), 1), 2.0 + x.shape[1]).double()
            posterior = dist.Gamma(shape, rate * (1 + x.sum(1, keepdim=True)))
            pyro.sample("tau", posterior.to_event(1))

    x = torch.ones(4, 5).double()
    assert (failures(simulation_based_calibration(gamma_model, guide, x=x)) == set()) == (rate == 1)


def pair_model(x=None, size=None):
    with pyro.plate("data", size if x is None else len(x)):
        a = pyro.sample("a", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        b = pyro.sample("b", dist.LogNormal(torch.zeros(2).double(), 1.0).to_event(1))
        loc = torch.cat([a, b.log()], -1)
        return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)


class ExactPair(MeanField):
    """N(0.8 x, 0.2 I) over (a, log b), side by side."""

    scale = math.sqrt(0.2)

    def posterior(self, x):
        return dist.Normal(0.8 * x, torch.tensor(self.scale).double()).to_event(1)


@pytest.mark.parametrize("factor", [1.0, 0.8])
def test_sites_drawn_through_an_auxiliary_one_are_scored(factor):
    """log q(z* | x) is had by the guide's posterior(x), the Jacobian included."""
    guide = ExactPair.for_model(pair_model, torch.randn(9, 3).double(), standardize="none")
    guide.guide.scale *= factor
    guide.inputs.loc.zero_()
    guide.inputs.scale.fill_(1.0)
    calibration = simulation_based_calibration(pair_model, guide)
    assert set(calibration.ranks) == {"a[0]", "b[0]", "b[1]", LOG_P_X, LOG_Q_Z}
    assert (failures(calibration) == set()) == (factor == 1)
    z_scores = calibration.coverage().z_scores
    assert (np.abs(z_scores).max() < 5) == (factor == 1)


def test_a_guide_that_cannot_score_a_given_latent_has_no_coverage(oracle):
    def guide(x):
        with pyro.plate("data", len(x)):
            exact = oracle.posterior(x)
            z = pyro.sample("hidden", exact, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(z, event_dim=1))

    calibration = simulation_based_calibration(oracle, guide)
    assert failures(calibration) == set()
    assert LOG_Q_Z not in calibration.ranks
    with pytest.raises(ValueError, match="cannot score a given z"):
        calibration.coverage()


def test_discrete_latents_have_ties_broken_at_random():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3).double()))
            pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=math.log(0.3 / 0.7) + 2 * x - 2))

    calibration = simulation_based_calibration(model, guide, x=torch.zeros(2).double())
    assert failures(calibration) == set()
    assert calibration.ranks["c"].unique().numel() > 90


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
@pytest.mark.parametrize(("size", "num_draws"), [(100, 19), (1000, 99)])
def test_the_band_holds_uniform_ranks_as_often_as_it_says(level, size, num_draws):
    """20,000 sets of uniform ranks, |z| < 5; counts are whole, so the band holds a little more.

    The twin is a band three counts narrower on either side.
    """
    counts = np.random.default_rng(0).multinomial(
        size, np.full(num_draws + 1, 1 / (num_draws + 1)), size=20_000
    )
    below, points = counts.cumsum(1)[:, :-1], np.arange(1, num_draws + 1) / (num_draws + 1)
    lower, upper = simultaneous_band(size, num_draws, level)
    exact = probability_inside(lower, upper, size, points)
    assert level <= exact < level + 0.15 * (1 - level)
    share = ((below >= lower) & (below <= upper)).all(1).mean()
    se = math.sqrt(exact * (1 - exact) / 20_000)
    assert abs(share - exact) < 5 * se
    narrower = ((below >= lower + 3) & (below <= upper - 3)).all(1).mean()
    assert narrower < exact - 5 * se


def test_the_band_is_arvizs():
    """ArviZ 0.x has it by the same recursion; the counts differ by one at most."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ecdf_utils = pytest.importorskip("arviz.stats.ecdf_utils")
    points = np.arange(1, 100) / 100
    theirs = ecdf_utils.ecdf_confidence_band(500, points, points, prob=0.95, method="optimized")
    ours = simultaneous_band(500, 99, 0.95)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - 500 * b).max() <= 1 + 1e-9


def test_p_values_are_uniform_and_agree_with_the_band():
    rng = np.random.default_rng(1)
    sets = [rng.integers(0, 20, 300) for _ in range(500)]
    p_values = np.array([uniformity_p_value(ranks, 19) for ranks in sets])
    for p in (0.1, 0.5, 0.9):
        assert abs((p_values <= p).mean() - p) < 5 * math.sqrt(p * (1 - p) / 500)
    lower, upper = simultaneous_band(300, 19, 0.9)
    inside = [((rank_counts(r, 19) >= lower) & (rank_counts(r, 19) <= upper)).all() for r in sets]
    assert (np.array(inside) == (p_values >= 0.1)).mean() > 0.99


def test_the_record():
    ranks = {"z": torch.arange(100).repeat(10), "w": torch.zeros(1000, dtype=torch.long)}
    calibration = Calibration(ranks, 99)
    assert calibration.passed() == {"z": True, "w": False}
    assert np.allclose(calibration.ecdf("z"), np.arange(1, 100) / 100)
    lower, upper = calibration.band()
    assert ((lower <= calibration.ecdf("z")) & (calibration.ecdf("z") <= upper)).all()
    assert not ((lower <= calibration.ecdf("w")) & (calibration.ecdf("w") <= upper)).all()
    assert "w: OUTSIDE the 99.9% band" in str(calibration)


def test_the_seed_decides(oracle):
    state = torch.get_rng_state()
    runs = [
        simulation_based_calibration(oracle, exact_guide(oracle), num_simulations=20, seed=s)
        for s in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(runs[0].ranks["z[0]"], runs[1].ranks["z[0]"])
    assert not torch.equal(runs[0].ranks["z[0]"], runs[2].ranks["z[0]"])


BAD = {
    "no size": (lambda: simulation_based_calibration(layered_model, layered_guide), "pass a batch"),
    "no simulations": (
        lambda: simulation_based_calibration(VAE(4, 2), MeanField(2, 4), num_simulations=0),
        "num_simulations of at least 1, got 0",
    ),
    "observed otherwise": (
        lambda: simulation_based_calibration(
            lambda x: layered_model(x + 1), layered_guide, x=torch.zeros(2, 4)
        ),
        "one site that observes x as it is, got 0",
    ),
    "level": (lambda: simultaneous_band(10, 9, 1.0), "between 0 and 1, got 1.0"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
