"""Bayes factors, model probabilities and stretched priors against conjugate models."""

import dataclasses
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from evidence.inference import (
    Evidence,
    annealed_evidence,
    bayes_factor,
    model_probabilities,
)
from evidence.inference.programs.scaled_prior import ScaledPrior, scaled


def record(log_z, se=0.01, *, size=10, estimator="iw", bias=0.0, caveat=None):
    """An evidence of a data set, as an estimator would have left it."""
    one = torch.ones(1, dtype=torch.float64)
    return Evidence(
        estimator,
        10_000,
        log_z * one,
        se**2 * one,
        5000 * one,
        0.1 * one,
        bias=bias * one,
        caveat=caveat,
        data_set_size=size,
    )


def test_the_factor_is_the_difference_and_errors_add_in_squares():
    found = bayes_factor(record(-301.70, 0.03), record(-310.13, 0.04))
    assert found.log_bf == pytest.approx(8.43)
    assert found.se == pytest.approx(0.05)
    assert found.interval == pytest.approx((8.43 - 0.098, 8.43 + 0.098), abs=1e-3)
    assert found.verdict == "very strong evidence for the first model"


def test_data_with_latents_of_their_own_add_up():
    per_datum = dataclasses.replace(
        record(0.0),
        log_px=torch.tensor([-1.0, -2.0]),
        log_px_variance=torch.tensor([9e-4, 16e-4]),
        ess=torch.full((2,), 100.0),
        k_hat=torch.zeros(2),
        bias=None,
        data_set_size=None,
    )
    found = bayes_factor(per_datum, record(-5.0, 0.0, size=2))
    assert found.log_bf == pytest.approx(2.0)
    assert found.se == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (record(-10.0), record(-13.5), "strong evidence for the first model"),
        (record(-13.5), record(-10.0), "strong evidence for the second model"),
        (record(-10.0, 0.5), record(-13.5, 0.5), "at least positive evidence for the first model"),
        (record(-10.0), record(-10.5), "hardly any evidence for the first model"),
        (record(-10.0, 0.1), record(-10.0, 0.1), "neither model is favoured"),
        (record(-10.0, 2.0), record(-13.0, 0.1), "nothing can be claimed: either model"),
        (record(-10.0), record(-13.5, bias=-4.0), "nothing can be claimed: either model"),
        (record(-10.0, bias=-4.0), record(-13.5), "at least strong evidence for the first model"),
        (record(-10.0), record(-13.5, caveat="modes are missed"), "nothing can be claimed: the se"),
        (record(-10.0), record(-math.inf), "nothing can be claimed"),
    ],
)
def test_the_verdict_says_what_the_errors_leave(first, second, words):
    found = bayes_factor(first, second)
    assert found.verdict.startswith(words), found.verdict
    assert found.verdict in str(found)


def test_data_that_are_not_the_same_are_refused():
    with pytest.raises(ValueError, match="evidences of the same data, got 10 and 11"):
        bayes_factor(record(0.0), record(0.0, size=11))
    with pytest.raises(ValueError, match="evidences of the same data"):
        model_probabilities({"a": record(0.0), "b": record(0.0, size=11)})
    with pytest.raises(ValueError, match="two or more models, got 1"):
        model_probabilities({"a": record(0.0)})
    with pytest.raises(ValueError, match="prior probability > 0 of each of 2 models"):
        model_probabilities({"a": record(0.0), "b": record(0.0)}, [1.0])


def test_model_probabilities_and_what_errors_leave_open():
    evidences = {"a": record(0.0, 0.3), "b": record(-1.0, 0.4), "c": record(-5.0, 0.01)}
    found = model_probabilities(evidences)
    exact = np.exp([0, -1, -5]) / np.exp([0, -1, -5]).sum()
    assert [p.probability for p in found.values()] == pytest.approx(exact, abs=1e-9)
    # Without c, the log odds of a are normal.
    two = model_probabilities({name: evidences[name] for name in "ab"})["a"]
    ends = 1 / (1 + np.exp(-(1 + 1.96 * 0.5 * np.array([-1, 1]))))
    assert (two.low, two.high) == pytest.approx(tuple(ends), abs=0.01)
    prior = model_probabilities(evidences, [0.1, 0.8, 0.1])
    odds = prior["b"].probability / prior["a"].probability
    assert odds == pytest.approx(8 * math.exp(-1))


# Stretched priors.

Y = torch.tensor([1.0, 2.0, 4.0]).double()


def normal_mean(y):
    mu = pyro.sample("mu", dist.Normal(torch.tensor(1.0).double(), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.5), obs=y)


def poisson_rate(y):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0).double(), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def normal_mean_evidence(factor):
    covariance = 1.5**2 * np.eye(3) + (2.0 * factor) ** 2
    return stats.multivariate_normal(np.ones(3), covariance).logpdf(Y.numpy())


def poisson_rate_evidence(factor):
    total, rate = 7.0, 1.0 / factor
    log_p = 2 * math.log(rate) - math.lgamma(2) + math.lgamma(2 + total)
    log_p -= (2 + total) * math.log(rate + 3)
    return log_p - sum(math.lgamma(y + 1) for y in Y.tolist())


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("model", "site", "exact"),
    [
        (normal_mean, "mu", normal_mean_evidence),
        (poisson_rate, "rate", poisson_rate_evidence),
    ],
)
def test_evidence_under_a_stretched_prior(model, site, exact, factor):
    stretched = ScaledPrior(site, factor)(model)
    options = {"num_chains": 200, "num_temperatures": 20, "num_pilot_temperatures": 20}
    found = annealed_evidence(stretched, (Y,), **options)
    assert found.mc_se < 0.1
    assert abs(found.mean - exact(factor)) < 4 * found.mc_se
    wrong = exact(1 / factor)  # the twin: stretched the wrong way
    assert factor == 1 or abs(found.mean - wrong) > 4 * found.mc_se


@pytest.mark.parametrize(
    ("prior", "same"),
    [
        (dist.Normal(3.0, 2.0), dist.Normal(3.0, 4.0)),
        (dist.HalfCauchy(5.0), dist.HalfCauchy(10.0)),
        (dist.Gamma(3.0, 2.0), dist.Gamma(3.0, 1.0)),
        (dist.Cauchy(1.0, 2.0), dist.Cauchy(1.0, 4.0)),
        (dist.Normal(torch.ones(3), 1.0).to_event(1), dist.Normal(torch.ones(3), 2.0).to_event(1)),
        (
            dist.MultivariateNormal(torch.ones(2), torch.eye(2)),
            dist.MultivariateNormal(torch.ones(2), 4 * torch.eye(2)),
        ),
    ],
)
def test_a_stretched_prior_is_the_family_with_another_scale(prior, same):
    stretched = scaled(prior, 2.0)
    z = same.sample((20,))
    assert torch.allclose(stretched.log_prob(z), same.log_prob(z), atol=1e-5)
    assert str(stretched.support) == str(prior.support)
    assert stretched.event_dim == prior.event_dim


def test_priors_that_cannot_be_stretched_are_refused():
    with pytest.raises(ValueError, match="which has no scale"):
        scaled(dist.Beta(1.0, 1.0), 2.0, "p")
    with pytest.raises(ValueError, match="prior scale > 0 for 'mu', got 0"):
        ScaledPrior("mu", 0)
    with (
        pytest.raises(ValueError, match=r"expected ScaledPrior\(site, factor\)\(model\)"),
        ScaledPrior("mu", 2.0),
    ):
        pass
