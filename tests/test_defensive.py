"""Smoothed weights, and weights under a mixture with the guide, against exact evidences."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.guides import FullRank, Planar
from evidence.inference import (
    estimate_evidence,
    fit,
    from_log_weights,
    importance_weighted_evidence,
)
from evidence.inference.estimation import defensive
from evidence.inference.paths import guide_path
from evidence.inference.programs import estimators
from tests.conjugate_chains import PROBLEMS
from tests.test_annealing import POSITIVE_X, positive_evidence, positive_model

NORMAL, NUM_DATA = PROBLEMS["normal"], 100
X = NORMAL.x.expand(NUM_DATA).clone()


def narrow(x, factor=3.0):
    """A guide so many times narrower than the posterior."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(1.2 + 0 * x, 0.2**0.5 / factor))


def records(**options):
    return estimate_evidence(NORMAL.model, narrow, X, 2000, **options)


def covered(record):
    errors = (record.log_px - NORMAL.exact).abs()
    return (errors < 2 * record.log_px_variance.sqrt()).double().mean().item()


def z_of_mean(record):
    errors = record.log_px - NORMAL.exact
    return abs((errors.mean() / errors.std() * math.sqrt(len(errors))).item())


def test_a_guide_that_is_too_narrow_is_right_in_a_mixture():
    """Of 100 repetitions: alone it is biased, and says so; with a tenth of wider draws right."""
    alone, mixed = records()["iw"], records(defensive=0.1)["iw"]
    assert covered(alone) < 0.7
    assert "k̂ is too large" in alone.not_reliable
    assert 0.9 <= covered(mixed) <= 0.99
    assert z_of_mean(mixed) < 4
    assert mixed.not_reliable is None


def test_weights_under_a_mixture_are_not_smoothed():
    """The twin: their largest come from several components, and of one Pareto tail are wrong."""
    problem = PROBLEMS["exponential"]

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(-0.2 + 0 * x, 0.2))

    x = problem.x.expand(NUM_DATA).clone()
    found = defensive.defensive_log_weights(
        problem.model, guide, x, 1000, share=0.2, chunk_size=100_000
    )
    pyro.set_rng_seed(1)
    mixed = estimate_evidence(problem.model, guide, x, 1000, defensive=0.2)
    assert torch.equal(mixed["psis"].log_px, mixed["iw"].log_px)
    assert mixed["psis"].estimator == "psis"
    errors = (mixed["psis"].log_px - problem.exact) / mixed["psis"].log_px_variance.sqrt()
    assert 0.8 < errors.square().mean().sqrt() < 1.2
    smoothed = from_log_weights(found.log_w)["psis"].log_px - problem.exact
    assert smoothed.mean() > 5 * smoothed.std() / math.sqrt(NUM_DATA)


def test_draws_of_the_prior_weighted_by_the_guide_alone_are_wrong(monkeypatch):
    """The planted error: weights p/q for all draws, wherever they come from."""

    def scored_by_guide(*args, **options):
        found = correct(*args, **options)
        log_w = found.log_w.clone()
        log_w[-found.counts[-1] :] = found.log_ratio[-found.counts[-1] :]
        return found._replace(log_w=log_w)

    correct = defensive.defensive_log_weights
    monkeypatch.setattr(
        "evidence.inference.estimation.evidence.defensive_log_weights", scored_by_guide
    )
    assert z_of_mean(records(defensive=0.1)["iw"]) > 5


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_no_weight_is_above_the_best_likelihood_over_the_share(share):
    """A third of which is the prior's; as many draws as are asked for, all told."""
    found = defensive.defensive_log_weights(
        NORMAL.model, narrow, X[:20], 500, share=share, chunk_size=10_000
    )
    best = dist.Normal(0.0, 0.5).log_prob(torch.tensor(0.0)).item()
    assert found.log_w.shape == found.log_ratio.shape == (500, 20)
    assert sum(found.counts) == 500
    assert abs(found.counts[0] - 500 * (1 - share)) <= 3
    assert found.log_w.max() <= best - math.log(found.counts[-1] / 500) + 1e-9
    assert found.of_guide.max() > found.log_w[: found.counts[0]].max() or share < 0.1


def test_scales_shrink_with_the_dimension():
    """Stretched by the least scale, typical draws cost about a nat, whatever the dimension."""
    assert defensive.stretches(1) == pytest.approx([1.5, 2.25, 3.375])
    for dim in (4, 25, 400):
        scale, *others = defensive.stretches(dim)
        assert others == pytest.approx([scale**2, scale**3])
        cost = dim * (math.log(scale) - (1 - scale**-2) / 2)  # E log q/q_c of a Gaussian
        assert 0.5 < cost < 1


def test_the_elbo_stays_that_of_the_guide():
    pyro.set_rng_seed(1)
    mixed = records(defensive=0.5)["elbo"]
    assert mixed.num_particles == 1001  # 333 draws of the prior, and three times 222
    alone = records()["elbo"]
    assert abs(mixed.mean - alone.mean) < 5 * math.hypot(mixed.mc_se, alone.mc_se)


@pytest.mark.parametrize("family", [FullRank, Planar])
def test_guides_of_auxiliary_draws_and_several_sites(family):
    """The exact evidence of both data, for constrained latents, within 4 SE."""
    guide = family.for_model(positive_model, POSITIVE_X, hidden_dims=()).double()
    record = importance_weighted_evidence(positive_model, guide, POSITIVE_X, 4000, defensive=0.3)
    errors = record.log_px - positive_evidence(POSITIVE_X)
    assert (errors.abs() < 4 * record.log_px_variance.sqrt()).all()
    assert ((errors + 0.5).abs() > 4 * record.log_px_variance.sqrt()).all()


def test_latents_that_the_data_share():
    """A mean of four data, within 4 SE of the closed form."""

    def model(y):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([0.3, 1.0, -0.2, 0.9], dtype=torch.float64)
    guide = FullRank.for_model(model, y).double()
    record = importance_weighted_evidence(model, guide, y, 2000, defensive=0.2)
    covariance = torch.eye(4).double() + 1
    exact = dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(y).item()
    assert record.unit == "data set"
    assert abs(record.mean - exact) < 4 * record.mc_se
    assert abs(record.mean - exact + 0.2) > 4 * record.mc_se


def by_matrix(x, y):
    """A regression that does not broadcast over particles, for its product of matrices."""
    weights = pyro.sample("weights", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(x.mm(weights.unsqueeze(-1)).squeeze(-1), 1.0), obs=y)


@pytest.mark.filterwarnings("ignore:the pair does not broadcast:UserWarning")
def test_a_program_that_does_not_broadcast():
    """Its map is differentiated under vmap, where Pyro's store wants to take in parameters."""
    x = torch.tensor([[1.0, 0.2], [1.0, -1.0], [1.0, 0.7]], dtype=torch.float64)
    y = torch.tensor([0.4, -0.9, 1.1], dtype=torch.float64)
    guide = FullRank.for_model(by_matrix, (x, y)).double()
    record = importance_weighted_evidence(by_matrix, guide, (x, y), 2000, defensive=0.2)
    covariance = torch.eye(3).double() + x @ x.T
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(y).item()
    assert abs(record.mean - exact) < 4 * record.mc_se
    assert abs(record.mean - exact + 0.2) > 4 * record.mc_se


SUCCESSES = torch.tensor([9.0, 10.0, 8.0])


def rounded(y):
    """One prior draw in some dozens is rounded onto 1, or so near that its place is lost."""
    rate = pyro.sample("rate", dist.Beta(1.0, 0.15))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Binomial(10, rate), obs=y)


def test_draws_of_the_prior_on_the_edge_of_their_support_count_as_zero(monkeypatch):
    """In float32. The twin loses one draw in eight: the map cannot be followed back."""
    guide = FullRank.for_model(rounded, SUCCESSES)
    fit(rounded, guide, SUCCESSES, num_steps=500, lr=0.05, progress=False)
    record = importance_weighted_evidence(rounded, guide, SUCCESSES, 4000, defensive=0.2)
    successes, failures = SUCCESSES.sum(), 30 - SUCCESSES.sum()
    exact = torch.lgamma(torch.tensor(11.0)) * 3
    for part in (SUCCESSES, 10 - SUCCESSES):
        exact = exact - torch.lgamma(part + 1).sum()
    for a, b, sign in ((1 + successes, 0.15 + failures, 1), (1.0, 0.15, -1)):
        parts = [torch.lgamma(torch.as_tensor(c)) for c in (a, b, a + b)]
        exact = exact + sign * (parts[0] + parts[1] - parts[2])
    assert record.not_reliable is None
    assert abs(record.mean - exact) < 4 * record.mc_se
    assert abs(record.mean - exact + 0.2) > 4 * record.mc_se
    monkeypatch.setattr(guide_path, "_MOST_LOST", -1.0)
    with pytest.raises(ValueError, match="cannot be found from"):
        importance_weighted_evidence(rounded, guide, SUCCESSES, 4000, defensive=0.2)


def test_latents_of_masked_data_have_no_volume_to_be_stretched():
    """The evidence of what is masked is 1; the twin counts its latents in the Jacobian."""
    y = torch.tensor([0.3, -0.2], dtype=torch.float64)

    def masked(program):
        def run(y):
            with pyro.plate("data", len(y)), pyro.poutine.mask(mask=y > 0):
                program(y)

        return run

    @masked
    def model(y):
        z = pyro.sample("z", dist.Normal(0 * y, 1.0).expand([len(y)]))
        w = pyro.sample("w", dist.Dirichlet(torch.ones(len(y), 3).double()))
        pyro.sample("y", dist.Normal(z + 0 * w.sum(-1), 1.0), obs=y)

    @masked
    def guide(y):
        pyro.sample("z", dist.Normal(y, 0.5))
        pyro.sample("w", dist.Dirichlet(2 * torch.ones(len(y), 3).double()))

    record = importance_weighted_evidence(model, guide, y, 2000, defensive=0.2)
    exact = dist.Normal(0.0, 2**0.5).log_prob(y[0])
    assert abs(record.log_px[0] - exact) < 4 * record.log_px_variance[0].sqrt() < 0.2
    assert abs(record.log_px[1]) < 1e-12
    with pytest.MonkeyPatch.context() as planted:
        planted.setattr(defensive.GuidePath, "num_scored", lambda path: torch.tensor(path.dim))
        wrong = importance_weighted_evidence(model, guide, y, 2000, defensive=0.2)
    assert wrong.log_px[1] > 0.05


def heavy(num_particles, shape, num_data):
    """Log-weights whose weights are Pareto of this shape, with mean one."""
    uniform = torch.rand(num_particles, num_data, dtype=torch.float64)
    return -shape * uniform.log() + math.log(1 - shape)


def test_smoothed_weights_are_steadier_than_heavy_ones():
    """Of Pareto tails with k = 0.6: a smaller mean squared error, and an unnormalized mean."""
    log_w = heavy(1000, 0.6, 200)
    found = from_log_weights(log_w)
    errors = {name: found[name].log_px.square().mean().sqrt() for name in ("iw", "psis")}
    assert errors["psis"] < 0.9 * errors["iw"]
    shifted = from_log_weights(log_w - 1000)["psis"]
    assert torch.allclose(shifted.log_px, found["psis"].log_px - 1000)
    assert (found["psis"].ess > found["iw"].ess).double().mean() > 0.5


def test_light_weights_are_hardly_smoothed_and_covered():
    log_w = 0.5 * torch.randn(1000, 200, dtype=torch.float64) - 0.125
    found = from_log_weights(log_w)["psis"]
    share = (found.log_px.abs() < 2 * found.log_px_variance.sqrt()).double().mean()
    assert 0.9 <= share <= 0.99


def test_where_no_tail_can_be_fitted_smoothed_weights_are_the_plain_ones():
    for log_w in (torch.randn(20, 3), torch.zeros(100, 3)):
        found = from_log_weights(log_w)
        assert torch.equal(found["psis"].log_px, found["iw"].log_px)


def test_only_the_tail_is_smoothed_even_of_weights_half_of_which_are_zero():
    log_w = torch.randn(200, 3, dtype=torch.float64)
    log_w[:120] = -math.inf
    smoothed, _ = estimators.pareto_smoothed(log_w)
    body = log_w < log_w.topk(math.ceil(0.2 * 200) + 1, dim=0).values[-1]
    assert torch.allclose(smoothed[body], log_w[body])
    assert not torch.allclose(smoothed[~body], log_w[~body])
    log_w[:190] = -math.inf  # and there is nothing beside the tail
    assert torch.equal(estimators.pareto_smoothed(log_w)[0], log_w)


BAD = {
    "share": ({"defensive": 1.0}, "defensive between 0 and 1, got 1.0"),
    "negative": ({"defensive": -0.1}, "defensive between 0 and 1, got -0.1"),
}


@pytest.mark.parametrize(("options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        records(**options)
    with pytest.raises(ValueError, match="expected 5 or more particles of a mixture, got 4"):
        importance_weighted_evidence(NORMAL.model, narrow, X, 4, defensive=0.1)
