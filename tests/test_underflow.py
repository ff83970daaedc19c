"""A logarithm that underflows in a model: named, and what is advised leads to the number."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from evidence.inference import smc

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
