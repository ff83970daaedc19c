"""Bridge sampling against evidences that are known, its error bar, and what it says of itself."""

import math
import warnings
from contextlib import contextmanager

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from scipy.special import erf
from scipy.stats import multivariate_t

from evidence.guides import FullRank, Planar
from evidence.inference import Reference, bridge_evidence, nuts_reference
from evidence.inference.bridging import bridge, optimal_bridge
from evidence.inference.bridging.posterior_draws import PosteriorDraws
from evidence.inference.bridging.proposals import fitted_guide
from evidence.inference.estimation.annealed import annealing_mode
from evidence.inference.paths import log_joint
from evidence.inference.paths.chains import mean_ess
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.log_joint import latents_of
from evidence.inference.paths.reference import diagnostic
from evidence.models.problems import PROBLEMS as KNOWN
from tests.conftest import make_oracle
from tests.conjugate_chains import PROBLEMS, chains_of, hidden_prior
from tests.test_annealing import planted_jacobian

NUM_DATA = 100  # repetitions of one problem


def bridged(problem, *, guide=None, seed=0, memory=0.0, num_draws=200, **options):
    """The record of as many repetitions, and its errors in nats `[B]`."""
    pyro.set_rng_seed(seed)
    draws = chains_of(problem, NUM_DATA, memory=memory, num_draws=num_draws)
    x = problem.x.expand(NUM_DATA, *problem.x.shape).clone()
    options = {"draws": draws, "chunk_size": 100_000, "seed": seed} | options
    record = bridge_evidence(problem.model, guide, x, **options)
    return record, record.log_px - problem.exact


def z_of_mean(errors):
    return abs((errors.mean() / errors.std() * math.sqrt(len(errors))).item())


def covered(record, errors):
    """The share of intervals of ±2 SE that hold the exact value."""
    return (errors.abs() < 2 * record.log_px_variance.sqrt()).double().mean().item()


# The estimate


QUICK = ["exponential", "regression"]


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in PROBLEMS]
)
@pytest.mark.parametrize("has_guide", [False, True], ids=["normal", "prior"])
def test_the_interval_covers_the_exact_evidence(name, has_guide):
    """±2 SE in 90% to 99% of 100 repetitions, chains of lag-one autocorrelation 0.8.

    The twin takes the draws for independent.
    """
    guide = hidden_prior(PROBLEMS[name]) if has_guide else None
    record, errors = bridged(PROBLEMS[name], guide=guide, memory=0.8, seed=1)
    assert z_of_mean(errors) < 4
    assert 0.9 <= covered(record, errors) <= 0.99
    with pytest.MonkeyPatch.context() as patch:
        planted_independence(patch)
        record, errors = bridged(PROBLEMS[name], guide=guide, memory=0.8, seed=1)
    assert covered(record, errors) < 0.9


def planted_independence(monkeypatch):
    """The draws' autocorrelation is left out of the error bar."""
    number = lambda values: torch.full_like(values[0, 0], math.prod(values.shape[:2]))  # noqa: E731
    monkeypatch.setattr(optimal_bridge, "mean_ess", number)


def planted_fit(monkeypatch):
    """The proposal is fitted to the draws that it is bridged with."""

    def bridges(path, draws, u, how, unknown):
        half = u[:, : draws.num_draws // 2]
        yield bridge._bridge(bridge.Normal(path, half), half, how.rows(path), how, unknown)

    monkeypatch.setattr(bridge, "_bridges", bridges)


def planted_shares(monkeypatch):
    """The shares s₁ and s₂ are exchanged in one of the two means."""
    terms = optimal_bridge._terms

    def exchanged(of_posterior, of_proposal, share, log_px):
        wrong, _ = terms(of_posterior, of_proposal, 1 - share, log_px)
        return wrong, terms(of_posterior, of_proposal, share, log_px)[1]

    monkeypatch.setattr(optimal_bridge, "_terms", exchanged)


def planted_factor(monkeypatch):
    """Terms of `pyro.factor` are lost."""
    sites_of = log_joint.random_sites
    monkeypatch.setattr(
        log_joint,
        "random_sites",
        lambda trace: {n: s for n, s in sites_of(trace).items() if not isinstance(s["fn"], UNIT)},
    )


UNIT = dist.Unit


# By the problem in which an error would show, and whether its guide is the prior.
PLANTS = {
    "fit": (planted_fit, "regression", False),
    "shares": (planted_shares, "regression", True),
    "Jacobian": (planted_jacobian, "exponential", False),
    "factor": (planted_factor, "bowl", False),
}


def score(name, has_guide, plant=None, seed=0):
    """|z| of the mean error of 100 repetitions."""
    problem = BOWL if name == "bowl" else PROBLEMS[name]
    guide = hidden_prior(problem) if has_guide else None
    with pytest.MonkeyPatch.context() as patch:
        if plant is not None:
            plant(patch)
        return z_of_mean(bridged(problem, guide=guide, seed=seed, num_particles=200)[1])


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_error_biases_the_bridge(plant):
    """Without it there is no bias, with it there is."""
    function, name, has_guide = PLANTS[plant]
    assert score(name, has_guide) < 4
    assert score(name, has_guide, function) > 5


def bowl(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(-2 + x.new_zeros(()), 2.0))
        pyro.factor("bowl", -(z**2))
        pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)


def quantiles_of_bowl(u):
    """Of a normal of variance ½, truncated to ±2."""
    return torch.erfinv((2 * u - 1) * math.erf(2))


BOWL = PROBLEMS["normal"]._replace(
    model=bowl,
    exact=math.log(math.sqrt(math.pi) * erf(2.0) / 4) - 0.5 * 1.5**2 - 0.5 * math.log(2 * math.pi),
    quantiles=quantiles_of_bowl,
)


def test_the_root_is_the_fixed_point_of_the_iteration():
    """Meng and Wong's, in the notation of Gronau et al. 2017, eq. 15."""
    random = np.random.default_rng(0)
    of_posterior, of_proposal = random.normal(0.5, 1, 300), random.normal(-0.5, 1, 200)
    l1, l2, s1, s2 = np.exp(of_posterior), np.exp(of_proposal), 0.6, 0.4

    def iteration(r):
        return np.mean(l2 / (s1 * l2 + s2 * r)) / np.mean(1 / (s1 * l1 + s2 * r))

    r = 1.0
    for _ in range(1000):
        r = iteration(r)
    expected = np.log(r)
    sides = torch.tensor(of_posterior).reshape(300, 1), torch.tensor(of_proposal).reshape(200, 1)
    share = torch.tensor([0.6], dtype=torch.float64)
    assert optimal_bridge._root(*sides, share).item() == pytest.approx(expected, abs=1e-10)
    assert optimal_bridge._root(*sides, 1 - share).item() != pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("memory", [-0.4, 0.0, 0.9])
def test_the_effective_sample_size_is_arvizs(memory):
    """And, of an autoregression, N(1 − ρ)/(1 + ρ)."""
    values = torch.randn(4, 1000, 30, dtype=torch.float64)
    for t in range(1, 1000):
        values[:, t] = memory * values[:, t - 1] + math.sqrt(1 - memory**2) * values[:, t]
    found = mean_ess(values)
    arviz = diagnostic("ess", values.unsqueeze(-1), method="mean").squeeze(-1)
    assert torch.allclose(found, arviz, rtol=0.05)
    assert found.mean().item() == pytest.approx(4000 * (1 - memory) / (1 + memory), rel=0.1)
    assert mean_ess(torch.ones(2, 50, 1)).item() == 100


# Guides


def oracle_posterior(model, x, num_draws=400):
    return {"z": model.posterior(x).sample(torch.Size([4, num_draws]))}


def widened(model, factor):
    """The exact posterior, so many times wider."""

    def guide(x):
        exact = model.posterior(x)
        tril = torch.linalg.cholesky(exact.covariance_matrix)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(exact.mean, scale_tril=factor * tril))

    return guide


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_a_guide_that_is_too_narrow_or_too_wide_gives_the_right_number(factor):
    """Of every datum of a factor analysis; the exact posterior's has no error at all."""
    model = make_oracle()
    x = model(None, size=40)
    record = bridge_evidence(
        model, widened(model, factor), x, draws=oracle_posterior(model, x), seed=1
    )
    errors = record.log_px - model.log_evidence(x)
    assert record.not_reliable is None
    assert record.unit == "datum"
    if factor == 1.0:
        assert errors.abs().max() < 1e-9
    else:
        assert z_of_mean(errors) < 4
        assert covered(record, errors) > 0.85
        assert z_of_mean(errors + 3 * errors.std()) > 5  # the twin


# Ordinary models, as their users write them, and draws from their exact posteriors


def normal_draws(precision, linear, num_draws):
    """Of N(P⁻¹b, P⁻¹), four chains of independent draws `[4, N, Z]`."""
    tril = torch.linalg.cholesky(precision.inverse())
    noise = torch.randn(4, num_draws, len(precision), dtype=torch.float64)
    return precision.inverse() @ linear + noise @ tril.mT


def exact_draws(name, num_draws=1000):
    """By site, `[4, N, ...]`."""
    tensors = [tensor.double() for tensor in KNOWN[name].data]
    if name == "regression":
        X, y = tensors
        design = torch.cat([torch.ones(len(y), 1), X], 1).double() / 54
        prior = torch.tensor([50.0] + [500.0] * 10).double() ** -2
        linear = design.mT @ y / 54 + prior * torch.tensor([150.0] + [0.0] * 10).double()
        w = normal_draws(prior.diag() + design.mT @ design, linear, num_draws)
        return {"intercept": w[..., 0], "w": w[..., 1:]}
    if name == "gaussian-process":
        x, y = tensors
        covariance = torch.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-6 * torch.eye(len(x)).double()
        noise = torch.eye(len(x)).double() / 0.09
        return {"f": normal_draws(covariance.inverse() + noise, y / 0.09, num_draws)}
    if name == "pines":
        return pine_draws(*tensors, num_draws)
    return school_draws(*tensors, num_draws)


def pine_draws(x, y, num_draws):
    """The normal-gamma prior is conjugate."""
    design = torch.stack([torch.ones_like(x), x], 1)
    prior, mean = torch.tensor([0.06, 6.0]).double(), torch.tensor([3000.0, 185.0]).double()
    precision = prior.diag() + design.mT @ design
    loc = torch.linalg.solve(precision, prior * mean + design.mT @ y)
    b = 180_000 + 0.5 * (y @ (y - design @ loc) + (prior * mean) @ (mean - loc))
    tau = dist.Gamma(3 + len(x) / 2 + 0 * b, b).sample(torch.Size([4, num_draws]))
    noise = normal_draws(precision, 0 * loc, num_draws)
    w = loc + noise / tau.sqrt().unsqueeze(-1)
    return {"precision": tau, "intercept": w[..., 0], "slope": w[..., 1]}


def school_draws(y, errors, num_draws):
    """μ and θ are normal given τ, whose posterior is on a fine grid of its logarithm."""
    log_tau = torch.linspace(-12, 8, 4001).double()
    variances = errors**2 + (2 * log_tau).exp().unsqueeze(1)
    total, weighted = (1 / variances).sum(1), (y / variances).sum(1)
    square = (y**2 / variances).sum(1) - 25 * weighted**2 / (1 + 25 * total)
    log_p = log_tau - torch.log1p((log_tau.exp() / 5) ** 2)
    log_p = log_p - 0.5 * (variances.log().sum(1) + torch.log1p(25 * total) + square)
    cdf = log_p.softmax(0).cumsum(0)
    uniform = torch.rand(4, num_draws).double()
    tau = torch.tensor(np.interp(uniform, cdf, log_tau)).exp()  # [4, N]
    variances = errors**2 + tau.square().unsqueeze(-1)  # [4, N, 8]
    precision = 1 / 25 + (1 / variances).sum(-1)
    mu = dist.Normal((y / variances).sum(-1) / precision, precision**-0.5).sample()
    precision = errors**-2 + tau.unsqueeze(-1) ** -2
    loc = (y / errors**2 + (mu / tau**2).unsqueeze(-1)) / precision
    return {"mu": mu, "tau": tau, "theta": dist.Normal(loc, precision**-0.5).sample()}


@contextmanager
def double_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", ["pines", "regression", "gaussian-process", "eight-schools"])
@pytest.mark.parametrize("crossfit", [False, True])
def test_ordinary_models_have_their_evidence(name, crossfit):
    """|z| < 4 with SE ≤ 0.05 from 4 × 1,000 draws; 0.3 nat of error, the twin, is found."""
    known = KNOWN[name]
    with double_by_default():
        data = [tensor.double() for tensor in known.data]
        draws = exact_draws(name)
        record = bridge_evidence(known.model, None, data, draws=draws, crossfit=crossfit)
    exact = float(known.exact())
    assert record.not_reliable is None
    assert record.mc_se <= 0.05
    assert record.unit == "data set"
    assert abs(record.mean - exact) < 4 * record.mc_se
    assert abs(record.mean - exact + 0.3) > 4 * record.mc_se


@pytest.mark.slow
def test_an_ordinary_model_by_nuts():
    """The default: 4 × 1,000 draws of NUTS. |z| < 4 with SE ≤ 0.05."""
    known = KNOWN["pumps"]
    record = bridge_evidence(known.model, None, known.data)
    assert record.not_reliable is None
    assert record.mc_se <= 0.05
    assert record.num_evaluations > 4 * 1500
    assert abs(record.mean - float(known.exact())) < 4 * record.mc_se


@pytest.mark.slow
def test_every_datum_has_its_evidence_by_nuts():
    model = make_oracle()
    x = model(None, size=3)
    draws = nuts_reference(model, x, num_samples=800, num_warmup=200)
    record = bridge_evidence(model, None, x, draws=draws)
    errors = record.log_px - model.log_evidence(x)
    assert record.not_reliable is None
    assert (errors.abs() < 4 * record.log_px_variance.sqrt()).all()
    assert (errors.abs() < 0.1).all()


# Guides of every kind

X = torch.tensor([[1.0, 0.5], [-0.3, 1.2], [0.8, -1.0], [0.1, 0.4]], dtype=torch.float64)


def scaled(x):
    """A location, a scale and shares: supports of three kinds."""
    loc = pyro.sample("loc", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(x.new_tensor(3.0), 3.0))
    share = pyro.sample("share", dist.Dirichlet(x.new_tensor([1.0, 2.0, 3.0])))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc + share[..., :1], scale).to_event(1), obs=x)


def moving(x):
    """A hierarchy whose latents are in units of each other, and a support that moves."""
    scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
    top = pyro.sample("top", dist.Uniform(-scale, scale + 1))
    with pyro.plate("data", len(x)):
        level = pyro.sample("level", dist.Normal(top, scale))
        pyro.sample("x", dist.Normal(level.unsqueeze(-1), 1.0).to_event(1), obs=x)


def nothing_given(x):
    """A guide of plain sites, in another order than the model's."""
    pyro.sample("share", dist.Dirichlet(x.new_tensor([2.0, 2.0, 2.0])))
    pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 0.5))
    pyro.sample("loc", dist.Normal(x.new_zeros(2), 1.0).to_event(1))


AUTOGUIDES = [
    autoguide.AutoDiagonalNormal,
    autoguide.AutoIAFNormal,
    autoguide.AutoLowRankMultivariateNormal,
    autoguide.AutoMultivariateNormal,
    autoguide.AutoNormal,
    autoguide.AutoStructured,
]


def made(make, model):
    with double_by_default():
        guide = make(model) if make in AUTOGUIDES else make.for_model(model, X).double()
        guide(X)
    return guide


@pytest.mark.parametrize(
    ("make", "model"),
    [(make, scaled) for make in (*AUTOGUIDES, FullRank, Planar)]
    # Pyro's own keep the support of their first run, and far from it draw outside.
    + [(make, moving) for make in (autoguide.AutoMultivariateNormal, FullRank, Planar)],
    ids=lambda part: part.__name__,
)
def test_auxiliary_draws_are_found_from_the_latents(make, model):
    """Whatever map leads from the one to the other; the twin moves one latent."""
    torch.set_default_dtype(torch.float64)
    guide = made(make, model)
    with annealing_mode(model, guide, 0, X.device):
        path = path_of(model, guide, X)
        u = path.sample(20)
        sites = latents_of(model, X, path.layout)
        values = {
            name: value.reshape(20, *sites[name]["value"].shape)
            for name, value in path.site_values(u).items()
        }
        assert torch.allclose(path.locate(values), u, atol=1e-6)
        values["scale"] = values["scale"] * 1.01
        assert not torch.allclose(path.locate(values), u, atol=1e-6)


def folded(x):
    """A guide whose latent does not tell its auxiliary draw's sign."""
    v = pyro.sample("v", dist.Normal(x.new_zeros(()), 1.0), infer={"is_auxiliary": True})
    pyro.sample("z", dist.Delta(v.square(), log_density=-(2 * v.abs()).log()))


def test_a_guide_without_a_way_back_is_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with annealing_mode(model, folded, 0, X.device):
        path = path_of(model, folded, X[:, 0])
        with pytest.raises(ValueError, match="cannot be found from 3 of 5 draws"):
            path.locate({"z": torch.tensor([1.0, -1.0, 2.0, -0.5, -3.0]).double()})


def normal_gamma(y):
    tau = pyro.sample("tau", dist.Gamma(y.new_tensor(3.0), 2.0))
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), (0.5 * tau) ** -0.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, tau**-0.5), obs=y)


Y = torch.tensor([0.4, 1.9, -0.7, 1.1, 0.8, 2.2, 0.1, -1.4], dtype=torch.float64)
EXACT = multivariate_t(None, 2 / 3 * (np.eye(8) + 2.0), df=6).logpdf(Y.numpy())


def normal_gamma_draws(num_draws=500):
    """By site, `[4, N]`."""
    weight = 0.5 + len(Y)
    loc = Y.sum() / weight
    b = 2 + 0.5 * (Y.square().sum() - weight * loc**2)
    tau = dist.Gamma(3 + len(Y) / 2 + 0 * b, b).sample(torch.Size([4, num_draws]))
    return {"tau": tau, "mu": dist.Normal(loc, (weight * tau) ** -0.5).sample()}


def by_hand(y):
    pyro.sample("mu", dist.StudentT(5.0, y.new_tensor(0.5), 0.5))
    pyro.sample("tau", dist.LogNormal(y.new_tensor(-0.3), 0.6))


def expect_exact(record):
    """|z| < 4; the twin, 0.3 nat, is found."""
    assert record.not_reliable is None
    assert abs(record.mean - EXACT) < 4 * record.mc_se
    assert abs(record.mean - EXACT + 0.3) > 4 * record.mc_se


def guide_of_normal_gamma(make):
    with double_by_default():
        if make in AUTOGUIDES:
            guide = make(normal_gamma)
        else:
            guide = make.for_model(normal_gamma, Y).double()
        guide(Y)
    return guide


def test_a_guide_by_hand_is_a_proposal():
    expect_exact(bridge_evidence(normal_gamma, by_hand, Y, draws=normal_gamma_draws()))


@pytest.mark.parametrize("make", [FullRank, Planar])
def test_a_guide_of_the_suite_is_a_proposal_as_it_is(make):
    guide = guide_of_normal_gamma(make)
    expect_exact(bridge_evidence(normal_gamma, guide, Y, draws=normal_gamma_draws()))


@pytest.mark.parametrize(
    "make",
    [autoguide.AutoNormal, autoguide.AutoMultivariateNormal, autoguide.AutoIAFNormal, FullRank],
)
def test_a_copy_of_a_guide_is_fitted_by_forward_kl(make):
    """It is nearer to the posterior than the guide, which stays what it was."""
    torch.set_default_dtype(torch.float64)
    guide = guide_of_normal_gamma(make)
    before = [parameter.clone() for parameter in guide.parameters()]
    draws = normal_gamma_draws()
    fitted = bridge_evidence(
        normal_gamma, guide, Y, draws=draws, fit_guide="forward", crossfit=True
    )
    expect_exact(fitted)
    assert fitted.mc_se < 0.02
    assert all(map(torch.equal, before, guide.parameters()))
    assert all(parameter.requires_grad for parameter in guide.parameters())


def test_forward_kl_reaches_the_moments_of_the_draws():
    """Of a normal it has a closed form: the draws' mean and covariance in unconstrained space."""
    guide, draws = guide_of_normal_gamma(autoguide.AutoMultivariateNormal), normal_gamma_draws()
    with annealing_mode(normal_gamma, guide, 0, Y.device):
        path = path_of(normal_gamma, guide, Y)
        found = PosteriorDraws(draws, path)
        fitted = fitted_guide(path, found, slice(0, 250)).guide
        u = found.located(path, slice(0, 250)).flatten(0, 2)
        posterior = fitted.get_posterior()
    assert torch.allclose(posterior.mean, u.mean(0), atol=1e-3)
    assert torch.allclose(posterior.covariance_matrix, u.T.cov(correction=0), atol=1e-3)


# Draws of every kind


def test_draws_come_as_a_reference_an_arviz_object_or_by_site():
    """All the same numbers; with the other order of chains and draws, the twin, it is another."""
    values = normal_gamma_draws(60)
    flat = {name: value.flatten(0, 1) for name, value in values.items()}
    packed = torch.stack([values["tau"], values["mu"]], -1).unsqueeze(2)
    known = torch.ones(1, 2)
    reference = Reference(Y, packed, known, known, 0, {"tau": 1, "mu": 1}, flat, 1000)
    arrays = {name: value.numpy() for name, value in values.items()}
    arrays |= {"other": np.zeros((4, 60, 3))}
    inference_data = arviz_of(arrays)
    forms = {
        "reference": reference,
        "arviz": inference_data,
        "chains": values,
        "arrays": arrays,
        "trailing ones": {name: value.unsqueeze(-1) for name, value in values.items()},
    }
    records = {n: bridge_evidence(normal_gamma, by_hand, Y, draws=d) for n, d in forms.items()}
    assert len({record.mean for record in records.values()}) == 1
    assert len({record.mc_se for record in records.values()}) == 1
    assert records["reference"].num_evaluations == 1000 + 240 + 240 + 240  # beside each draw
    assert records["chains"].num_evaluations is None
    alone = bridge_evidence(normal_gamma, by_hand, Y, draws=flat)
    assert alone.mean == pytest.approx(records["chains"].mean, abs=1e-3)
    one = bridge_evidence(
        normal_gamma, by_hand, Y, draws={n: v.unsqueeze(1) for n, v in flat.items()}
    )
    assert one.mean == alone.mean
    mixed = {name: value.mT.reshape(4, 60) for name, value in values.items()}
    assert bridge_evidence(normal_gamma, by_hand, Y, draws=mixed).mc_se != alone.mc_se


def arviz_of(arrays):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz  # noqa: PLC0415

        if arviz.__version__.startswith("0."):
            return arviz.from_dict(posterior=arrays)
        return arviz.from_dict({"posterior": arrays})


def test_the_seed_decides_and_nothing_outside_is_touched():
    draws, state = normal_gamma_draws(60), torch.get_rng_state()
    first, again, other = (
        bridge_evidence(normal_gamma, by_hand, Y, draws=draws, seed=seed) for seed in (3, 3, 4)
    )
    assert first.mean == again.mean != other.mean
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_and_chunks_of_any_size_are_one_number():
    draws = normal_gamma_draws(60)
    whole, cut = (
        bridge_evidence(normal_gamma, by_hand, Y, draws=draws, chunk_size=size) for size in (999, 7)
    )
    assert cut.mean == pytest.approx(whole.mean, abs=1e-9)


# What the record says of itself


def two_modes(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample(
            "z",
            dist.MixtureSameFamily(
                dist.Categorical(x.new_ones(2)), dist.Normal(x.new_tensor([-3.0, 3.0]), 0.5)
            ),
        )
        pyro.sample("x", dist.Normal(z.abs(), 1.0), obs=x)


def one_of_two_modes(side, scale=0.6):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(side * 3.0 + 0 * x, scale))

    return guide


def draws_of_two_modes(shape, *, both):
    """Given x = 3: the prior's means, at a spread of √0.2."""
    sign = torch.where(torch.rand(shape) < (0.5 if both else 0.0), -1.0, 1.0).double()
    return {"z": sign * 3 + math.sqrt(0.2) * torch.randn(shape, dtype=torch.float64)}


THREE = torch.full((20,), 3.0, dtype=torch.float64)
OF_TWO_MODES = -0.5 * math.log(2 * math.pi * 1.25)


def test_a_guide_of_one_mode_is_enough_where_the_draws_have_both():
    """Half of the draws are nowhere near it: what is bridged is the other half, by its share."""
    draws = draws_of_two_modes((4, 250, 20), both=True)
    record = bridge_evidence(two_modes, one_of_two_modes(1), THREE, draws=draws)
    errors = record.log_px - OF_TWO_MODES
    assert record.not_reliable is None
    assert z_of_mean(errors) < 4
    assert z_of_mean(errors + math.log(2)) > 5


def test_draws_that_miss_a_mode_of_the_guide_are_found_out():
    """Twenty of twenty data; and the number is off, by up to log 2."""
    draws = draws_of_two_modes((4, 250, 20), both=False)
    wide = one_of_two_modes(0.5, scale=3.5)
    record = bridge_evidence(two_modes, wide, THREE, draws=draws)
    assert z_of_mean(record.log_px - OF_TWO_MODES) > 5
    assert "disagree" in record.not_reliable
    assert "20 of 20 data" in record.not_reliable


def test_chains_that_stay_in_modes_of_their_own_are_found_out():
    draws = draws_of_two_modes((4, 250, 20), both=False)
    draws["z"][0] *= -1
    record = bridge_evidence(two_modes, one_of_two_modes(0, scale=3.5), THREE, draws=draws)
    assert "have not mixed" in record.not_reliable
    assert "NOT RELIABLE" in str(record)


def test_few_independent_draws_are_said_to_be_few():
    record, _ = bridged(PROBLEMS["normal"], memory=0.99, num_draws=60)
    assert record.not_reliable is not None


def test_draws_of_other_data_are_found_out():
    draws = normal_gamma_draws()
    record = bridge_evidence(normal_gamma, by_hand, Y + 0.4, draws=draws)
    assert "not of this posterior" in record.not_reliable


def shifted(distance):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(1.2 + (distance + 0 * x) * 0.2**0.5, 0.2**0.5))

    return guide


@pytest.mark.parametrize("distance", [2.0, 4.0, 6.0, 8.0, 12.0])
def test_no_miss_is_silent(distance):
    """A guide so many sds away: what is more than 4 SE off is said not to be relied on."""
    record, errors = bridged(PROBLEMS["normal"], guide=shifted(distance), num_draws=250)
    misses = errors.abs() > 4 * record.log_px_variance.sqrt()
    assert not (misses & ~record.unsupported).any()
    if distance <= 4:
        assert not record.unsupported.any()
    if distance >= 8:
        assert record.unsupported.all()
        assert "use a guide closer to the posterior" in record.not_reliable


# Bad input

FEW = torch.ones(4, 50, dtype=torch.float64)


def bad(guide=by_hand, draws=None, data=Y, **options):
    return lambda: bridge_evidence(normal_gamma, guide, data, draws=draws, **options)


BAD = {
    "no draws of a latent": (bad(draws={"tau": FEW}), r"got none of \['mu'\], but of \['tau'\]"),
    "shape": (
        bad(draws={"tau": FEW, "mu": torch.ones(4, 50, 3)}),
        r"draws of 'mu' of shape \(chains, draws\), .* got \(4, 50, 3\)",
    ),
    "sizes": (
        bad(draws={"tau": FEW, "mu": torch.ones(4, 60)}),
        r"as many chains and draws of every latent, got \{'tau': \(4, 50\), 'mu': \(4, 60\)\}",
    ),
    "too few": (
        bad(draws={"tau": FEW[:, :5], "mu": FEW[:, :5]}),
        "40 or more draws in every chain, got 5",
    ),
    "not finite": (bad(draws={"tau": FEW, "mu": FEW / 0}), "draws of 'mu' have NaN or infinite"),
    "unconstrained": (bad(draws={"tau": -FEW, "mu": FEW}), "model's own, constrained space"),
    "kind": (bad(draws=FEW), "a Reference, an ArviZ object .* got Tensor"),
    "constant": (bad(guide=None, draws={"tau": FEW, "mu": FEW}), "the same in all draws"),
    "fit without a guide": (bad(guide=None, fit_guide="forward"), '"forward" with a guide'),
    "fit": (bad(fit_guide="reverse"), "got 'reverse'"),
    "fit of a function": (
        bad(draws={"tau": FEW, "mu": FEW}, fit_guide="forward"),
        "a guide that is a module .* got function",
    ),
    "crossfit": (bad(crossfit=True), "crossfit of a proposal that is fitted"),
    "particles": (bad(num_particles=3), "num_particles of at least 16, got 3"),
    "chunks": (bad(chunk_size=0), "chunk_size of at least 1, got 0"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_reference_of_other_data_is_refused():
    known, flat = torch.ones(1, 2), {"tau": FEW.flatten(), "mu": FEW.flatten()}
    packed = torch.stack([FEW, FEW], -1).unsqueeze(2)
    reference = Reference(Y + 1, packed, known, known, 0, {"tau": 1, "mu": 1}, flat)
    with pytest.raises(ValueError, match="got a reference of others"):
        bridge_evidence(normal_gamma, by_hand, Y, draws=reference)
