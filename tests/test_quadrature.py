"""Exact evidences at data that a fixed grid misses, and integrals that may not be called exact."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, logsumexp

from evidence.experiments.reports.plane import mean_divergences
from evidence.guides import MeanField
from evidence.models import BayesianLogisticRegression, EightSchools, GaussianMixture2D
from evidence.models.quadrature import log_integral, over_the_line
from tests.box_rule import box_rule


def schools_by_hand(y):
    """log p(y) of one datum, by the trapezoidal rule over log τ from −30 to 120."""
    sigma = np.array(EightSchools.standard_errors, float)
    t = np.linspace(-30, 120, 15_001)
    v = sigma**2 + np.exp(2 * t)[:, None]
    precision = (1 / v).sum(1)
    quadratic = ((y**2 / v).sum(1)) - 25 * (y / v).sum(1) ** 2 / (1 + 25 * precision)
    log_det = np.log(v).sum(1) + np.log1p(25 * precision) + 8 * math.log(2 * math.pi)
    prior = math.log(2 / (5 * math.pi)) - np.logaddexp(0, 2 * (t - math.log(5))) + t
    return logsumexp(prior - 0.5 * (quadratic + log_det)) + math.log(t[1] - t[0])


SCHOOLS = {
    "simulated": lambda: EightSchools(8)(None, size=100).double(),
    "far out": lambda: torch.randn(30, 8).double() * torch.logspace(0, 9, 30).double()[:, None],
    "one far out": lambda: torch.eye(8).double()[:3] * 10.0 ** torch.tensor([[3.0], [5], [9]]),
    "equal and large": lambda: torch.full((1, 8), 1e5).double(),
    "zero": lambda: torch.zeros(1, 8).double(),
    "two scales": lambda: torch.tensor([[0.0] * 4 + [1e4] * 4, [1.0, -1, 1, -1, 90, 9, 0, 0]]),
}


@pytest.mark.parametrize("make", SCHOOLS.values(), ids=SCHOOLS)
def test_schools_evidence_finds_the_mass(make):
    y = make()
    exact = EightSchools(8).log_evidence(y)
    expected = [schools_by_hand(row) for row in y.double().numpy()]
    assert exact.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-7)


def test_a_fixed_grid_misses_the_mass_of_schools():
    """The planted error: 500 nodes in the quantiles of tau's prior."""
    y = 1e5 * torch.randn(1, 8, generator=torch.Generator().manual_seed(0)).double()
    u, log_weights = box_rule(0.0, 1.0)
    tau = 5 * torch.tan(0.5 * math.pi * u)
    covariance = torch.diag_embed(EightSchools(8).sigma.double() ** 2 + tau**2) + 25
    given = torch.distributions.MultivariateNormal(torch.zeros(8).double(), covariance)
    fixed = (given.log_prob(y) + log_weights).logsumexp(0).item()
    assert abs(fixed - schools_by_hand(y[0].numpy())) > 1


def logistic_by_hand(y, features, scale):
    """log p(y) of one datum with one weight, by QUADPACK in pieces about the mode."""

    def log_f(z):
        logits = features * z
        log_p = (y * log_expit(logits) + (1 - y) * log_expit(-logits)).sum()
        return log_p - 0.5 * (z / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))

    mode = minimize_scalar(lambda z: -log_f(z), bracket=(-1, 1)).x
    top, h = log_f(mode), 1e-4
    width = min((-(log_f(mode + h) - 2 * top + log_f(mode - h)) / h**2) ** -0.5, scale)
    ends = [mode + k * width for k in (-80, -20, -8, -3, -1, 0, 1, 3, 8, 20, 80)]
    pieces = [
        quad(lambda z: math.exp(log_f(z) - top), a, b, epsabs=0, epsrel=1e-10, limit=200)[0]
        for a, b in itertools.pairwise(ends)
    ]
    return top + math.log(sum(pieces))


LOGISTIC = {  # features, prior scale
    "small": (np.ones(5), 2.0),
    "many rows": (np.ones(10_000), 2.0),
    "many unequal rows": (np.linspace(-20, 20, 2000), 2.0),
    "steep": (np.linspace(-2000, 2000, 300), 2.0),
    "wide prior": (np.linspace(-1, 1, 200), 100.0),
    "narrow prior": (np.linspace(-1, 1, 200), 1e-3),
}


def regression(features, scale):
    features = np.atleast_2d(features.T).T
    return BayesianLogisticRegression(*features.shape, design=features.tolist(), prior_scale=scale)


@pytest.mark.parametrize(("features", "scale"), LOGISTIC.values(), ids=LOGISTIC)
def test_logistic_evidence_finds_the_mass(features, scale):
    """Of simulated data, of data that a weight separates, and of all ones."""
    model = regression(features, scale)
    separated = torch.from_numpy(features > 0).float()
    y = torch.cat([model(None, size=3), torch.stack([separated, torch.ones_like(separated)])])
    expected = [logistic_by_hand(row, features, scale) for row in y.double().numpy()]
    assert model.log_evidence(y).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("scale", [2.0, 100.0])
def test_logistic_evidence_of_two_weights_that_do_not_meet_is_a_product(scale):
    """Half of the rows see one weight, half the other; also after a rotation of the weights."""
    first, second = np.repeat([-1.0, 2.0], 50), np.repeat([3.0, 0.1, -1.0], 40)
    features = np.zeros((220, 2))
    features[:100, 0], features[100:, 1] = first, second
    model = regression(features, scale)
    y = model(None, size=4).double().numpy()
    y = np.concatenate([y, features.sum(1)[None] > 0, np.ones((1, 220))])
    expected = [
        logistic_by_hand(row[:100], first, scale) + logistic_by_hand(row[100:], second, scale)
        for row in y
    ]
    data = torch.from_numpy(y)
    assert model.log_evidence(data).tolist() == pytest.approx(expected, abs=1e-6)
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    turned = regression(features @ turn, scale)
    assert turned.log_evidence(data).tolist() == pytest.approx(expected, abs=1e-4)


def test_a_fixed_grid_misses_the_mass_of_regressions():
    """The planted error: 400 nodes over 20 standard deviations of the prior."""
    features = np.linspace(-20, 20, 1000)
    model = regression(features, 2.0)
    weights = torch.linspace(-0.3, 0.3, 9).unsqueeze(1)
    y = torch.bernoulli(torch.sigmoid(weights * torch.from_numpy(features))).double()
    nodes, log_weights = box_rule(-20, 20, num_panels=40)
    log_joint = model.double().log_joint(y, nodes.unsqueeze(1))
    fixed = (log_joint + log_weights.unsqueeze(1)).logsumexp(0)
    features = model.design.squeeze(1).numpy()  # in the precision that the model holds
    expected = torch.tensor([logistic_by_hand(row, features, 2.0) for row in y.numpy()])
    assert (fixed - expected).abs().max() > 0.1
    assert (model.log_evidence(y) - expected).abs().max() < 1e-7


def test_an_evidence_is_one_datum_s_alone():
    model = regression(np.linspace(-3, 3, 40), 2.0)
    y = model(None, size=6)
    together = model.log_evidence(y)
    assert torch.allclose(torch.cat([model.log_evidence(row) for row in y.split(1)]), together)
    assert torch.allclose(model.log_evidence(y.flip(0)).flip(0), together)
    schools = EightSchools(8)
    x = schools(None, size=6)
    together = schools.log_evidence(x)
    assert torch.allclose(torch.cat([schools.log_evidence(row) for row in x.split(1)]), together)


# The integrals themselves.


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("centre", [0.0, 0.3, -3.0, 30.0])
@pytest.mark.parametrize("width", [0.01, 1.0, 30.0])
def test_gaussians_off_the_centre_are_found(dim, centre, width):
    """The integral of a density is one wherever it is; and many at once are each by itself."""
    scales = torch.tensor([width, 1.0], dtype=torch.float64)
    centres = torch.tensor([centre, 0.0], dtype=torch.float64)

    def log_f(v, rows):
        u, log_slope = over_the_line(v)
        normal = torch.distributions.Normal(centres[rows, None, None], scales[rows, None, None])
        return (normal.log_prob(u) + log_slope).sum(-1)

    assert log_integral(log_f, 2, dim).abs().max() < 1e-7


def test_an_edge_is_resolved():
    """The area of a disc, whose edge no panel follows: π r²."""
    found = log_integral(
        lambda v, _: torch.where(v.square().sum(-1) < 0.5, 0.0, -math.inf).double(), 1, 2
    )
    assert found.item() == pytest.approx(math.log(math.pi * 0.5), abs=1e-4)


@pytest.mark.parametrize(
    "log_f",
    [
        lambda v: -0.999 * (v - 0.3).abs().log(),  # most of the mass is in one point
        lambda v: torch.sin(1e6 * v),  # more waves than nodes
        lambda v: torch.full_like(v, math.nan),
        lambda v: torch.full_like(v, -math.inf),
    ],
)
def test_what_is_not_known_is_not_called_exact(log_f):
    with pytest.raises(ValueError, match=r"known to within 0.0001 nat, got .* at row 0"):
        log_integral(lambda v, _: log_f(v.squeeze(-1)), 1, 1)


def test_an_evidence_that_is_not_known_is_refused():
    """Features of 1e12 leave rounding errors of more than 1e-4 nat in the likelihood."""
    model = regression(1e12 * np.random.default_rng(0).standard_normal(50), 100.0)
    with pytest.raises(ValueError, match=r"known to within 0.0001 nat, got .* estimate"):
        model.log_evidence(model(None, size=3))


def test_divergences_on_a_grid_that_misses_the_posterior_are_not_given():
    """A datum far away moves the posterior out of the square."""
    model, guide = GaussianMixture2D(2), MeanField(2, 2, hidden_dims=())
    assert mean_divergences(model, guide, torch.ones(1, 2)).forward is not None
    far = mean_divergences(model, guide, torch.tensor([[100.0, 0.0]]))
    assert (far.forward, far.reverse) == (None, None)
