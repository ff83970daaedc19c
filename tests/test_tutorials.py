"""The programs of Pyro's tutorials, as they are written there, from the check to the export.

Each evidence is known otherwise: sums over all assignments, conjugacy, quadrature, in numpy.
Baseball and eight schools are among the known evidences.
"""

import contextlib
import itertools
import math
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn import PyroModule, PyroSample
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_normal, norm
from torch import nn

from evidence.guides import FullRank
from evidence.inference import (
    annealed_evidence,
    check,
    fit,
    importance_weighted_evidence,
    to_arviz,
)
from evidence.inference.programs.random_state import isolated_rng

pytestmark = pytest.mark.filterwarnings("ignore:the pair does not broadcast:UserWarning")


class Regression(PyroModule):
    """Bayesian Regression: the weights of a linear layer are random."""

    def __init__(self, in_features):
        super().__init__()
        self.linear = PyroModule[nn.Linear](in_features, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, in_features]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y=None):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)
        return mean


with isolated_rng(0):
    X = torch.randn(40, 2).double()
    Y = X @ torch.tensor([1.0, -2.0]).double() + 3 + 0.5 * torch.randn(40).double()
    TIMES = 1.5 * torch.rand(30).double() ** 2 / 0.5
    WAVE = torch.linspace(-1, 1, 20).double()
    WAVES = torch.sin(3 * WAVE) + 0.1 * torch.randn(20).double()


def regression_evidence():
    """Given σ, y is normal; σ by the trapezoidal rule."""
    sigmas = np.linspace(0.2, 1.5, 2000)
    covariance = X.numpy() @ X.numpy().T + 100.0
    log_p = [
        multivariate_normal.logpdf(Y.numpy(), cov=covariance + s**2 * np.eye(40)) for s in sigmas
    ]
    return logsumexp(log_p) + math.log((sigmas[1] - sigmas[0]) / 10)


def survival(times, seen):
    """Censored data: what had not failed by then counts with its survival function."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 2.0))
    with pyro.plate("data", len(times)):
        with poutine.mask(mask=seen):
            pyro.sample("failure", dist.Exponential(rate), obs=times)
        with poutine.mask(mask=~seen):
            pyro.factor("survival", -rate * times)


CENSORED = TIMES.clamp(max=1.0), TIMES < 1.0


def survival_evidence():
    times, seen = (tensor.double().numpy() for tensor in CENSORED)
    shape, rate = 2 + seen.sum(), 2 + times.sum()
    return 2 * math.log(2) - gammaln(2) + gammaln(shape) - shape * math.log(rate)


POINTS = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0]).double()


@config_enumerate
def mixture(data):
    """Gaussian Mixture Model: the assignments are summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2).double()))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def dirichlet_multinomial(counts, alpha):
    """Log-probability of a sequence with these counts of its symbols."""
    total = alpha * counts.shape[-1]
    whole = gammaln(total) - gammaln(total + counts.sum(-1))
    return whole + (gammaln(alpha + counts) - gammaln(alpha)).sum(-1)


def mixture_evidence():
    """Over all 32 assignments; given one and the scale, the points of a component are normal."""
    log_scales = np.linspace(-5.0, 5.0, 1000)
    terms = []
    for assignment in itertools.product((0, 1), repeat=len(POINTS)):
        members = [POINTS.numpy()[np.array(assignment) == k] for k in (0, 1)]
        log_p = dirichlet_multinomial(np.array([len(m) for m in members]), 0.5)
        log_p = log_p + norm.logpdf(log_scales, 0, 2)
        for own in (m for m in members if len(m)):
            covariances = 100 + np.exp(2 * log_scales)[:, None, None] * np.eye(len(own))
            _, log_dets = np.linalg.slogdet(covariances)
            squares = np.einsum("i,nij,j->n", own, np.linalg.inv(covariances), own)
            log_p = log_p - 0.5 * (squares + log_dets + len(own) * math.log(2 * math.pi))
        terms.append(logsumexp(log_p) + math.log(log_scales[1] - log_scales[0]))
    return logsumexp(terms)


WORDS = torch.tensor([[0, 2], [1, 2], [0, 1]])  # three of either document


@config_enumerate
def topics(words):
    """Latent Dirichlet Allocation, two topics: the topic of each word is summed out."""
    with pyro.plate("topics", 2):
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(3).double()))
    with pyro.plate("documents", words.shape[1]):
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(2).double()))
        with pyro.plate("words", words.shape[0]):
            word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics))
            pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=words)


def topics_evidence():
    """Over all 64 ways to give every word its topic."""
    words, terms = WORDS.numpy(), []
    for assignment in itertools.product((0, 1), repeat=words.size):
        chosen = np.array(assignment).reshape(words.shape)
        per_document = np.stack([(chosen == k).sum(0) for k in (0, 1)], -1)
        per_topic = [np.bincount(words[chosen == k], minlength=3) for k in (0, 1)]
        log_p = dirichlet_multinomial(per_document, 1.0).sum()
        terms.append(log_p + dirichlet_multinomial(np.stack(per_topic), 1.0).sum())
    return logsumexp(terms)


class Network(PyroModule):
    """A small Bayesian neural network."""

    def __init__(self, hidden=3):
        super().__init__()
        self.first, self.second = (PyroModule[nn.Linear](*s) for s in ((1, hidden), (hidden, 1)))
        for layer in (self.first, self.second):
            layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand(layer.weight.shape).to_event(2))
            layer.bias = PyroSample(dist.Normal(0.0, 1.0).expand(layer.bias.shape).to_event(1))

    def forward(self, x, y=None):
        mean = self.second(torch.tanh(self.first(x.reshape(-1, 1)))).squeeze()
        sigma = pyro.sample("sigma", dist.Gamma(0.5, 1.0))
        with pyro.plate("data", x.shape[0]):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


@contextlib.contextmanager
def double_precision():
    """Priors with numbers for parameters draw in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


with double_precision():
    REGRESSION, NETWORK = Regression(2), Network()


class Tutorial(NamedTuple):
    """A program, its data, its log evidence, and its latents."""

    model: object
    data: object
    exact: object
    latents: set


TUTORIALS = {
    "regression": Tutorial(
        REGRESSION, (X, Y), regression_evidence, {"sigma", "linear.weight", "linear.bias"}
    ),
    "survival": Tutorial(survival, CENSORED, survival_evidence, {"rate"}),
    "mixture": Tutorial(mixture, POINTS, mixture_evidence, {"weights", "scale", "locs"}),
    "topics": Tutorial(topics, WORDS, topics_evidence, {"topic_words", "doc_topics"}),
}
HIDDEN = ["assignment", "word_topics"]


def autoguide(tutorial):
    guide = AutoMultivariateNormal(poutine.block(tutorial.model, hide=HIDDEN))
    data = tutorial.data if isinstance(tutorial.data, tuple) else (tutorial.data,)
    guide(*data)
    return guide.double()


def full_rank(tutorial):
    return FullRank.for_model(tutorial.model, tutorial.data).double()


@pytest.fixture(autouse=True)
def doubles():
    with double_precision():
        yield


# Where components may change places, a guide with one mode misses the others, and says so.
SYMMETRIC = [pytest.param(name, marks=pytest.mark.slow) for name in ("mixture", "topics")]


@pytest.mark.parametrize("make", [autoguide, full_rank])
@pytest.mark.parametrize("name", ["regression", "survival", *SYMMETRIC])
def test_a_tutorial_from_the_check_to_the_export(name, make):
    tutorial = TUTORIALS[name]
    model, data = tutorial.model, tutorial.data
    guide = make(tutorial)
    assert check(model, guide, data) == []
    fit(model, guide, data, num_epochs=600, lr=0.02, progress=False)
    evidence = importance_weighted_evidence(model, guide, data, 4000)
    if name in ("regression", "survival") or evidence.not_reliable is None:
        expect_right(evidence, tutorial.exact())
    posterior = to_arviz(model, guide, data, num_draws=5, num_chains=2)["posterior"]
    assert set(posterior.data_vars) == tutorial.latents
    assert all(variable.dims[:2] == ("chain", "draw") for variable in posterior.values())


@pytest.mark.slow
def test_a_guide_of_one_mode_is_not_reliable_and_its_advice_leads_to_the_evidence():
    """The twin, without the search, states a number that is many standard errors off."""
    tutorial = TUTORIALS["mixture"]
    model, data = tutorial.model, tutorial.data
    guide = autoguide(tutorial)
    fit(model, guide, data, num_epochs=600, lr=0.02, progress=False)
    options = {"num_particles": 1000, "search_modes": False}
    planted = importance_weighted_evidence(model, guide, data, **options)
    assert "missed" not in (planted.not_reliable or "")
    assert abs(planted.mean - tutorial.exact()) > 8 * planted.mc_se
    found = importance_weighted_evidence(model, guide, data, 1000)
    assert "has missed about" in found.not_reliable
    annealed = annealed_evidence(model, data, num_chains=200, num_temperatures=400)
    expect_right(annealed, tutorial.exact())


def test_the_evidence_of_a_tutorial_by_annealing():
    options = {"num_chains": 100, "num_temperatures": 60}
    evidence = annealed_evidence(survival, CENSORED, **options)
    expect_right(evidence, survival_evidence())


def expect_right(evidence, exact):
    """|z| < 4, and far from twice the evidence."""
    assert evidence.unit == "data set"
    assert evidence.not_reliable is None
    assert abs(evidence.mean - exact) / evidence.mc_se < 4
    assert abs(evidence.mean - (exact + math.log(2))) / evidence.mc_se > 5


@pytest.mark.slow
def test_a_network_is_right_or_not_reliable():
    """Its posterior has symmetric modes: a guide of one says so, or agrees with annealing."""
    model, data = NETWORK, (WAVE, WAVES)
    guide = AutoMultivariateNormal(model)
    guide(*data)
    assert check(model, guide, data) == []
    fit(model, guide, data, num_epochs=300, lr=0.02, progress=False)
    weighted = importance_weighted_evidence(model, guide, data, 500)
    annealed = annealed_evidence(model, data, num_chains=40, num_temperatures=60)
    both = weighted.not_reliable is None and annealed.not_reliable is None
    se = math.hypot(weighted.mc_se, annealed.mc_se)
    assert not both or abs(weighted.mean - annealed.mean) < 4 * se
    assert math.isfinite(annealed.mean)
