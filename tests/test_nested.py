"""Nested sampling: priors by their quantiles, on evidences that are known; and what it says."""

import bisect
import math
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints, transforms
from scipy import stats

from evidence.experiments.own.program import default_dtype
from evidence.inference import nested_evidence
from evidence.inference.estimation.nested import insertion_chance
from evidence.inference.paths import cube
from evidence.inference.paths.cube import CubePath
from evidence.inference.paths.quantiles import draw_at, uniforms_shape
from evidence.inference.programs.data import as_data, takes
from evidence.models.problems import PROBLEMS

Y = torch.tensor([9.0, 14.0, 11.5, 12.0, 8.5, 13.0]).double()


def normal_gamma(y):
    """The scale of a prior depends on a latent before it."""
    precision = pyro.sample("precision", dist.Gamma(3.0, 30.0).expand([]))
    mean = pyro.sample("mean", dist.Normal(y.new_tensor(0.0), 10 * precision**-0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, precision**-0.5), obs=y)


def exact():
    """Student's t."""
    shape = 30 / 3 * (np.eye(len(Y)) + 100)
    return stats.multivariate_t(np.zeros(len(Y)), shape, df=6).logpdf(Y.numpy())


def found_for(seed, **options):
    with default_dtype(torch.float64):
        return nested_evidence(normal_gamma, Y, num_live=40, seed=seed, **options)


def z_score(found):
    return (found.mean - exact()) / found.mc_se


def test_a_prior_that_depends_on_another_latent():
    """|z| < 4 with two seeds; the twins are below."""
    for seed in range(2):
        found = found_for(seed)
        assert found.not_reliable is None
        assert found.unit == "data set"
        assert found.num_evaluations > 1000
        assert 0.05 < found.mc_se < 0.6
        assert abs(z_score(found)) < 4
        assert "nested (S = " in str(found)


def test_a_wrong_scale_of_the_prior_and_a_prior_counted_twice_are_seen(monkeypatch):
    """The planted twins: a variance in place of a scale; p(z) in the likelihood as well."""

    def variance_for_scale(fn, v):
        if not isinstance(fn, dist.Normal):
            return draw_at(fn, v)
        return draw_at(dist.Normal(fn.loc, fn.scale**2), v)

    with monkeypatch.context() as planted:
        planted.setattr(cube, "draw_at", variance_for_scale)
        assert abs(z_score(found_for(0))) > 5

    terms = CubePath._terms

    def twice(self, z, plate):
        with cube.FromCube(self._parts, z):
            sites = self._run(self.model, plate)
        prior = sum(self._log_prob(s, plate) for s in sites.values() if not s["is_observed"])
        log_p_z, log_p_x = terms(self, z, plate)
        return cube.PriorTerms(log_p_z, log_p_x + prior)

    monkeypatch.setattr(CubePath, "_terms", twice)
    assert abs(z_score(found_for(0))) > 5


def per_datum(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def test_each_datum_by_itself():
    x = torch.tensor([[0.3], [-2.0]]).double()
    found = nested_evidence(per_datum, x, num_live=30)
    assert found.unit == "datum"
    known = torch.tensor(stats.norm(0, math.sqrt(1.25)).logpdf(x[:, 0].numpy()))
    assert found.log_px.shape == (2,)
    assert ((found.log_px - known).abs() < 4 * found.log_px_variance.sqrt()).all()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pines", {"num_live": 200}),
        ("shells-2", {}),
        ("eggbox", {}),
        ("rosenbrock", {}),
        ("shells-5", {"sample": "rslice", "num_live": 200}),
        ("eight-schools", {"sample": "rslice", "num_live": 200}),
        ("regression", {"sample": "rslice", "num_live": 100}),
    ],
)
def test_known_evidences(name, options):
    problem = PROBLEMS[name]
    for seed in range(2):
        with default_dtype(torch.float64 if problem.double else torch.float32):
            found = nested_evidence(problem.model, problem.arguments, seed=seed, **options)
        assert found.not_reliable is None, found
        assert abs(found.mean - problem.log_evidence) < 4 * found.mc_se < 2


# Quantiles.

V = torch.rand(400, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KNOWN = [
    (dist.Gamma(0.3, 2.0), stats.gamma(0.3, scale=0.5)),
    (dist.Chi2(3.0), stats.chi2(3)),
    (dist.Beta(0.5, 3.0), stats.beta(0.5, 3)),
    (dist.StudentT(3.0, 1.0, 2.0), stats.t(3, 1, 2)),
    (dist.InverseGamma(2.0, 3.0), stats.invgamma(2, scale=3)),
    (dist.LogNormal(0.5, 2.0), stats.lognorm(2, scale=math.exp(0.5))),
    (dist.HalfNormal(2.0), stats.halfnorm(scale=2)),
    (dist.HalfCauchy(5.0), stats.halfcauchy(scale=5)),
    (dist.Exponential(0.3), stats.expon(scale=1 / 0.3)),
    (dist.Pareto(1.0, 1.5), stats.pareto(1.5)),
    (dist.Weibull(2.0, 1.5), stats.weibull_min(1.5, scale=2)),
    (dist.Laplace(1.0, 0.5), stats.laplace(1, 0.5)),
    (dist.Gumbel(1.0, 0.5), stats.gumbel_r(1, 0.5)),
    (dist.Uniform(-2.0, 3.0), stats.uniform(-2, 5)),
    (dist.Normal(0.0, 2.0).mask(False), stats.norm(0, 2)),
    (dist.TransformedDistribution(dist.Beta(2.0, 3.0), transforms.AffineTransform(1.0, -4.0)),
     stats.beta(3, 2, loc=-3, scale=4)),
]  # fmt: skip


@pytest.mark.parametrize(("fn", "known"), KNOWN, ids=lambda one: type(one).__name__)
def test_draws_have_the_distribution_of_the_site(fn, known):
    """Of SciPy: its distribution function takes them back, up to the direction."""
    fn = fn.expand([3]).to_event(1)
    assert uniforms_shape(fn) == (3,)
    values = torch.stack([draw_at(fn, v) for v in V])
    back = np.sort(known.cdf(values.numpy()), axis=0)
    forward, backward = np.sort(V.numpy(), axis=0), np.sort(1 - V.numpy(), axis=0)
    assert min(np.abs(back - side).max() for side in (forward, backward)) < 2e-5
    assert np.abs(known.cdf(1.3 * values.numpy()) - V.numpy()).max() > 0.01  # the twin


JOINT = [
    dist.Dirichlet(torch.tensor([0.5, 2.0, 3.0])),
    dist.MultivariateNormal(torch.ones(2), torch.tensor([[2.0, 0.9], [0.9, 1.0]])),
    dist.LowRankMultivariateNormal(torch.ones(2), torch.ones(2, 1), torch.tensor([1.0, 0.3])),
    dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1),
                                 transforms.StickBreakingTransform()),
]  # fmt: skip


@pytest.mark.parametrize("fn", JOINT, ids=lambda fn: type(fn).__name__)
def test_joint_draws_have_the_moments_of_the_site(fn):
    torch.manual_seed(0)
    v = torch.rand(4000, *uniforms_shape(fn), dtype=torch.float64)
    ours = torch.stack([draw_at(fn, one) for one in v])
    theirs = fn.sample((20_000,)).double()
    for moment in (lambda z: z, lambda z: z**2, lambda z: z[:, :1] * z):
        one, other = moment(ours), moment(theirs)
        se = (one.var(0) / len(one) + other.var(0) / len(other)).sqrt()
        assert ((one.mean(0) - other.mean(0)).abs() < 5 * se).all()


def test_sites_are_drawn_given_those_before_them():
    """Of the pumps' rates, by SciPy's gamma given the two latents that they depend on."""
    problem = PROBLEMS["pumps"]
    with default_dtype(torch.float64):
        x = as_data(problem.arguments)
        path = CubePath(takes(problem.model, x), x)
        assert path.dim == 12
        v = torch.rand(20, 1, 12, dtype=torch.float64)
        values = path.site_values(v)
    alpha, beta = (values[name].reshape(20, 1).numpy() for name in ("alpha", "beta"))
    theta = values["theta"].reshape(20, 10).numpy()
    assert np.allclose(stats.gamma.cdf(theta, alpha, scale=1 / beta), v[:, 0, 2:], atol=1e-8)
    assert np.allclose(stats.gamma.cdf(beta, 0.1), v[:, 0, 1:2], atol=1e-8)


# What it says of itself.


def run_of(shrink, num_live=50, num_steps=600, seed=0):
    """Log-likelihoods in their order, and when each was born, of points of mass in (0, 1)."""
    random = np.random.default_rng(seed)
    live = [(mass, 0) for mass in random.uniform(size=num_live)]
    gone = []
    for step in range(1, num_steps + 1):
        worst = max(live)
        live.remove(worst)
        gone.append(worst)
        live.append((worst[0] * shrink(random), step))
    gone += sorted(live, reverse=True)
    return -np.array([mass for mass, _ in gone]), np.array([born for _, born in gone])


@pytest.mark.parametrize("seed", range(5))
def test_ranks_of_new_points_tell_whether_they_are_drawn_rightly(seed):
    good = run_of(lambda random: random.uniform(), seed=seed)
    assert insertion_chance(*good, 50) > 1e-3
    too_deep = run_of(lambda random: random.uniform(0, 0.9), seed=seed)
    assert insertion_chance(*too_deep, 50) < 1e-3
    near = run_of(lambda random: random.uniform(0.2, 1), seed=seed)
    assert insertion_chance(*near, 50) < 1e-3


def test_ranks_are_those_among_the_live_points():
    log_likelihood, born = run_of(lambda random: random.uniform(), num_live=20, num_steps=60)
    ranks = []
    for place in np.flatnonzero(born):
        live = [n for n in range(len(born)) if n >= born[place] and born[n] < born[place]]
        ranks.append(bisect.bisect(sorted(live), place))
    expected = stats.kstest((np.array(ranks) + 0.5) / 20, "uniform").pvalue
    assert insertion_chance(log_likelihood, born, 20) == pytest.approx(expected)
    assert insertion_chance(np.zeros(len(born)), born, 20) == 1.0


def test_a_run_that_was_stopped_is_not_relied_on():
    first, again = (found_for(0, max_evaluations=300) for _ in range(2))
    assert "max_evaluations" in first.not_reliable
    assert again.mean == first.mean


def correlated(y):
    factor = pyro.sample("factor", dist.LKJCholesky(2, 1.0))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=factor), obs=y)


def improper(y):
    mean = pyro.sample("mean", dist.ImproperUniform(constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "options", "words"),
    [
        (correlated, torch.zeros(2), {}, "site 'factor' has the prior LKJCholesky, whose"),
        (improper, Y, {}, "proper prior"),
        (normal_gamma, Y, {"num_live": 5}, "num_live of at least 20, got 5"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(model, data, options, words):
    with pytest.raises(ValueError, match=words) as error:
        nested_evidence(model, data, **options)
    assert "\n" not in str(error.value)


def test_dynesty_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dynesty", None)
    with pytest.raises(ValueError, match=r"pip install 'evidence\[nested\]'"):
        found_for(0)
