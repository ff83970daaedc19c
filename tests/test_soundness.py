"""Pairs whose weights do not average to p(x) are refused; those that only look like it are not."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from evidence.guides import FullRank, MeanField
from evidence.inference import (
    adaptive_evidence,
    annealed_evidence,
    bidirectional_evidence,
    check,
    estimate_evidence,
    fit,
    importance_weighted_evidence,
    log_weights,
)
from evidence.inference.programs.traces import random_sites
from evidence.inference.soundness.auxiliary import _fixed_points
from evidence.models import EightSchools
from tests.conftest import make_oracle

X = torch.linspace(-1.5, 1.5, 20, dtype=torch.float64)


def model(x):
    """x ~ N(z, 1), z ~ N(0, 1): p(x) = N(0, 2), p(z | x) = N(x/2, 1/2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.8))


def exact(x):
    return dist.Normal(torch.zeros(()).double(), math.sqrt(2)).log_prob(x)


def z_score(evidence, expected):
    return abs(evidence.mean - expected.mean().item()) / evidence.mc_se


ESTIMATORS = {
    "iw": lambda m, g, x: importance_weighted_evidence(m, g, x, 500),
    "elbo": lambda m, g, x: estimate_evidence(m, g, x, 500)["elbo"],
    "adaptive": adaptive_evidence,
    "weights": lambda m, g, x: log_weights(m, g, x, 5),
    "ais": lambda m, g, x: annealed_evidence(m, x, guide=g, num_temperatures=5),
    "bdmc": lambda m, g, x: bidirectional_evidence(m, like=x, guide=g, num_temperatures=5),
}


def with_extra_draw(sd, *, auxiliary=True):
    """A guide whose mean wanders with a draw of its own."""

    def wandering(x):
        with pyro.plate("data", len(x)):
            infer = {"is_auxiliary": True} if auxiliary else {}
            u = pyro.sample("u", dist.Normal(x.new_tensor(0.0), sd), infer=infer)
            pyro.sample("z", dist.Normal(x / 2 + 0.1 * torch.tanh(u), 0.8))

    return wandering


def improper(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def positive(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(x / 4, 1.0))


def positive_and_says_real(x):
    """torch takes the codomain of the last transform for that of both."""
    transforms = [dist.transforms.ExpTransform(), dist.transforms.AffineTransform(0.0, 1.0)]
    with pyro.plate("data", len(x)):
        base = dist.Normal(x / 4, torch.ones_like(x))
        pyro.sample("z", dist.TransformedDistribution(base, transforms))


def truncated(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Uniform(x / 2 - 1.0, x / 2 + 1.0))


def masked(x):
    with poutine.mask(mask=x > 0):
        guide(x)


def half_masked(x):
    """The prior is masked, and what depends on it is not."""
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=x > 0):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def half_made(log_density=None, factor=2.0):
    """z = factor · u; the density of z is that of u over the factor."""

    def made(x):
        with pyro.plate("data", len(x)):
            loc, scale = x / 2 / factor, 0.8 / abs(factor)
            u = pyro.sample("u", dist.Normal(loc, scale), infer={"is_auxiliary": True})
            stated = -math.log(abs(factor)) if log_density is None else log_density
            pyro.sample("z", dist.Delta(factor * u, log_density=stated))

    return made


def folded(x):
    """Two numbers make one."""
    with pyro.plate("data", len(x)):
        base = dist.Normal((x / 4).unsqueeze(-1).expand(-1, 2), 0.5).to_event(1)
        u = pyro.sample("u", base, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u.sum(-1)))


def forgotten(x):
    """z does not depend on u at all."""
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(x / 2, 0.8), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(x / 2))


def centred(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - x.mean()) / 2, 0.8))


def centred_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z + x.mean(), 1.0), obs=x)


EXTRA = with_extra_draw(1.0), with_extra_draw(1.0, auxiliary=False)
NO_JACOBIAN, WRONG_SIGN = half_made(0.0), half_made(math.log(2))
AUXILIARY = (*EXTRA, NO_JACOBIAN, WRONG_SIGN, folded, forgotten)

WRONG = {
    "a draw that the model lacks": (model, EXTRA[0], "'u': an auxiliary draw"),
    "the same, not marked": (model, EXTRA[1], "samples .'u'."),
    "improper prior": (improper, guide, "prior 'z': an improper prior"),
    "half of the support": (model, positive, "misses .* of the mass"),
    "half of the support, said to be all": (model, positive_and_says_real, "misses .*% of the"),
    "a part of the support": (model, truncated, "misses .* of the mass"),
    "masked guide": (model, masked, "mask 'z': masked out otherwise"),
    "masked model": (half_masked, guide, "mask 'z': masked out otherwise"),
    "no Jacobian": (model, NO_JACOBIAN, "log_density of 0.0000, where .* is -0.6931"),
    "Jacobian with the wrong sign": (model, WRONG_SIGN, "log_density of 0.6931"),
    "two draws make one": (model, folded, "of 2 entries per datum make latents of 1"),
    "a draw that makes nothing": (
        model,
        forgotten,
        "is a point mass|of which no latent is a function",
    ),
    "guide sees the other data": (model, centred, "leak 'z': row"),
    "model sees the other data": (centred_model, guide, "leak 'x': row"),
}


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_pair_whose_weights_mean_nothing_is_refused(wrong, estimator):
    if wrong == "improper prior" and estimator == "bdmc":
        pytest.skip("nothing can be simulated")
    model, guide, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message) as caught:
        ESTIMATORS[estimator](model, guide, X)
    assert "\n" not in str(caught.value)


def test_a_leak_among_several_tensors_is_refused():
    def regression(x, offset):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z + offset, 1.0), obs=x)

    def guide(x, offset):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - offset) / 2, 0.8))

    def centred(x, offset):
        guide(x, offset - offset.mean())

    data = (X + 2, torch.full_like(X, 2.0).index_fill(0, torch.tensor([3]), 2.5))
    evidence = importance_weighted_evidence(regression, guide, data, 5000)
    assert z_score(evidence, exact(data[0] - data[1])) < 4
    with pytest.raises(ValueError, match="leak 'z': row"):
        importance_weighted_evidence(regression, centred, data, 500)


@pytest.mark.parametrize("wrong", WRONG)
def test_check_finds_the_same(wrong):
    model, guide, _ = WRONG[wrong]
    assert check(model, guide, X)


@pytest.mark.parametrize("wrong", [name for name, (_, g, _) in WRONG.items() if g in AUXILIARY])
def test_nothing_is_trained_with_draws_that_have_no_place(wrong):
    model, guide, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message):
        fit(model, guide, X, num_epochs=1, progress=False)


def test_the_number_that_was_refused_is_above_the_evidence():
    """What counting u in log q alone gives: log w + h(u) on average, 1.4 nats at a sd of 1."""
    trace = poutine.trace(with_extra_draw(3.0)).get_trace(X)
    scored = poutine.trace(poutine.replay(model, trace=trace)).get_trace(X)
    log_w = scored.log_prob_sum() - trace.log_prob_sum()
    assert log_w / len(X) > exact(X).mean() + 1


def test_following_the_advice_gives_the_right_number():
    """A site "u" in the model, of any density given z and x."""

    def with_u(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            pyro.sample("u", dist.Normal(0.1 * z, 3.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    evidence = importance_weighted_evidence(with_u, with_extra_draw(3.0), X, 5000)
    assert z_score(evidence, exact(X)) < 5


@pytest.mark.parametrize("factor", [2.0, -0.3])
def test_a_jacobian_that_is_right_is_accepted(factor):
    made = half_made(factor=factor)
    assert z_score(importance_weighted_evidence(model, made, X, 5000), exact(X)) < 5
    assert check(model, made, X) == []


def positive_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(x.new_tensor([2.0, 3.0]), 1.0).to_event(1))
        w = pyro.sample("w", dist.Dirichlet(x.new_tensor([1.0, 2.0, 3.0])))
        pyro.sample("x", dist.Normal(z.sum(-1) + w[..., 0], 1.0), obs=x)


def test_autoguides_and_several_sites_are_accepted():
    auto = AutoNormal(positive_model)
    auto(X)
    importance_weighted_evidence(positive_model, auto, X, 10)
    schools = EightSchools(8).double()
    x = schools(None, size=5).double()
    guide = MeanField.for_model(schools, x)
    importance_weighted_evidence(schools, guide, x, 10)


def half_uniform(x):
    """x ~ U(z − 1, z + 1), z ~ N(0, 1): the posterior is on (x − 1, x + 1), and so may a guide."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Uniform(z - 1, z + 1), obs=x)


def test_a_guide_on_all_of_the_posterior_needs_not_be_on_all_of_the_prior():
    def on_posterior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Uniform(x - 1, x + 1))

    normal = dist.Normal(torch.zeros(()).double(), 1.0)
    log_px = ((normal.cdf(X + 1) - normal.cdf(X - 1)) / 2).log()
    evidence = importance_weighted_evidence(half_uniform, on_posterior, X, 5000)
    assert z_score(evidence, log_px) < 5
    for seed in range(20):  # also where every draw from the prior is impossible for some datum
        pyro.set_rng_seed(seed)
        importance_weighted_evidence(half_uniform, on_posterior, X, 2)


def exponential_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Exponential(x.new_tensor(1.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def exponential_evidence(x):
    """p(x) = exp(½ − x) Φ(x − 1)."""
    return 0.5 - x + torch.special.log_ndtr(x - 1)


WIDE = {
    "exponential": (exponential_model, exponential_evidence, 1.2, X),
    "uniform": (
        lambda x: _uniform_model(x),
        lambda x: torch.log(dist.Normal(0.0, 0.1).cdf(1 - x) - dist.Normal(0.0, 0.1).cdf(-x)),
        0.1,
        torch.tensor([0.3, 0.1, 0.0, -0.05], dtype=torch.float64).repeat(40),
    ),
}


def _uniform_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(x.new_tensor(0.0), x.new_tensor(1.0)))
        pyro.sample("x", dist.Normal(z, 0.1), obs=x)


@pytest.mark.parametrize("prior", WIDE)
def test_a_guide_wider_than_the_prior_gives_the_right_number(prior):
    """Its draws outside weigh nothing, whatever the density's formula says of them there."""
    model, log_px, scale, x = WIDE[prior]

    def wide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, scale))

    weights = log_weights(model, wide, x, 4000)
    ratios = (weights - log_px(x)).exp().mean(0)
    spread = (weights - log_px(x)).exp().std(0).clamp(min=1e-6)
    z_scores = (ratios - 1) / spread * math.sqrt(4000)
    assert weights.isneginf().any()
    assert z_scores.abs().max() < 5
    options = {"num_chains": 100, "num_temperatures": 20, "num_leapfrog_steps": 3}
    annealed = annealed_evidence(model, x, guide=wide, num_pilot_temperatures=50, **options)
    ratio = (annealed.log_px - log_px(x)).exp()
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / math.sqrt(len(x))
    assert abs(ratio.mean() - 1) < 0.2
    options |= {"num_chains": 16, "num_pilot_temperatures": 50}
    bracket = bidirectional_evidence(model, like=x, guide=wide, **options)
    gaps = bracket.log_px_upper - bracket.log_px_lower
    some = gaps[gaps.isfinite()]  # where all chains of a datum began outside, the bound is −inf
    assert some.mean() > -5 * some.std() / math.sqrt(len(some))
    assert (bracket.not_reliable is None) == bool(gaps.isfinite().all())


def test_a_guide_whose_reach_is_not_known_is_refused_where_annealing_would_squash_it():
    """Positive, said to be real, on a prior on (0, 1)."""
    with pytest.raises(ValueError, match="reaches beyond the support of 'z', Interval"):
        annealed_evidence(_uniform_model, X.sigmoid(), guide=positive_and_says_real)


def edge_model(x):
    """z ~ Beta(0.1, 0.1), x ~ Bernoulli(z): p(x) = 1/2. A tenth of the mass is beyond float32."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Beta(x.new_tensor([0.1]), x.new_tensor(0.1)).to_event(1))
        pyro.sample("x", dist.Bernoulli(z).to_event(1), obs=x)


def edge_guide(dtype):
    x = torch.tensor([[0.0], [1.0]], dtype=dtype)
    guide = MeanField.for_model(edge_model, x, hidden_dims=(), standardize="none")
    with torch.no_grad():
        guide.guide.encoder[-1].weight.zero_()
        guide.guide.encoder[-1].bias.copy_(torch.tensor([0.0, math.log(12.0)]))
    return guide


@pytest.mark.parametrize("estimator", ["iw", "ais"])
def test_mass_on_the_edge_of_a_support_is_seen_and_double_helps(estimator):
    """float32 loses a tenth of the mass at x = 1; the advice is followed in the second run."""
    bits = torch.tensor([[0.0], [1.0]]).repeat(30, 1)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        if estimator == "iw":
            evidence = importance_weighted_evidence(
                edge_model, edge_guide(dtype), bits.to(dtype), 4000
            )
        else:
            options = {"num_temperatures": 20, "num_leapfrog_steps": 3}
            options |= {"num_chains": 200, "num_pilot_temperatures": 30}
            evidence = annealed_evidence(edge_model, bits.to(dtype), **options)
        errors[dtype] = abs(evidence.mean + math.log(2))
        if dtype == torch.float32:
            assert "--dtype float64" in evidence.not_reliable
            assert "where float32 ends" in str(evidence)
    assert errors[torch.float64] < 0.02


def test_mass_away_from_the_edges_is_no_matter():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Beta(x.new_tensor([2.0]), 2.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(z).to_event(1), obs=x)

    bits = torch.tensor([[0.0], [1.0]]).repeat(20, 1)
    options = {"num_chains": 30, "num_temperatures": 20, "num_leapfrog_steps": 3}
    evidence = annealed_evidence(model, bits, num_pilot_temperatures=30, **options)
    assert evidence.not_reliable is None


def test_what_is_checked_leaves_no_trace():
    oracle = make_oracle()
    x = oracle(None, size=10)
    guide = FullRank(3, 10, hidden_dims=()).double()
    state = torch.get_rng_state()
    first = importance_weighted_evidence(oracle, guide, x, 10).log_px
    torch.set_rng_state(state)
    assert torch.equal(importance_weighted_evidence(oracle, guide, x, 10).log_px, first)
    assert guide.training


def location_and_scale(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def fixed_in_part(x):
    """A point that no draw moves, beside an auxiliary draw that makes the other latent."""
    pyro.sample("loc", dist.Delta(x.new_tensor(0.3)))
    u = pyro.sample("u", dist.Normal(x.new_tensor(0.0), 0.1), infer={"is_auxiliary": True})
    pyro.sample("scale", dist.Delta(u.exp(), log_density=-u))


@pytest.mark.parametrize("seed", range(4))
def test_no_seed_makes_what_is_drawn_look_like_a_fixed_point(seed):
    """A run that draws the numbers of the one before does: the state is the seed's in both."""
    x = torch.tensor([0.4, -1.0, 0.8, 0.1])
    guide = AutoNormal(location_and_scale)
    fit(location_and_scale, guide, x, num_steps=1, seed=seed, progress=False)
    for program, fixed in ((guide, set()), (fixed_in_part, {"loc"})):  # the twin has one
        pyro.set_rng_seed(seed)
        sites = random_sites(poutine.trace(program).get_trace(x))
        pyro.set_rng_seed(seed)
        assert set(_fixed_points(program, sites, x)) == fixed
