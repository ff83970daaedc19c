"""A logarithm that underflows in a model: named, and what is advised leads to the number."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from evidence.guides import FullRank
from evidence.inference import fit, importance_weighted_evidence, smc, smc_evidence
from evidence.inference.programs import singular

Y = torch.tensor([0.2, 0.9, 1.4, 0.3, 2.2, 0.8, 0.1])


def truncated(log_cdf):
    """A normal that is cut off below zero."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)
            pyro.factor("cut", -log_cdf(mu / sigma))

    return model


def exact():
    """Quadrature over μ and log σ."""
    mu, log_sigma = np.linspace(-30, 15, 1801)[:, None], np.linspace(-4, 3, 701)
    sigma, y = np.exp(log_sigma), Y.double().numpy()[:, None, None]
    log_p = (stats.norm.logpdf(y, mu, sigma) - stats.norm.logsf(-mu / sigma)).sum(0)
    log_p += stats.norm.logpdf(mu, 0, 2) + stats.halfnorm(scale=2).logpdf(sigma) + log_sigma
    return logsumexp(log_p) + np.log(0.025 * 0.01)


def test_a_logarithm_that_underflows_is_named_and_the_advice_is_right():
    def naive(x):
        return dist.Normal(0.0, 1.0).cdf(x).log()

    with pytest.raises(ValueError, match=r"by site 'cut'.*torch\.special\.log_ndtr"):
        smc(truncated(naive), Y)
    found = smc(truncated(torch.special.log_ndtr), Y).evidence
    assert found.not_reliable is None
    assert found.mc_se < 0.2
    assert abs(found.mean - exact()) < 4 * found.mc_se
    assert abs(found.mean + 1 - exact()) > 4 * found.mc_se  # the twin


SWAPPED = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
PLANE = torch.tensor([[0.3, -0.2], [1.0, 0.4], [-0.6, -1.1]])


def spread(y):
    """A covariance that overflows, or is zero, at draws of a wide prior: it has no factor there."""
    size = pyro.sample("size", dist.LogNormal(0.0, 30.0))
    covariance = size[..., None, None] * (torch.eye(2) + 0.5 * SWAPPED)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)


def spread_evidence():
    """By the trapezoidal rule over the logarithm of the size."""
    logs = torch.linspace(-8, 14, 4001).double()
    covariance = torch.eye(2).double() + 0.5 * SWAPPED.double()
    scaled = logs.exp()[:, None, None, None] * covariance
    log_p = dist.MultivariateNormal(torch.zeros(2).double(), scaled).log_prob(PLANE.double()).sum(1)
    log_p = log_p + dist.Normal(0.0, 30.0).log_prob(logs)
    return (log_p.logsumexp(0) + (logs[1] - logs[0]).log()).item()


def test_a_matrix_without_a_factor_is_no_error_of_all_draws(monkeypatch):
    model, guide = spread, FullRank.for_model(spread, PLANE)
    fit(model, guide, PLANE, num_steps=400, lr=0.05, progress=False)
    exact = spread_evidence()
    for evidence in (
        importance_weighted_evidence(model, guide, PLANE, 20_000, defensive=0.4),
        smc_evidence(model, PLANE),
    ):
        assert evidence.not_reliable is None
        assert abs(evidence.mean - exact) < 4 * evidence.mc_se
        assert abs(evidence.mean - exact - 0.5) > 4 * evidence.mc_se
    monkeypatch.setattr(singular, "_cholesky", torch.linalg.cholesky)
    with pytest.raises(torch.linalg.LinAlgError):
        importance_weighted_evidence(model, guide, PLANE, 20_000, defensive=0.4)
