"""Particles where they are needed, and what stopping does to the estimate."""

import math

import pyro
import pytest
import torch

from evidence.guides import MeanField
from evidence.inference import Evidence, fit, from_log_weights
from evidence.inference.estimation import adaptive
from evidence.inference.estimation.adaptive import adaptive_evidence
from tests.conftest import make_oracle


def fitted(num_epochs, wider=0.0):
    """A mean-field guide; `wider` than the posterior by so much in log-scale: bounded weights."""
    model = make_oracle()
    pyro.set_rng_seed(2)
    x = model(None, size=2000)
    guide = MeanField(3, 10, hidden_dims=()).double()
    fit(model, guide, x, num_epochs=num_epochs, batch_size=100, lr=0.02, progress=False)
    with torch.no_grad():
        guide.encoder[-1].bias[3:] += wider
    return model, guide


@pytest.fixture(scope="module")
def wide():
    return fitted(30, wider=0.3)


@pytest.fixture(scope="module")
def rough():
    return fitted(10)


def coverage(evidence, exact, factor=2.0):
    errors = (evidence.log_px - exact).abs()
    return (errors <= factor * evidence.log_px_variance.sqrt()).double().mean().item()


def test_two_standard_errors_cover_at_least_93_percent_of_1000_data(wide):
    """The exact evidence, datum by datum; with one SE it would be 68%."""
    model, guide = wide
    x = model(None, size=1000)
    evidence = adaptive_evidence(model, guide, x, target_se=0.03)
    exact = model.log_evidence(x)
    assert coverage(evidence, exact) >= 0.93
    assert coverage(evidence, exact, 1.0) < 0.8
    assert evidence.particles.double().std() > 200  # some data did need more than others


def log_normal(rows, num_particles):
    """Log-weights whose weights have mean one, of the sd that x says."""
    noise = torch.randn(num_particles, len(rows), dtype=torch.float64)
    return rows * noise - rows**2 / 2


def mean_coverage(evidence, exact, size):
    """How often ±2 SE around the mean of `size` data holds their exact mean."""
    errors = (evidence.log_px - exact).reshape(-1, size).mean(1)
    se = evidence.log_px_variance.reshape(-1, size).sum(1).sqrt() / size
    return (errors.abs() <= 2 * se).double().mean().item()


@pytest.mark.parametrize("batch", [10, 200])
def test_two_standard_errors_of_a_mean_cover_with_a_loose_target(rough, batch):
    """The exact mean of 30 data, 100 times, with a target of 0.3 nat: 95%, in truth."""
    model, guide = rough
    x = model(None, size=3000)
    evidence = adaptive_evidence(model, guide, x, target_se=0.3, batch=batch)
    assert mean_coverage(evidence, model.log_evidence(x), 30) >= 0.88


def test_the_bias_of_the_log_does_not_add_up_over_data():
    """Means of 100 data whose log p̂ are low by 0.09 each, two SE of the mean: 95% without it."""
    x = torch.ones(20_000, dtype=torch.float64)
    rule = adaptive._Rule(target_se=0.45, max_particles=64, batch=8)
    evidence = adaptive._estimate(log_normal, x, adaptive._pilot(log_normal, x, rule))
    planted = from_log_weights(log_normal(x, 8))["iw"]
    assert mean_coverage(evidence, 0.0, 100) >= 0.88
    assert mean_coverage(planted, 0.0, 100) < 0.6


def test_stopping_does_not_bias_the_estimate_and_reusing_the_pilot_does():
    """Rare large weights (0.7 with probability 0.05, else 0.3): |z| < 5 over 5,000 data.

    Their SE is small until a large one comes up.
    """
    rule = adaptive._Rule(target_se=0.05, max_particles=5000, batch=20)
    x = torch.zeros(5000)

    def draw(rows, num_particles):
        rare = torch.rand(num_particles, len(rows), dtype=torch.float64) < 0.05
        return torch.where(rare, 8.0, 0.6 / 0.95).log()  # of mean one

    fresh = adaptive._estimate(draw, x[:1000], adaptive._pilot(draw, x[:1000], rule))
    few = draw(x, 20)  # all equal in 36% of the cases: SE 0, and low by 0.46 nat
    stopped = (few.std(0) == 0).nonzero().flatten()
    assert (fresh.log_px.exp().mean() - 1).abs() < 5 * fresh.log_px.exp().std() / math.sqrt(1000)
    assert len(stopped) > 1000
    assert few[:, stopped].logsumexp(0).sub(math.log(20)).mean() < -0.4


def test_only_data_that_need_particles_get_them():
    """Weights of sd 0.1 have an SE of 0.014 at 50 particles, those of sd 1 need 690 for 0.05."""
    x = torch.tensor([0.1, 1.0], dtype=torch.float64).repeat(100)
    rule = adaptive._Rule(target_se=0.05, max_particles=800, batch=50)
    needed = adaptive._pilot(log_normal, x, rule)
    assert (needed[::2] == 50).double().mean() > 0.95
    assert (needed[1::2] == 800).double().mean() > 0.8
    assert set(needed.tolist()) <= {50, 100, 200, 400, 800}
    loose = adaptive._pilot(log_normal, x, adaptive._Rule(10.0, 800, 50))
    assert (loose == 50).double().mean() > 0.9


def test_heavy_tails_ask_for_more_particles():
    """Pareto weights with k = 0.9 have an SE of 0.2 at 1,000 particles, and no right to one."""
    x = torch.zeros(100)

    def draw(rows, num_particles):
        return -0.9 * torch.rand(num_particles, len(rows), dtype=torch.float64).log()

    needed = adaptive._pilot(draw, x, adaptive._Rule(0.5, 4000, 1000))
    assert (needed > 1000).double().mean() > 0.8


def test_data_come_back_in_their_order(rough):
    """However many particles each of them got."""
    model, guide = rough
    x = model(None, size=60)
    evidence = adaptive_evidence(model, guide, x, target_se=0.05, batch=20)
    assert len(evidence.particles.unique()) > 2
    assert evidence.num_evaluations == 2 * evidence.particles.sum()  # the pilot drew as many
    z_scores = (evidence.log_px - model.log_evidence(x)) / evidence.log_px_variance.sqrt()
    assert z_scores.abs().max() < 6


def test_small_hands_and_few_data_at_work_change_nothing_but_memory(wide, monkeypatch):
    model, guide = wide
    x = model(None, size=50)
    monkeypatch.setattr(adaptive, "_WEIGHTS_IN_HAND", 700)
    monkeypatch.setattr(adaptive, "_DATA_AT_WORK", 20)
    done = []
    evidence = adaptive_evidence(model, guide, x, target_se=0.1, progress=done.append)
    z_scores = (evidence.log_px - model.log_evidence(x)) / evidence.log_px_variance.sqrt()
    assert z_scores.abs().max() < 5
    assert done == [20, 20, 10]


def test_the_record_states_the_numbers_of_particles():
    fixed = from_log_weights(torch.randn(50, 3, dtype=torch.float64))["iw"]
    more = from_log_weights(torch.randn(400, 2, dtype=torch.float64))["iw"]
    counts = torch.tensor([100, 400])
    varying = Evidence("iw", 400, more.log_px, more.log_px_variance, more.ess, more.k_hat, counts)
    assert "iw (S = 100 to 400, 250 on average)" in str(varying)
    joined = Evidence.concatenate([fixed, varying])
    assert joined.particles.tolist() == [50, 50, 50, 100, 400]
    assert joined.num_particles == 400
    assert fixed.particles is None
    assert "S = 50)" in str(fixed)


def test_every_datum_has_the_k_hat_threshold_of_its_own_number():
    """0.5 at 100 particles, 0.62 at 400: a k̂ of 0.55 is bad for the first only."""
    values = torch.zeros(2, dtype=torch.float64)
    counts = torch.tensor([100, 400])
    record = Evidence("iw", 400, values, values, values, values + 0.55, counts)
    assert record.share_bad == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_se": 0.0}, "target_se > 0, got 0.0"),
        ({"target_se": math.nan}, "target_se > 0, got nan"),
        ({"batch": 1}, "batch between 2 and max_particles, got batch=1"),
        ({"batch": 300, "max_particles": 200}, "got batch=300, max_particles=200"),
    ],
)
def test_bad_options_are_named(options, message):
    model = make_oracle()
    with pytest.raises(ValueError, match=message):
        adaptive_evidence(model, MeanField(3, 10), model(None, size=2), **options)
