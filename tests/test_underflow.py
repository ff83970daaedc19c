"""A logarithm that underflows in a model: named, and what is advised leads to the number."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from evidence.guides import FullRank
from evidence.inference import (
    annealed_evidence,
    bridge_evidence,
    fit,
    importance_weighted_evidence,
    marginal_likelihood,
    smc,
    smc_evidence,
)
from evidence.inference.bridging import bridge
from evidence.inference.estimation import sequential
from evidence.inference.estimation.unknown import Unknown
from evidence.inference.paths.beside import share_beside
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.programs import singular
from evidence.inference.programs.data import as_data
from evidence.inference.programs.evaluation import evaluation_mode

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


QUICK = {"num_islands": 16, "max_rounds": 1}


def wide(width):
    """A scale that float32 rounds to zero, or its square, at some draws of the prior."""

    def model(y):
        scale = pyro.sample("scale", dist.LogNormal(-8.0, width))
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    return model


def wide_evidence(y, width):
    """By the trapezoidal rule over the logarithm of the scale, where no number underflows."""
    logs = np.linspace(-8 - 14 * width - width**2, -8 + 14 * width, 2_000_001)
    with np.errstate(over="ignore"):
        squares = np.exp(2 * (np.log(y) - logs)) if y else 0.0
    log_p = stats.norm.logpdf(logs, -8, width) - logs - 0.5 * (squares + np.log(2 * np.pi))
    return logsumexp(log_p) + np.log(logs[1] - logs[0])


def expect_right(found, exact):
    assert found.not_reliable is None
    for one in found.estimates.values():
        assert abs(one.mean - exact) < 4 * one.mc_se
    assert found.se < 0.05


@pytest.fixture
def in_float64():
    """What the advice says."""
    before = torch.get_default_dtype()

    def switch():
        torch.set_default_dtype(torch.float64)

    yield switch
    torch.set_default_dtype(before)


def test_a_likelihood_of_zero_where_a_scale_underflows_is_zero():
    """Few draws of the prior have a NaN there, far from all that explains the datum."""
    found = marginal_likelihood(wide(30.0), torch.tensor(0.7), **QUICK)
    expect_right(found, wide_evidence(0.7, 30.0))


def test_a_wall_of_nan_that_the_posterior_leans_on_is_told(in_float64):
    """The datum wants a scale that is smaller than its square can be in float32."""
    model, y, exact = wide(10.0), torch.tensor(0.0), wide_evidence(0.0, 10.0)
    assert exact == pytest.approx(8 + 10.0**2 / 2 - 0.5 * np.log(2 * np.pi))  # E[1 / scale]
    advice = r"NaN.* right beside .*torch\.set_default_dtype\(torch\.float64\), x\.double\(\)"
    found = marginal_likelihood(model, y, **QUICK)
    annealed = annealed_evidence(model, y, num_temperatures=200)
    bridged = bridge_evidence(model, None, y, draws=smc(model, y))
    for evidence in (found.evidence, annealed, bridged):
        assert re.search(advice, evidence.not_reliable)
    assert "by site 'y' (near scale = " in found.not_reliable
    in_float64()
    expect_right(marginal_likelihood(model, y.double(), **QUICK), exact)
    annealed = annealed_evidence(model, y.double(), num_temperatures=200)
    assert annealed.not_reliable is None
    assert abs(annealed.mean - exact) < 4 * annealed.mc_se


def test_without_the_look_beside_the_number_is_wrong(monkeypatch):
    """The planted error: two kinds of estimate agree on what is before the wall."""
    monkeypatch.setattr(sequential, "unknown_beside", lambda path, z: None)
    found = marginal_likelihood(wide(10.0), torch.tensor(0.0), **QUICK)
    assert found.not_reliable is None
    assert found.log_ml < wide_evidence(0.0, 10.0) - 10


def test_many_draws_of_the_prior_without_a_number_are_refused_and_advised(in_float64):
    model, y = wide(60.0), torch.tensor(0.7)
    with pytest.raises(
        ValueError, match=r"by site 'scale'.*torch\.set_default_dtype\(torch\.float64"
    ):
        marginal_likelihood(model, y, **QUICK)
    in_float64()
    expect_right(marginal_likelihood(model, y.double(), **QUICK), wide_evidence(0.7, 60.0))


def test_in_float64_the_advice_is_another(in_float64):
    """No number is small enough for this posterior: its density is written in logarithms."""
    in_float64()
    width, y = 20.0, torch.tensor(0.0)
    found = marginal_likelihood(wide(width), y, **QUICK)
    assert "pyro.factor" in found.not_reliable

    def in_logarithms(y):
        log_scale = pyro.sample("log_scale", dist.Normal(-8.0, width))
        squares = (y * (-log_scale).exp()).square()
        pyro.factor("y", -log_scale - 0.5 * (squares + np.log(2 * np.pi)))

    expect_right(marginal_likelihood(in_logarithms, y, **QUICK), wide_evidence(0.0, width))


def test_shares_beside_are_of_the_draws_that_count():
    model, y = wide(10.0), as_data(torch.tensor(0.0))
    with evaluation_mode(model), torch.no_grad():
        path = PriorPath(lambda data: model(*data.tensors), y)
        far, near = torch.linspace(-30, -29, 100), torch.linspace(-51.5, -51.4, 100)
        u = torch.cat([far, near]).reshape(-1, 1, 1)
        assert share_beside(path, u[:100])[0] == 0
        of_far = torch.where(u[..., 0] > -40, 0.0, -torch.inf).double()
        share, row = share_beside(path, u, of_far)
        assert 0 < share_beside(path, u)[0] < 1
        assert share < share_beside(path, u)[0]
        assert path(row)[1].isnan().all()


def test_a_proposal_whose_draws_have_no_number_counts_them_as_zero():
    """A tenth of them, said; and those of the posterior are refused."""

    class Proposal:
        def sample(self, num_chains):
            return torch.linspace(-3, 3, num_chains).reshape(-1, 1, 1)

        def __call__(self, z):
            log_p = torch.where(z > 2.4, torch.nan, -0.5 * z.square()).squeeze(-1)
            return torch.zeros_like(log_p), log_p

    u = 0.3 * torch.randn(2, 100, 1, 1)
    unknown = Unknown(None)
    how = bridge.How(None, False, None, 2048, is_given=False)
    found = bridge._bridge(Proposal(), u, 50, how, unknown)
    assert unknown.number == 20
    assert found.bridge.log_px.isfinite().all()
    with pytest.raises(ValueError, match=r"NaN at 10\.0% of the draws: compute in float64"):
        bridge.log_ratios(Proposal(), Proposal().sample(200), 50)
