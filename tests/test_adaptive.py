"""Particles where they are needed, and what stopping does to the estimate."""

import math

import pyro
import pytest
import torch

from guides import MeanField
from inference import Evidence, adaptive, estimators, fit, from_log_weights, log_weights
from inference.adaptive import adaptive_evidence
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


def bias_in_se(evidence, exact):
    """How far the mean error is from the −½ SE² that a log of a mean owes, in its own SEs."""
    errors = evidence.log_px - exact + evidence.log_px_variance / 2
    return (errors.mean() / errors.std() * math.sqrt(len(errors))).item()


def test_stopping_does_not_bias_the_estimate_and_reusing_the_pilot_does(rough):
    """|z| < 5 over 4,000 data with looks from 20 particles on; measured −0.003 and −0.020 nats.

    Weights of a guide that is too narrow: their SE is small until a large one comes up.
    """
    model, guide = rough
    x = model(None, size=4000)
    exact = model.log_evidence(x)
    fresh = adaptive_evidence(model, guide, x, batch=20, max_particles=10_000)
    planted = adaptive_evidence(model, guide, x, batch=20, max_particles=10_000, reuse_pilot=True)
    assert abs(bias_in_se(fresh, exact)) < 5
    assert bias_in_se(planted, exact) < -10


def test_only_data_that_need_particles_get_them(rough):
    """The pilot stops a datum at its first look below the target, and never before."""
    model, guide = rough
    x = model(None, size=200)
    options = {"target_se": 0.05, "batch": 50, "reuse_pilot": True}
    evidence = adaptive_evidence(model, guide, x, max_particles=400, **options)
    se, particles = evidence.log_px_variance.sqrt(), evidence.particles
    assert set(particles.tolist()) <= {50, 100, 200, 400}
    assert len(particles.unique()) > 2
    assert (se[particles < 400] <= 0.05).all()
    assert evidence.num_particles == 400
    loose = adaptive_evidence(model, guide, x, **{**options, "target_se": 10.0})
    assert (loose.particles == 50).all()


def test_what_is_kept_of_the_weights_gives_the_ess_and_k_hat_of_all(rough):
    """Also when they come in small portions; a shorter tail would give another k̂."""
    model, guide = rough
    x = model(None, size=30)
    pyro.set_rng_seed(4)
    whole = from_log_weights(log_weights(model, guide, x, 1000, chunk_size=1000))["iw"]
    options = {"target_se": 1e-9, "batch": 1000, "max_particles": 1000, "reuse_pilot": True}
    pyro.set_rng_seed(4)
    streamed = adaptive_evidence(model, guide, x, chunk_size=1000, **options)
    for field in ("log_px", "log_px_variance", "ess", "k_hat"):
        assert torch.allclose(getattr(streamed, field), getattr(whole, field), atol=1e-9), field

    log_w = log_weights(model, guide, x, 1000)
    sums = adaptive._RunningSums(30, 1000, x.device)
    for portion in log_w.split(130):
        sums.add(torch.arange(30), portion)
    assert torch.allclose(sums.record().k_hat, estimators.k_hat(log_w), atol=1e-9)
    assert torch.allclose(sums.ess(), estimators.ess(log_w))
    planted = adaptive._RunningSums(30, 300, x.device)
    planted.add(torch.arange(30), log_w)
    assert not torch.allclose(planted.record().k_hat, estimators.k_hat(log_w), atol=1e-3)


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
