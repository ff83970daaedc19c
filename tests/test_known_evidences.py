"""Ordinary Bayesian models by annealing from the prior, against what their evidence is."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from evidence.experiments.own.program import default_dtype
from evidence.guides import FullRank
from evidence.inference import annealed_evidence, log_weights
from evidence.inference.annealing import pilot
from evidence.models.problems import PROBLEMS

# Chains and temperatures with which the standard error is at most 0.1.
SIZES = {
    "pines": (100, 300),
    "shells-2": (200, 200),
    "eight-schools": (100, 200),
    "regression": (200, 400),
    "principal-components": (16, 200),
    "noisy-regression": (300, 1000),
    "gaussian-process": (100, 600),
    "baseball": (300, 2000),
    "pumps": (500, 1500),
}
QUICK = ["pines", "shells-2", "eight-schools", "regression", "principal-components"]


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
def test_annealing_from_the_prior(name):
    """|z| < 4 with SE ≤ 0.1; half a nat of error, the twin, is found."""
    known, (num_chains, num_temperatures) = PROBLEMS[name], SIZES[name]
    options = {"num_chains": num_chains, "num_temperatures": num_temperatures}
    with default_dtype(torch.float64 if known.double else torch.float32):
        evidence = annealed_evidence(known.model, known.arguments, **options)
    exact = float(np.mean(known.exact()))
    assert evidence.not_reliable is None
    assert evidence.mc_se <= 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean - exact + 0.5) > 4 * evidence.mc_se


@pytest.mark.parametrize("metric", ["unit", "diagonal"])
def test_a_metric_that_knows_less_is_no_less_right_but_less_certain(metric):
    """The pines' scales are orders of magnitude apart: without a metric chains stand still."""
    known, options = PROBLEMS["pines"], {"num_chains": 100, "num_temperatures": 100}
    dense = annealed_evidence(known.model, known.data, **options)
    other = annealed_evidence(known.model, known.data, metric=metric, **options)
    exact = known.log_evidence
    assert abs(dense.mean - exact) < 4 * dense.mc_se
    if metric == "diagonal":
        assert abs(other.mean - exact) < 4 * other.mc_se
    else:
        assert other.ess.item() < 0.5 * dense.ess.item()
    assert not math.isnan(other.mean)


@pytest.mark.filterwarnings("ignore:the pair does not broadcast")
def test_full_rank_is_the_posterior_of_a_gaussian_process_before_it_is_trained():
    """Every weight is the evidence: mode and curvature say all of it, without correlations less."""
    known = PROBLEMS["gaussian-process"]
    exact = torch.tensor(known.log_evidence, dtype=known.data[0].dtype)
    guide = FullRank.for_model(known.model, known.data)
    log_w = log_weights(known.model, guide, known.data, 5)
    assert torch.allclose(log_w, exact.expand_as(log_w), atol=1e-3)
    guide.unit.scale = guide.unit.scale.diagonal().diag_embed()  # the twin
    assert (log_weights(known.model, guide, known.data, 5) - exact).abs().max() > 1


AGE = torch.arange(2.0, 10.0).double()
HEIGHT = torch.tensor([0.86, 0.95, 1.03, 1.09, 1.16, 1.22, 1.28, 1.33]).double()


def curve(age, height):
    """Eight points of a parabola with hardly any noise: a funnel on the way and at the end."""
    start = pyro.sample("start", dist.Normal(0.5, 0.5))
    slope = pyro.sample("slope", dist.Normal(0.0, 0.1))
    bend = pyro.sample("bend", dist.Normal(0.0, 0.02))
    noise = pyro.sample("noise", dist.HalfNormal(0.1))
    with pyro.plate("children", len(age)):
        mean = start + slope * age + bend * (age - 5) ** 2
        pyro.sample("height", dist.Normal(mean, noise), obs=height)


def curve_evidence():
    """Gaussian given the noise, quadrature over its logarithm."""
    age, log_noise = AGE.numpy(), np.linspace(-9, 1, 2001)
    features = np.c_[0.5 * np.ones(8), 0.1 * age, 0.02 * (age - 5) ** 2]
    log_p = [
        stats.multivariate_normal(
            np.full(8, 0.5), features @ features.T + noise**2 * np.eye(8)
        ).logpdf(HEIGHT.numpy())
        + stats.halfnorm(scale=0.1).logpdf(noise)
        + math.log(noise)
        for noise in np.exp(log_noise)
    ]
    return logsumexp(log_p) + math.log(log_noise[1] - log_noise[0])


@pytest.mark.slow
def test_the_neck_of_a_funnel_on_the_way_is_entered(monkeypatch):
    """The planted twin, steps of one length, states nats too little with a small error bar."""

    def error():
        with default_dtype(torch.float64):
            found = annealed_evidence(curve, (AGE, HEIGHT))
        return abs(found.mean - curve_evidence()) / found.mc_se

    assert error() < 4
    monkeypatch.setattr(pilot, "_SHORT_SHARE", 0.0)
    assert error() > 5
