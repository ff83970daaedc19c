"""The Evidence record and its two error bars, against the exact evidence."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from evidence.guides import FullRank, MeanField
from evidence.inference import (
    Evidence,
    estimate_evidence,
    fit,
    from_log_weights,
    importance_weighted_evidence,
    log_weights,
)
from tests.conftest import make_oracle


def fitted(kind, model):
    """A guide with a linear encoder, fitted to a model that stays as it is."""
    pyro.set_rng_seed(2)
    x = model(None, size=2000)
    pyro.set_rng_seed(3)
    guide = kind(3, 10, hidden_dims=()).double()
    options = {"num_epochs": 60, "batch_size": 100, "lr": 0.02, "lr_decay": 0.93}
    fit(model, guide, x, clip_norm=5.0, progress=False, **options)
    return guide, x[:500]


@pytest.fixture(scope="module")
def mean_field():
    model = make_oracle()
    return model, *fitted(MeanField, model)


@pytest.fixture(scope="module")
def full_rank():
    model = make_oracle()
    return model, *fitted(FullRank, model)


def as_multivariate(posterior):
    if isinstance(posterior, dist.MultivariateNormal):
        return posterior
    base = posterior.base_dist
    return dist.MultivariateNormal(base.loc, scale_tril=torch.diag_embed(base.scale))


def mean_kl(model, guide, x):
    with torch.no_grad():
        return kl_divergence(as_multivariate(guide.posterior(x)), model.posterior(x)).mean().item()


def test_full_rank_reaches_the_exact_posterior(full_rank):
    assert mean_kl(*full_rank) < 0.01


def test_mean_field_reaches_its_closed_form_minimum(mean_field):
    """Given precision Λ, the best diagonal Gaussian has variances 1/Λ_ii."""
    model, guide, x = mean_field
    precision = model.posterior(x[:1]).precision_matrix[0]
    minimum = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    assert minimum > 0.02  # else FullRank would pass too
    assert mean_kl(model, guide, x) == pytest.approx(minimum, abs=0.02)
    assert mean_kl(model, guide, x) >= minimum


@pytest.mark.parametrize("which", ["mean_field", "full_rank"])
def test_evidence_is_within_five_standard_errors_of_the_exact_one(which, request):
    """The twin adds 0.05 nat: it fails for both guides."""
    model, guide, x = request.getfixturevalue(which)
    pyro.set_rng_seed(5)
    evidence = importance_weighted_evidence(model, guide, x, 500)
    exact = model.log_evidence(x).mean().item()
    assert abs(evidence.mean - exact) < 5 * evidence.mc_se
    assert abs(evidence.mean + 0.05 - exact) > 5 * evidence.mc_se
    assert evidence.share_bad < 0.05


@pytest.mark.parametrize("which", ["mean_field", "full_rank"])
def test_elbo_falls_short_of_the_evidence_by_the_kl(which, request):
    model, guide, x = request.getfixturevalue(which)
    pyro.set_rng_seed(6)
    elbo = estimate_evidence(model, guide, x, 500)["elbo"]
    gap = model.log_evidence(x).mean().item() - elbo.mean
    assert abs(gap - mean_kl(model, guide, x)) < 5 * elbo.mc_se


def test_monte_carlo_error_bars_cover(mean_field):
    """z-scores of 300 repeated estimates have unit spread; the planted bar, half as long, fails."""
    model, guide, x = mean_field
    exact = model.log_evidence(x[:20]).mean().item()
    pyro.set_rng_seed(7)
    log_w = log_weights(model, guide, x[:20].repeat(300, 1), 200)
    records = [from_log_weights(block)["iw"] for block in log_w.split(20, dim=1)]
    z_scores = torch.tensor([(record.mean - exact) / record.mc_se for record in records])
    assert 0.85 < z_scores.std() < 1.15
    assert not 0.85 < (2 * z_scores).std() < 1.15
    assert z_scores.mean().abs() < 0.5  # the bias of order 1/S is well below the error bar


def test_data_error_bar_is_the_spread_of_the_test_set_alone():
    """With noisy weights the spread of the estimates is larger than that of the data."""
    spread, noise = 2.0, 3.0
    log_px = spread * torch.randn(20_000, dtype=torch.float64)
    log_w = log_px + noise * torch.randn(4, 20_000, dtype=torch.float64)
    elbo = from_log_weights(log_w)["elbo"]
    expected = spread / math.sqrt(20_000)
    mixed = elbo.log_px.std().item() / math.sqrt(20_000)
    assert elbo.data_se == pytest.approx(expected, rel=0.03)
    assert mixed > 1.2 * expected
    assert elbo.mc_se == pytest.approx(noise / math.sqrt(4 * 20_000), rel=0.03)


def test_records_of_parts_make_the_record_of_the_whole():
    log_w = torch.randn(50, 9, dtype=torch.float64)
    whole = from_log_weights(log_w)["iw"]
    parts = [from_log_weights(chunk)["iw"] for chunk in log_w.split(4, dim=1)]
    joined = Evidence.concatenate(parts)
    assert joined.mean == pytest.approx(whole.mean, abs=1e-12)
    assert joined.mc_se == pytest.approx(whole.mc_se, abs=1e-12)
    assert joined.num_data == 9
    assert joined.num_evaluations == whole.num_evaluations == 450
    assert torch.allclose(joined.k_hat, whole.k_hat)
    unknown = Evidence.exact(torch.zeros(2))
    assert Evidence.concatenate([unknown, whole]).num_evaluations is None


def test_the_record_says_what_it_is():
    record = from_log_weights(torch.zeros(50, 3))["iw"]
    assert str(record) == (
        "iw (S = 50): 0.000 nats per datum, ± 0.000 (Monte Carlo), ± 0.000 (3 data); "
        "ESS 50, k̂ 0.00 (medians), above 0.41 for 0.0% of the data"
    )
    assert (record.estimator, record.num_particles, record.num_data) == ("iw", 50, 3)
    assert record.dtype is torch.float32


def test_an_exact_record_has_no_monte_carlo_error():
    assert str(Evidence.exact(torch.tensor([-1.0, -3.0]))) == (
        "exact: -2.000 nats per datum, ± 1.000 (2 data)"
    )


def log_normal(sd, num_particles, num_data=200):
    noise = torch.randn(num_particles, num_data, dtype=torch.float64)
    return from_log_weights(sd * noise - sd**2 / 2)["iw"]


@pytest.mark.parametrize("num_particles", [2, 16, 30, 100, 1000, 5000])
def test_weights_that_vary_little_are_reliable(num_particles):
    record = log_normal(0.3, num_particles)
    assert record.not_reliable is None
    assert "NOT RELIABLE" not in str(record)
    assert record.unsupported.double().mean() <= 0.12  # noise in k̂ of 30 weights


@pytest.mark.parametrize("num_particles", [2, 16, 30, 100, 1000, 5000])
def test_weights_that_vary_widely_are_not_reliable(num_particles):
    """They are low by 0.1 nat (5,000 particles) to 3.4 nats (2), many times their ±."""
    record = log_normal(3.0, num_particles)
    assert -record.mean > 3 * record.mc_se
    assert record.not_reliable is not None
    text = str(record)
    assert "NOT RELIABLE" in text
    assert "±" not in text
    assert "--estimator ais" in text


@pytest.mark.parametrize("num_particles", [16, 5000])
def test_one_weight_that_dwarfs_all_others_is_not_reliable(num_particles):
    log_w = torch.full((num_particles, 1), -1000.0, dtype=torch.float64)
    log_w[5] = 0.0
    record = from_log_weights(log_w)["iw"]
    assert record.unsupported.all()
    assert "a single weight dominates" in record.not_reliable
    assert record.mc_se > 100


def test_one_datum_of_many_that_hangs_on_one_weight_makes_the_mean_unreliable():
    log_w = 0.3 * torch.randn(1000, 300, dtype=torch.float64)
    assert from_log_weights(log_w)["iw"].not_reliable is None
    log_w[7, 20] = 500.0
    record = from_log_weights(log_w)["iw"]
    assert record.unsupported.nonzero().flatten().tolist() == [20]
    assert "a single weight dominates for 1 of 300 data" in record.not_reliable


def test_weights_that_are_all_zero_are_not_reliable():
    log_w = torch.randn(100, 3)
    log_w[:, 1] = -math.inf
    for record in from_log_weights(log_w).values():
        assert record.unsupported.tolist() == [False, True, False]
        assert "1 of the estimates is not finite" in record.not_reliable


def test_few_weights_say_that_they_cannot_know():
    assert "no k̂ (so few weights would not show heavy tails)" in str(log_normal(0.1, 16))


def test_a_lower_bound_says_about_how_low_it_is():
    """Log-normal weights of sd 0.8, S = 8: 0.05 nat low, many times the ± of 20,000 data."""
    record = log_normal(0.8, 8, 20_000)
    assert -record.mean > 10 * record.mc_se
    assert record.mean_bias == pytest.approx(record.mean, rel=0.2)
    assert f"a bound about {-record.mean_bias:.3f} too low" in str(record)


def test_the_elbo_needs_no_support_of_its_weights():
    log_w = 3 * torch.randn(100, 50, dtype=torch.float64)
    assert from_log_weights(log_w)["elbo"].not_reliable is None


def test_one_particle_or_one_datum_has_no_error_bar():
    one_particle = from_log_weights(torch.randn(1, 5))
    assert math.isnan(one_particle["elbo"].mc_se)
    assert math.isnan(one_particle["iw"].mc_se)
    assert math.isnan(one_particle["iw"].share_bad)
    assert math.isnan(from_log_weights(torch.randn(30, 1))["iw"].data_se)


def test_weights_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match="NaN or \\+inf"):
        from_log_weights(torch.tensor([[0.0, math.nan]]))


def test_one_estimate_for_a_data_set_needs_weights_with_a_variance():
    """Tails of 0.6: a k̂ that many data may have is too large for a single number."""
    torch.manual_seed(0)
    log_w = -0.6 * torch.rand(4000, 1, dtype=torch.float64).log()
    record = from_log_weights(log_w)["iw"]
    assert 0.5 < record.k_hat.item() < 0.7
    assert record.not_reliable is None
    one = record.of(torch.zeros(1), 10)
    assert "k̂ is too large" in one.not_reliable
    assert one.k_hat_threshold == 0.5
    light = from_log_weights(-0.3 * torch.rand(4000, 1, dtype=torch.float64).log())["iw"]
    assert light.of(torch.zeros(1), 10).not_reliable is None


def normal_mean(x):
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 10.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def exact_guide(x):
    """Exact in float64, rounded."""
    variance = 1 / (len(x) + 0.01)
    loc = variance * x.double().sum()
    pyro.sample("mu", dist.Normal(loc.to(x), x.new_tensor(variance).sqrt()))


def normal_mean_evidence(x):
    """Of normal data whose mean is N(0, 10²), in float64."""
    variance, x = 1 / (len(x) + 0.01), x.double()
    loc = variance * x.sum()
    log_joint = dist.Normal(loc, 1.0).log_prob(x).sum() + dist.Normal(0.0, 10.0).log_prob(loc)
    return (log_joint + 0.5 * math.log(2 * math.pi * variance)).item()


def test_the_error_bar_of_a_large_data_set_knows_the_rounding_of_its_dtype():
    """The weights of an exact guide are alike, and in float32 all of them some 0.01 nats off.

    The twin, without the rounding, is sure of wrong numbers.
    """
    plain, known = [], []
    for number in range(8):
        torch.manual_seed(number)
        x = 2 + torch.randn(100_000 + 20_000 * number)
        record = from_log_weights(log_weights(normal_mean, exact_guide, x, 40))["iw"]
        error = abs(record.mean - normal_mean_evidence(x))
        plain.append(error / record.mc_se)
        record = record.of(torch.zeros(1), len(x))
        known.append(error / record.mc_se)
        assert record.mc_se < 0.02
    assert max(known) < 4
    assert max(plain) > 5
