"""Discrete latents that a model enumerates are summed out, in training and in every evidence."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.ops.indexing import Vindex

from evidence.guides import FullRank
from evidence.inference import (
    IWAE,
    STL,
    annealed_evidence,
    check,
    fit,
    importance_weighted_evidence,
    log_weights,
    marginal_likelihood,
    nuts_reference,
    to_arviz,
)

X = torch.tensor([-1.3, 0.4, 2.1, 1.7, -0.6, 2.4], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)
SCALES = torch.tensor([0.5, 1.4], dtype=torch.float64)


def mixture(x):
    """Two components at the locations m and 2 − m, with known weights and scales."""
    m = pyro.sample("m", dist.Normal(x.new_tensor(-1.0), 1.0))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        loc = torch.where(k == 0, m, 2 - m)
        pyro.sample("x", dist.Normal(loc, SCALES[k]), obs=x)


def mixture_guide(x):
    pyro.sample("m", dist.StudentT(x.new_tensor(5.0), -0.2, 1.1))


def grid(low=-12.0, high=12.0, size=4001):
    points = torch.linspace(low, high, size, dtype=torch.float64)
    return points, math.log(points[1] - points[0])


def mixture_evidence(x):
    """By brute force over all 2^N assignments and quadrature over m."""
    m, log_step = grid()
    locs = torch.stack([m, 2 - m])
    terms = []
    for ks in itertools.product((0, 1), repeat=len(x)):
        rows = [
            WEIGHTS[k].log() + dist.Normal(locs[k], SCALES[k]).log_prob(datum)
            for k, datum in zip(ks, x, strict=True)
        ]
        terms.append(sum(rows) + dist.Normal(-1.0, 1.0).log_prob(m))
    return (torch.stack(terms).logsumexp((0, 1)) + log_step).item()


ENUMERATED = config_enumerate(mixture)


def z_score(evidence, exact):
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.1
    return (evidence.mean - exact) / evidence.mc_se


def test_importance_weights_of_a_mixture():
    evidence = importance_weighted_evidence(ENUMERATED, mixture_guide, X, 4000)
    exact = mixture_evidence(X)
    assert abs(z_score(evidence, exact)) < 4
    assert abs(z_score(evidence, exact + 0.1)) > 4
    assert evidence.unit == "data set"


@pytest.mark.parametrize("guide", [None, mixture_guide], ids=["prior", "guide"])
def test_annealing_of_a_mixture(guide):
    options = {"num_chains": 200, "num_temperatures": 60, "num_leapfrog_steps": 5}
    evidence = annealed_evidence(ENUMERATED, X, guide=guide, **options)
    assert abs(z_score(evidence, mixture_evidence(X))) < 4
    assert abs(z_score(evidence, mixture_evidence(X) + 0.5)) > 4


def test_assignments_that_the_guide_draws_give_the_same_evidence():
    """They may be enumerated, or drawn: 2^6 of them, so that weights vary more."""

    def guide(x):
        mixture_guide(x)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(WEIGHTS.new_tensor([0.4, 0.6])))

    evidence = importance_weighted_evidence(ENUMERATED, guide, X, 40_000)
    assert abs(evidence.mean - mixture_evidence(X)) < 4 * evidence.mc_se
    assert evidence.mc_se > 0.01


def test_weights_per_datum_are_exact_where_nothing_is_left_to_draw():
    @config_enumerate
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Normal(2.0 * k, SCALES[k]), obs=x)

    parts = dist.Normal(torch.tensor([0.0, 2.0]).double(), SCALES)
    exact = dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts).log_prob(X)
    weights = log_weights(model, lambda x: None, X, 3)
    assert torch.allclose(weights, exact.expand(3, 6), atol=1e-12)


@config_enumerate
def local(x):
    """k → z → x, all per datum: the prior of the latent that the guide draws is a mixture."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(2.0 * k - 1.0, SCALES[k]))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * x, 0.9))


def local_evidence(x):
    scales = (SCALES.square() + 0.7**2).sqrt()
    parts = dist.Normal(torch.tensor([-1.0, 1.0]).double(), scales)
    return dist.MixtureSameFamily(dist.Categorical(WEIGHTS), parts).log_prob(x)


def test_a_latent_whose_prior_is_a_mixture():
    """Every datum within |z| < 5; annealing moves from the prior itself."""
    exact = local_evidence(X)
    evidence = importance_weighted_evidence(local, local_guide, X, 4000)
    assert evidence.unit == "datum"
    assert abs(evidence.mean - exact.mean().item()) < 4 * evidence.mc_se
    assert evidence.mc_se < 0.02
    annealed = annealed_evidence(local, X, num_chains=200, num_temperatures=60)
    assert abs(annealed.mean - exact.mean().item()) < 4 * annealed.mc_se
    assert annealed.mc_se < 0.05


TRANSITION = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)


@config_enumerate
def hidden_markov(x):
    """Two states of known transitions; the locations are m and −m, of one sequence."""
    m = pyro.sample("m", dist.Gamma(x.new_tensor(2.0), 1.0))
    z = torch.tensor(0)
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(Vindex(TRANSITION)[z, :]))
        loc = torch.where(z == 0, m, -m)
        pyro.sample(f"x_{t}", dist.Normal(loc, 0.8), obs=x[t])


def hidden_markov_evidence(x):
    """By the forward algorithm and quadrature over m."""
    m, log_step = grid(1e-6, 30.0, 20_001)
    log_alpha = torch.tensor([0.0, -math.inf], dtype=torch.float64).expand(len(m), 2)
    for datum in x:
        moved = (log_alpha.unsqueeze(-1) + TRANSITION.log()).logsumexp(1)
        log_alpha = moved + dist.Normal(torch.stack([m, -m], 1), 0.8).log_prob(datum)
    log_joint = log_alpha.logsumexp(1) + dist.Gamma(2.0, 1.0).log_prob(m)
    return (log_joint.logsumexp(0) + log_step).item()


def test_a_hidden_markov_model():
    def guide(x):
        pyro.sample("m", dist.Gamma(x.new_tensor(5.0), 4.0))

    exact = hidden_markov_evidence(X)
    evidence = importance_weighted_evidence(hidden_markov, guide, X, 4000)
    assert abs(z_score(evidence, exact)) < 4
    assert abs(z_score(evidence, exact + 0.1)) > 4
    options = {"num_chains": 60, "num_temperatures": 30, "num_leapfrog_steps": 3}
    assert abs(z_score(annealed_evidence(hidden_markov, X, **options), exact)) < 4


def test_a_discrete_latent_that_all_data_share():
    """Which of two scales all data have: the sum is over one k, not over one per datum."""

    @config_enumerate
    def model(x):
        k = pyro.sample("k", dist.Categorical(WEIGHTS))
        m = pyro.sample("m", dist.Normal(x.new_tensor(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, SCALES[k]), obs=x)

    def guide(x):
        pyro.sample("m", dist.StudentT(x.new_tensor(5.0), 0.7, 0.6))

    eye, ones = torch.eye(len(X)).double(), torch.ones(len(X), len(X)).double()
    parts = [
        dist.MultivariateNormal(torch.zeros(len(X)).double(), s**2 * eye + ones) for s in SCALES
    ]
    exact = torch.stack([w.log() + p.log_prob(X) for w, p in zip(WEIGHTS, parts, strict=True)])
    evidence = importance_weighted_evidence(model, guide, X, 4000)
    assert evidence.unit == "data set"
    assert abs(z_score(evidence, exact.logsumexp(0).item())) < 4


def trainable_guide(x):
    loc = pyro.param("loc", x.new_tensor(-1.2))
    log_scale = pyro.param("log_scale", x.new_tensor(-0.4))
    pyro.sample("m", dist.Normal(loc, log_scale.exp()))


def best_elbo():
    """The highest ELBO of a normal guide of m, by quadrature."""
    m, log_step = grid()
    parts = torch.stack(
        [
            WEIGHTS[k].log() + dist.Normal(loc.unsqueeze(1), SCALES[k]).log_prob(X)
            for k, loc in enumerate((m, 2 - m))
        ]
    )
    log_joint = parts.logsumexp(0).sum(1) + dist.Normal(-1.0, 1.0).log_prob(m)
    found = [
        (q.log_prob(m).exp() * (log_joint - q.log_prob(m))).sum() * math.exp(log_step)
        for loc in torch.linspace(-1.0, 0.5, 31)
        for q in [dist.Normal(loc.double(), s) for s in torch.linspace(0.25, 1.35, 23).double()]
    ]
    return max(found).item()


@pytest.mark.parametrize(
    "objective",
    [None, TraceEnum_ELBO(max_plate_nesting=1), STL(4), IWAE(1)],
    ids=lambda o: type(o).__name__,
)
def test_fit_sums_them_out(objective):
    """The default objective, Pyro's and ours come within 0.05 nats of the best normal guide."""
    options = {"num_epochs": 600, "lr": 0.02, "lr_decay": 0.993, "progress": False}
    fit(ENUMERATED, trainable_guide, X, objective=objective, **options)
    elbo = log_weights(ENUMERATED, trainable_guide, X, 20_000).mean().item()
    assert elbo == pytest.approx(best_elbo(), abs=0.05)


def test_the_default_objective_of_pyro_is_refused():
    with pytest.raises(ValueError, match=r"sums out .* got Trace_ELBO: leave it out, or pass") as e:
        fit(ENUMERATED, trainable_guide, X, objective=Trace_ELBO(), num_epochs=1, progress=False)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "run",
    [
        lambda model: fit(model, trainable_guide, X, num_epochs=1, progress=False),
        lambda model: importance_weighted_evidence(model, mixture_guide, X, 4000),
        lambda model: IWAE(2).loss(model, mixture_guide, X),
        lambda model: annealed_evidence(model, X, num_temperatures=30, num_chains=60),
        lambda model: nuts_reference(model, X, num_samples=8, num_warmup=8),
    ],
    ids=["fit", "weights", "objective", "annealing", "NUTS"],
)
def test_advice_on_discrete_latents_is_right(run):
    """The decorator that each refusal asks for mends it."""
    with pytest.raises(ValueError, match=r"decorate the model with pyro.*config_enumerate") as e:
        run(mixture)
    assert "\n" not in str(e.value)
    found = run(config_enumerate(mixture))
    if hasattr(found, "mc_se"):
        assert abs(z_score(found, mixture_evidence(X))) < 4


@config_enumerate
def wet_grass(wet):
    """Discrete latents alone: it has rained, or the sprinkler was on, or both."""
    rain = pyro.sample("rain", dist.Bernoulli(0.2))
    sprinkler = pyro.sample("sprinkler", dist.Bernoulli(0.4 - 0.39 * rain))
    pyro.sample("wet", dist.Bernoulli(0.9 * sprinkler + 0.8 * rain * (1 - sprinkler)), obs=wet)


@pytest.mark.parametrize("run", [FullRank.for_model, annealed_evidence, marginal_likelihood])
def test_advice_on_discrete_latents_alone_leads_to_the_sum(run):
    wet = torch.tensor(1.0)
    with pytest.raises(ValueError, match="nothing to draw") as e:
        run(wet_grass, wet)
    assert "importance_weighted_evidence(model, lambda *data, **named: None, data, 2)" in str(e)
    model, data = wet_grass, wet
    found = importance_weighted_evidence(model, lambda *data, **named: None, data, 2)
    exact = math.log(0.2 * (0.99 * 0.8 + 0.01 * 0.9) + 0.8 * 0.4 * 0.9)
    assert found.mean == pytest.approx(exact, abs=1e-5)
    assert found.not_reliable is None


def test_check_advises_too():
    [finding] = check(mixture, mixture_guide, X)
    assert (finding.check, finding.site) == ("sites", "k")
    assert "config_enumerate" in finding.mend
    assert check(ENUMERATED, mixture_guide, X) == []


def test_counts_without_an_end_cannot_be_summed_out():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Poisson(x.new_tensor(2.0)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    with pytest.raises(ValueError, match="discrete without an end, so the guide must sample"):
        log_weights(model, lambda x: None, X)


def test_nuts_and_the_export_of_draws():
    reference = nuts_reference(ENUMERATED, X, num_samples=20, num_warmup=20, num_chains=2)
    assert set(reference.sites) == {"m"}
    data = to_arviz(ENUMERATED, mixture_guide, X, num_draws=50)
    assert set(data.posterior.data_vars) == {"m"}


@config_enumerate
def change_point(x):
    """A level before and one after a time that is summed out: all data have one likelihood."""
    before, after = (pyro.sample(name, dist.Normal(x.new_zeros(()), 1.0)) for name in "ab")
    time = pyro.sample("time", dist.Categorical(torch.ones_like(x)))
    with pyro.plate("times", len(x)):
        level = torch.where(torch.arange(len(x)) < time, before, after)
        pyro.sample("x", dist.Normal(level, 0.5), obs=x)


@pytest.mark.parametrize("model", [change_point, hidden_markov])
def test_the_export_has_the_data_site_by_site_and_their_sum_once(model):
    guide = poutine.block(model, expose=["a", "b", "m"])
    found = to_arviz(model, guide, X, num_draws=20, num_chains=1)
    names = ["x"] if model is change_point else [f"x_{t}" for t in range(len(X))]
    observed = [np.atleast_1d(found.observed_data[name].values) for name in names]
    np.testing.assert_array_equal(np.concatenate(observed), X.numpy())
    assert found.observed_data[names[0]].dims == (("times",) if model is change_point else ())
    assert set(found.posterior_predictive.data_vars) == set(names)
    drawn = [found.posterior_predictive[name] for name in names]
    assert all(np.isfinite(d).all() and d.std() > 0.1 for d in drawn)
    (log_likelihood,) = found.log_likelihood.data_vars.values()
    of_sum = found.sample_stats["log_p_xz"] - found.sample_stats["log_q_z"]  # from the prior
    np.testing.assert_allclose(log_likelihood, of_sum)


def test_data_outside_the_support_are_refused_under_the_sum():
    @config_enumerate
    def model(x):
        p = pyro.sample("p", dist.Beta(x.new_tensor(1.0), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS))
            pyro.sample("x", dist.Bernoulli(torch.where(k == 0, p, 0.5)), obs=x)

    with pytest.raises(ValueError, match="outside the support of site 'x': Bernoulli expects"):
        log_weights(model, lambda x: pyro.sample("p", dist.Beta(x.new_tensor(2.0), 2.0)), X)


def test_a_sum_of_unequal_scales_is_refused():
    def model(x):
        m = pyro.sample("m", dist.Normal(x.new_tensor(-1.0), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
            with poutine.scale(scale=0.5):
                pyro.sample("x", dist.Normal(torch.where(k == 0, m, 2 - m), 1.0), obs=x)

    with pytest.raises(ValueError, match=r"'x' and the discrete latents .* have different scales"):
        IWAE(2).loss(model, mixture_guide, X)
    assert math.isfinite(log_weights(model, mixture_guide, X).item())  # evidence has none
