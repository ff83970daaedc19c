"""Every family as a guide of every model: its density, its sites, its unit of length."""

import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from scipy.integrate import quad
from scipy.special import betaln
from scipy.stats import expon, halfcauchy, halfnorm, norm

from evidence import guides
from evidence.guides import AbstractGuide, Delta, FullRank, MeanField, Planar
from evidence.guides.placement import Placement
from evidence.guides.relative import Quantile
from evidence.inference import IWAE, check, fit, importance_weighted_evidence, log_weights
from evidence.inference.programs.data import as_data, takes
from evidence.inference.soundness.pairs import expect_sound_pair
from evidence.models import (
    BayesianLinearRegression,
    BayesianLogisticRegression,
    EightSchools,
    classical,
)
from evidence.models.classical import linear_regression, logistic_regression
from tests.test_shared_latents import (
    ERRORS,
    MEANS,
    NOISE,
    NUM_DATA,
    SCHOOLS,
    X,
    Y,
    eight_schools,
    eight_schools_evidence,
    regression,
    regression_evidence,
)

DOUBLE = torch.float64
COUNTS = torch.tensor([3.0, 7.0, 5.0, 9.0], dtype=DOUBLE)
TRIALS = torch.tensor([10.0, 12.0, 9.0, 11.0], dtype=DOUBLE)
LETTERS = torch.tensor([0, 1, 1, 2, 0, 1])
ROWS = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


def beta_binomial(y, trials):
    """p_i ~ Beta(mk, (1 − m)k), a hierarchy of rates."""
    mean = pyro.sample("mean", dist.Beta(y.new_tensor(1.0), 1.0))
    size = pyro.sample("size", dist.Gamma(y.new_tensor(2.0), 0.1))
    with pyro.plate("groups", len(y)):
        p = pyro.sample("p", dist.Beta(mean * size, (1 - mean) * size))
        pyro.sample("y", dist.Binomial(trials, p), obs=y)


def categorical(y):
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Categorical(shares), obs=y)


def correlated(y):
    dim = y.shape[-1]
    factor = pyro.sample("factor", dist.LKJCholesky(dim, y.new_tensor(2.0)))
    scale = pyro.sample("scale", dist.HalfCauchy(y.new_ones(dim)).to_event(1))
    loc = pyro.sample("loc", dist.Normal(y.new_zeros(dim), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        normal = dist.MultivariateNormal(loc, scale_tril=scale.unsqueeze(-1) * factor)
        pyro.sample("y", normal, obs=y)


def codes(x):
    """Two latents of each datum, one of them positive."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        height = pyro.sample("height", dist.Gamma(x.new_tensor(2.0), 1.0))
        mean = z @ x.new_ones(2, x.shape[-1]) + height.unsqueeze(-1)
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


MODELS = {
    "regression": (regression(MEANS["broadcasts"]), (X, Y)),
    "eight schools": (eight_schools, (SCHOOLS, ERRORS)),
    "beta-binomial": (beta_binomial, (COUNTS, TRIALS)),
    "simplex": (categorical, (LETTERS,)),
    "LKJ": (correlated, (ROWS,)),
    "per datum": (codes, ROWS),
}
AROUND = ("Refined", "Unamortized")  # guides around guides
FAMILIES = [getattr(guides, name) for name in guides.__all__ if name not in AROUND]


def arguments(data):
    return data if isinstance(data, tuple) else (data,)


def is_suitable(family, model):
    """A guide of layers needs two of them."""
    return family.__name__ != "Hierarchical" or model not in ("regression", "simplex")


PAIRS = [(f, name) for f in FAMILIES for name in MODELS if is_suitable(f, name)]


@pytest.mark.filterwarnings("ignore:no gradient reaches")
@pytest.mark.parametrize(("family", "name"), PAIRS, ids=lambda v: getattr(v, "__name__", v))
def test_every_family_is_a_sound_guide_of_every_model_and_trains(family, name):
    model, data = MODELS[name]
    guide = family.for_model(model, data, seed=0)
    values = guide(*arguments(data))
    x = as_data(data)
    if family is Delta:  # a point has no density, and is refused an evidence
        with pytest.raises(ValueError, match=r"point mass \(Delta\)"):
            expect_sound_pair(takes(model, x), takes(guide, x), x)
    else:
        sound = expect_sound_pair(takes(model, x), takes(guide, x), x)
        assert sound.is_joint == (name != "per datum")
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    fit(model, guide, data, num_epochs=2, progress=False)
    assert any(not torch.equal(p, before[n]) for n, p in guide.named_parameters())
    assert all(value.isfinite().all() for value in values.values())


@pytest.mark.parametrize("name", MODELS)
def test_check_finds_nothing(name):
    model, data = MODELS[name]
    assert check(model, FullRank.for_model(model, data), data) == []


def as_pyro_has_it(model, data, u):
    """The values of the sites for an unconstrained u, and Σ log|det ∂u/∂z|, by Pyro's autoguide."""
    auto = AutoDiagonalNormal(model)
    auto(*arguments(data))
    values, total = {}, 0.0
    for site, part in auto._unpack_latent(u):
        transform = biject_to(site["fn"].support)
        value = values[site["name"]] = transform(part)
        total = total + transform.inv.log_abs_det_jacobian(value, part).sum()
    return values, total


@pytest.mark.parametrize("family", [MeanField, FullRank, Planar])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "per datum"])
def test_density_and_values_are_those_of_pyros_change_of_variables(family, name):
    """Log q(z) = log q(v) − log|det L| + Σ log|det ∂u/∂z|, with u = loc + L v."""
    model, data = MODELS[name]
    plain = "none" if name == "eight schools" else "auto"  # else its effects are in other units
    guide = family.for_model(model, data, seed=0, standardize=plain)
    trace = poutine.trace(guide).get_trace(*arguments(data))
    trace.compute_log_prob()
    v, scale = trace.nodes["_latent"]["value"], guide.unit.scale
    u = guide.unit.loc + (scale @ v if scale.ndim == 2 else scale * v)
    values, log_det = as_pyro_has_it(model, data, u.detach())
    for site, value in values.items():
        assert trace.nodes[site]["value"].shape == value.shape
        assert torch.allclose(trace.nodes[site]["value"], value, atol=1e-6)
    log_unit = torch.linalg.slogdet(scale).logabsdet if scale.ndim == 2 else scale.log().sum()
    expected = guide.guide.posterior(None).log_prob(v) - log_unit + log_det
    assert torch.allclose(trace.log_prob_sum(), expected, atol=1e-4)
    assert abs(log_det - log_unit) > 0.1  # the planted error: no Jacobian


def rate(y, trials):
    p = pyro.sample("p", dist.Beta(y.new_tensor(2.0), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Binomial(trials, p), obs=y)


@pytest.mark.parametrize("family", [MeanField, FullRank, Planar])
def test_the_density_of_a_probability_integrates_to_one(family):
    """By quadrature over (0, 1); without the Jacobian it does not."""
    guide = family.for_model(rate, (COUNTS, TRIALS))
    posterior = guide.posterior(COUNTS, TRIALS)

    def density(p, *, of_logit):
        value = torch.tensor([p], dtype=DOUBLE)
        return (posterior.log_prob(value) + of_logit * (value * (1 - value)).log().sum()).exp()

    with torch.no_grad():
        whole = quad(lambda p: density(p, of_logit=0).item(), 0, 1, epsabs=1e-8)[0]
        planted = quad(lambda p: density(p, of_logit=1).item(), 0, 1, epsabs=1e-8)[0]
    assert whole == pytest.approx(1, abs=1e-6)
    assert abs(planted - 1) > 0.1


def test_a_forgotten_jacobian_is_refused(monkeypatch):
    model, data = MODELS["beta-binomial"]
    guide, x = FullRank.for_model(model, data), as_data(data)
    right = Placement.sample
    without = functools.partialmethod(lambda self, u, _, *rest: right(self, u, None, *rest))
    monkeypatch.setattr(Placement, "sample", without)
    with pytest.raises(ValueError, match=r"density .*Jacobian .*log_density=-log\|det\|"):
        expect_sound_pair(takes(model, x), takes(guide, x), x)


def test_evidence_of_a_conjugate_regression():
    """|z| < 4 and SE ≤ 0.1, by a Gaussian that needs no training; the twin is off by 0.05."""
    model, data = MODELS["regression"]
    guide = FullRank.for_model(model, data)
    fit(model, guide, data, num_epochs=100, progress=False)
    evidence, exact = (
        importance_weighted_evidence(model, guide, data, 4000),
        regression_evidence(X, Y),
    )
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.01
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean + 0.05 - exact) > 4 * evidence.mc_se


def growth(x, y):
    """A regression in natural units: a precision of 1e-5 beside an intercept of 3,000."""
    intercept = pyro.sample("intercept", dist.Normal(y.new_tensor(3000.0), 1000.0))
    slope = pyro.sample("slope", dist.Normal(y.new_tensor(185.0), 100.0))
    precision = pyro.sample("precision", dist.Gamma(y.new_tensor(3.0), 2 * 300.0**2))
    with pyro.plate("data", len(y)):
        mean = intercept + slope * (x - x.mean())
        pyro.sample("y", dist.Normal(mean, precision.rsqrt()), obs=y)


def growth_evidence(x, y):
    """The intercept and the slope are Gaussian given the precision; that by quadrature."""
    design = np.stack([np.ones(len(x)), x - x.mean()], 1)
    prior = design * np.array([1000.0, 100.0])
    offset = y - design @ np.array([3000.0, 185.0])
    log_precision = np.linspace(-18, -6, 1201)
    terms = []
    for t in log_precision:
        covariance = np.exp(-t) * np.eye(len(y)) + prior @ prior.T
        square = offset @ np.linalg.solve(covariance, offset)
        log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
        log_prior = 3 * math.log(2 * 300.0**2) - math.lgamma(3) + 3 * t - 2 * 300.0**2 * np.exp(t)
        terms.append(log_prior - 0.5 * (square + log_det))
    return np.logaddexp.reduce(terms) + math.log(log_precision[1] - log_precision[0])


def test_one_learning_rate_serves_a_precision_and_an_intercept():
    """The default one, in 300 steps; without the unit of length the guide is nowhere near."""
    generator = np.random.default_rng(0)
    x = generator.normal(25, 3, 42)
    y = 3000 + 185 * (x - x.mean()) + 300 * generator.normal(size=42)
    data, exact = (torch.tensor(x), torch.tensor(y)), growth_evidence(x, y)
    guide = FullRank.for_model(growth, data, seed=0)
    fit(growth, guide, data, num_epochs=300, progress=False)
    evidence = importance_weighted_evidence(growth, guide, data, 4000)
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.02
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    planted = FullRank.for_model(growth, data, seed=0, standardize="none")
    fit(growth, planted, data, num_epochs=300, progress=False)
    assert log_weights(growth, planted, data, 100).mean() < exact - 1000


def test_effects_of_a_hierarchy_without_a_mode_are_in_units_of_their_prior():
    """mu = 4 v₁, tau = 5 tan(π/2 Φ(v₂)), theta = mu + tau v: log q(z) by hand."""
    guide = FullRank.for_model(eight_schools, (SCHOOLS, ERRORS), seed=0)
    trace = poutine.trace(guide).get_trace(SCHOOLS, ERRORS)
    v = trace.nodes["_latent"]["value"].detach()
    angle = 0.5 * math.pi * norm.cdf(v[1])
    mu, tau = 4 * v[0], 5 * math.tan(angle)  # 4 is 5, to the nearest power of two
    values = {"mu": mu, "tau": torch.tensor(tau, dtype=DOUBLE), "theta": mu + tau * v[2:]}
    for name, value in values.items():
        assert torch.allclose(trace.nodes[name]["value"], value, rtol=1e-8)
    log_slope = math.log(5 * 0.5 * math.pi * norm.pdf(v[1]) / math.cos(angle) ** 2)
    expected = guide.guide.posterior(None).log_prob(v) - math.log(4) - log_slope
    got = trace.log_prob_sum()
    assert torch.allclose(got, expected - 8 * math.log(tau), rtol=1e-8)
    assert not torch.allclose(got, expected, atol=1e-2)  # the planted error: theta's Jacobian


PRIORS = {
    "HalfCauchy": (dist.HalfCauchy(torch.tensor(5.0).double()), halfcauchy(scale=5)),
    "HalfNormal": (dist.HalfNormal(torch.tensor(0.3).double()), halfnorm(scale=0.3)),
    "Exponential": (dist.Exponential(torch.tensor(2.0).double()), expon(scale=0.5)),
}


@pytest.mark.parametrize("name", PRIORS)
def test_quantiles_of_a_prior_are_scipys_in_both_tails(name):
    prior, exact = PRIORS[name]
    quantile, u = Quantile(prior), torch.linspace(-7, 7, 29).double().requires_grad_()
    z = quantile(u)
    (slope,) = torch.autograd.grad(z.sum(), u)
    v = u.detach().numpy()
    upper = exact.isf(norm.sf(v))
    expected = np.where(v < 0, exact.ppf(norm.cdf(v)), upper)
    assert np.allclose(z.detach().numpy(), expected, rtol=1e-3 if name == "HalfNormal" else 1e-7)
    assert torch.allclose(quantile.log_abs_det_jacobian(u, z), slope.log(), atol=1e-3)
    assert torch.allclose(quantile.inv(z.detach().clone()), u, atol=1e-3)


def test_evidence_of_the_eight_schools():
    """|z| < 4 and SE ≤ 0.1, in their natural, centred form; the twin is off by 0.3."""
    model, data = MODELS["eight schools"]
    guide, exact = FullRank.for_model(model, data, seed=0), eight_schools_evidence()
    options = {
        "num_epochs": 400,
        "lr": 0.03,
        "lr_decay": 0.993,
        "objective": IWAE(num_particles=32),
    }
    fit(model, guide, data, progress=False, **options)
    evidence = importance_weighted_evidence(model, guide, data, 20_000)
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean + 0.3 - exact) > 4 * evidence.mc_se


HIERARCHIES = ("eight schools", "beta-binomial")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", HIERARCHIES)
def test_both_kinds_of_latents_in_a_guide_that_is_amortized(family, name):
    model, data = MODELS[name]
    if family.__name__ == "Hierarchical":
        with pytest.raises(ValueError, match="two or more latent layers"):
            family.for_model(model, data, amortized=True)
        return
    guide, x = family.for_model(model, data, amortized=True, seed=0), as_data(data)
    assert guide(data[0][:3], data[1][:3]).keys() == guide(*data).keys()
    if family is not Delta:
        assert expect_sound_pair(takes(model, x), takes(guide, x), x).is_joint
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    fit(model, guide, data, num_epochs=2, batch_size=2, progress=False)
    moved = {n.split(".")[0] for n, p in guide.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"shared", "local"}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 8])
def test_evidence_by_a_guide_that_is_amortized(batch_size):
    """One that has seen minibatches of half of the schools as well as one that has seen all."""
    model, data = MODELS["eight schools"]
    guide = FullRank.for_model(model, data, amortized=True, seed=0, hidden_dims=(32,))
    options = {"num_epochs": 6000 // batch_size, "batch_size": batch_size, "progress": False}
    fit(model, guide, data, lr=0.02, lr_decay=0.01 ** (batch_size / 6000), **options)
    evidence = importance_weighted_evidence(model, guide, data, 20_000)
    exact = eight_schools_evidence()
    # The narrow end of the schools leaves k̂ near 0.7, give or take a tenth from draw to draw.
    assert (evidence.not_reliable is None) == (evidence.k_hat.item() <= 0.5)
    assert evidence.mc_se < 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean + 0.3 - exact) > 4 * evidence.mc_se


def test_random_state_and_parameter_store_are_left_alone():
    pyro.param("kept", torch.ones(1))
    state = torch.get_rng_state()
    guide = Planar.for_model(*MODELS["LKJ"], seed=3)
    again = Planar.for_model(*MODELS["LKJ"], seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(pyro.get_param_store().keys()) == {"kept"}
    assert torch.equal(guide.guide.encoder[0].bias, again.guide.encoder[0].bias)
    other = Planar.for_model(*MODELS["LKJ"], seed=4)
    assert not torch.equal(guide.guide.encoder[0].bias, other.guide.encoder[0].bias)
    Planar.for_model(*MODELS["LKJ"])  # as any module of torch is made
    assert not torch.equal(torch.get_rng_state(), state)


class Laplace(AbstractGuide):
    """Independent Laplace posteriors: a user's own family, which writes `posterior` alone."""

    def __init__(self, latent_dim, data_dim, **encoder):
        super().__init__(latent_dim, data_dim, output_dims=(latent_dim, latent_dim), **encoder)

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        return dist.Laplace(loc, log_scale.exp()).to_event(1)


@pytest.mark.parametrize("name", ["beta-binomial", "per datum"])
def test_a_users_own_family_serves_every_model(name):
    model, data = MODELS[name]
    guide = Laplace.for_model(model, data)
    assert check(model, guide, data) == []


@pytest.mark.parametrize("form", [tuple, list, dict, "numpy"])
def test_data_in_every_form(form):
    if form is dict:
        data = {"y": COUNTS, "trials": TRIALS}
    else:
        data = (COUNTS, TRIALS) if form == "numpy" else form((COUNTS, TRIALS))
    if form == "numpy":
        data = tuple(part.float().numpy() for part in data)
    guide = MeanField.for_model(beta_binomial, data)
    x = as_data(data)
    assert takes(guide, x)(x)["p"].shape == (4,)
    assert importance_weighted_evidence(beta_binomial, guide, data, 10).unit == "data set"


@config_enumerate
def clusters(y):
    locs = pyro.sample("locs", dist.Normal(y.new_zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        label = pyro.sample("label", dist.Bernoulli(y.new_tensor(0.4)))
        pyro.sample("y", dist.Normal(locs[label.long()], 1.0), obs=y)


def test_discrete_latents_that_are_summed_out_are_left_to_pyro():
    y = torch.tensor([-2.0, -1.5, 2.0, 2.5, 1.0], dtype=DOUBLE)
    guide = MeanField.for_model(clusters, (y,))
    assert set(guide(y)) == {"locs"}
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    before = guide.guide.encoder[0].bias.clone()
    fit(clusters, guide, (y,), num_epochs=20, lr=0.05, objective=elbo, progress=False)
    assert not torch.equal(guide.guide.encoder[0].bias, before)


def bounded(y):
    """The support of `low` depends on `high`."""
    high = pyro.sample("high", dist.Gamma(y.new_tensor(2.0), 1.0))
    low = pyro.sample("low", dist.Uniform(torch.zeros_like(high), high))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(low, 1.0), obs=y)


def bounded_evidence(y):
    """∫ p(low) p(y | low), with p(low) = ∫_low^∞ Gamma(h; 2, 1)/h dh = exp(−low)."""

    def density(low):
        return math.exp(-low) * np.prod(np.exp(-0.5 * (y - low) ** 2) / math.sqrt(2 * math.pi))

    return math.log(quad(density, 0, 30, epsabs=1e-14)[0])


def test_a_support_that_depends_on_another_latent():
    y = torch.tensor([0.8, 1.3, 0.2], dtype=DOUBLE)
    guide = FullRank.for_model(bounded, (y,), seed=0)
    assert check(bounded, guide, (y,)) == []
    evidence = importance_weighted_evidence(bounded, guide, (y,), 20_000)
    assert abs(evidence.mean - bounded_evidence(y.numpy())) < 4 * evidence.mc_se
    assert evidence.mc_se < 0.1
    with pytest.raises(NotImplementedError, match="depends on other latents"):
        guide.posterior(y)


def discrete(y):
    count = pyro.sample("count", dist.Poisson(y.new_tensor(3.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(count, 1.0), obs=y)


def nothing(y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (discrete, "latent site 'count' is discrete.*config_enumerate"),
        (nothing, "expected a model with latent sites, got none"),
    ],
)
def test_models_without_a_density_to_fit_are_named(model, message):
    with pytest.raises(ValueError, match=message):
        MeanField.for_model(model, (COUNTS,))


def test_amortized_asks_for_latents_of_each_datum():
    with pytest.raises(ValueError, match="got shared ones alone: leave it out"):
        MeanField.for_model(*MODELS["regression"], amortized=True)


def test_latents_of_each_datum_may_share_one_set_of_parameters():
    """One weight for all data, the sum of theirs; the family is over all latents of all data."""
    guide = MeanField.for_model(codes, ROWS, amortized=False)
    assert guide.latent_dim == 27
    assert check(codes, guide, ROWS) == []


def test_latents_of_each_datum_are_of_the_data_they_were_made_for():
    guide = MeanField.for_model(eight_schools, (SCHOOLS, ERRORS))
    with pytest.raises(ValueError, match=r"expected the 8 data .* got 3: pass amortized=True"):
        guide(SCHOOLS[:3], ERRORS[:3])


def beta_binomial_rate_evidence():
    y, n = COUNTS.numpy(), TRIALS.numpy()
    coefficients = sum(math.lgamma(a + 1) for a in n) - sum(
        math.lgamma(b + 1) + math.lgamma(a - b + 1) for a, b in zip(n, y, strict=True)
    )
    return coefficients + betaln(2 + y.sum(), 3 + (n - y).sum()) - betaln(2, 3)


@pytest.mark.parametrize("batch_size", [2, NUM_DATA])
def test_minibatches_of_a_model_that_shares_all_latents(batch_size):
    guide = FullRank.for_model(rate, (COUNTS, TRIALS), seed=0)
    fit(rate, guide, (COUNTS, TRIALS), num_epochs=50, batch_size=batch_size, progress=False)
    evidence = importance_weighted_evidence(rate, guide, (COUNTS, TRIALS), 4000)
    assert evidence.mc_se < 0.02
    assert abs(evidence.mean - beta_binomial_rate_evidence()) < 4 * evidence.mc_se


def with_gaps(X, y, is_seen):
    w = pyro.sample("w", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(X)):
        mean = (X * w).sum(-1)
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y, obs_mask=is_seen)


@pytest.mark.parametrize("rows", [NUM_DATA, 5])
def test_what_is_not_observed_is_drawn_from_the_model(rows):
    """The evidence is that of the rows that are seen, in closed form; the twin sees all."""
    is_seen = torch.arange(NUM_DATA) % 3 > 0
    data = X, Y, is_seen
    guide, exact = FullRank.for_model(with_gaps, data), regression_evidence(X[is_seen], Y[is_seen])
    assert guide(X[:rows], Y[:rows], is_seen[:rows])["y_unobserved"].shape == (rows,)
    evidence = importance_weighted_evidence(with_gaps, guide, data, 4000)
    assert evidence.mc_se < 0.01
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean - regression_evidence(X, Y)) > 4 * evidence.mc_se


LABELS = (Y > 0).double()
NATURAL = {
    "linear": (
        linear_regression,
        {"features": X, "y": Y},
        BayesianLinearRegression(NUM_DATA, design=X.tolist()),
    ),
    "logistic": (
        logistic_regression,
        {"features": X, "y": LABELS},
        BayesianLogisticRegression(NUM_DATA, design=X.tolist()),
    ),
    "eight schools": (
        classical.eight_schools,
        {"y": SCHOOLS, "standard_errors": ERRORS},
        EightSchools(8),
    ),
}


@pytest.mark.parametrize("name", NATURAL)
def test_models_in_their_natural_form_have_the_evidence_of_their_classes(name):
    model, data, whole = NATURAL[name]
    guide = FullRank.for_model(model, data, seed=0)
    options = {
        "num_epochs": 400,
        "lr": 0.03,
        "lr_decay": 0.993,
        "objective": IWAE(num_particles=32),
    }
    fit(model, guide, data, progress=False, **options)
    evidence = importance_weighted_evidence(model, guide, data, 10_000)
    exact = whole.double().log_evidence(data["y"][None]).item()
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean + 0.4 - exact) > 4 * evidence.mc_se


def test_a_particle_dim_does_no_harm_to_the_classical_models():
    """Weights of many particles at once are found right: there is no warning."""
    for model, data, _ in NATURAL.values():
        guide = MeanField.for_model(model, data)
        assert log_weights(model, guide, data, 50).isfinite().all()


def crossed(y):
    """Rows by columns: latents of either, of both, and of none."""
    rows, columns = pyro.plate("r", len(y), dim=-2), pyro.plate("c", y.shape[1], dim=-1)
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 1.0))
    with rows:
        row = pyro.sample("row", dist.Normal(mu, 1.0))
    with columns:
        column = pyro.sample("column", dist.Gamma(y.new_tensor(2.0), 2.0))
    with rows, columns:
        share = pyro.sample("share", dist.Dirichlet(y.new_ones(3)))
        pyro.sample("y", dist.Normal(row + column + share[..., 0], 1.0), obs=y)


def nested(y):
    """Every datum, at dim −2, has a latent of its own and one in each of its cells."""
    with pyro.plate("data", len(y), dim=-2):
        level = pyro.sample("level", dist.Gamma(y.new_tensor(2.0), 2.0))
        with pyro.plate("cells", y.shape[1], dim=-1):
            share = pyro.sample("share", dist.Dirichlet(y.new_ones(3)))
            pyro.sample("y", dist.Normal(level + share[..., 0], 1.0), obs=y)


def ordered(y):
    steps = dist.Normal(ROWS.new_zeros(3), 1.0).to_event(1)
    cuts = dist.TransformedDistribution(steps, [dist.transforms.OrderedTransform()])
    cuts = pyro.sample("cuts", cuts)
    pyro.deterministic("width", cuts[..., -1] - cuts[..., 0])
    pyro.factor("belief", -0.1 * cuts.square().sum(-1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.OrderedLogistic(ROWS.new_tensor(0.0), cuts), obs=y)


def smooth(x, y):
    """A Gaussian process, whose covariance depends on another latent."""
    length = pyro.sample("length", dist.LogNormal(x.new_tensor(0.0), 0.5))
    squares = (x.unsqueeze(-1) - x).square()
    kernel = (-0.5 * squares / length[..., None, None].square()).exp()
    kernel = kernel + 1e-4 * torch.eye(len(x)).to(x)
    f = pyro.sample("f", dist.MultivariateNormal(x.new_zeros(len(x)), kernel))
    pyro.sample("y", dist.Normal(f, 0.3).to_event(1), obs=y)


class Network(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 5.0).expand([1]).to_event(1))

    def forward(self, x, y):
        scale = pyro.sample("scale", dist.Uniform(0.0, 5.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


ORDINARY = {
    "crossed plates": (lambda: crossed, (ROWS[:4],)),
    "nested plates, data at dim -2": (lambda: nested, (ROWS[:5],)),
    "ordered, factor, deterministic": (lambda: ordered, (LETTERS.double(),)),
    "Gaussian process": (lambda: smooth, (ROWS[:, 0], ROWS[:, 1])),
    "PyroModule": (Network, (X.float(), Y.float())),
}


@pytest.mark.filterwarnings("ignore:the pair does not broadcast over particles")
@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("family", [FullRank, Planar])
def test_check_finds_nothing_in_ordinary_models(family, name):
    make, data = ORDINARY[name]
    model = make()
    guide = family.for_model(model, data, seed=0)
    assert [str(finding) for finding in check(model, guide, data)] == []
    assert log_weights(model, guide, data, 20).isfinite().all()
