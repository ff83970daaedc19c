"""Sequential Monte Carlo against exact evidence: unbiased, its error bar true, its draws right."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from evidence.inference import from_log_weights, smc, smc_evidence
from evidence.inference.annealing import particles, pilot, smc_pilot
from evidence.inference.annealing import smc as machine
from evidence.inference.annealing.smc_readings import drift, log_weights, lost_peak
from evidence.inference.estimation import sequential
from evidence.inference.estimation.reliability import smc_caveat
from tests import test_enumeration, test_shared_latents
from tests.conftest import make_oracle
from tests.test_annealing import (
    gamma_exponential,
    gamma_exponential_evidence,
    gamma_guide,
    layered_evidence,
    layered_guide,
    layered_model,
    mean_field_of,
    planted_jacobian,
    worst_of,
)

# Islands are as good as runs: their estimates are unbiased, each on its own. Many small ones with
# few steps have noisy estimates, which must be unbiased all the same.
ROUGH = {"num_chains": 2, "num_steps": 3, "num_leapfrog_steps": 2, "chunk_size": 1_000_000}
ROUGH |= {"num_islands": 10_000, "ess_share": 0.8}


def worst_island(model, x, exact, **options):
    """Largest |z| of E[Ẑ] / p(x) = 1 over islands, one test per datum."""
    return worst_of(smc(model, x, **ROUGH | options).log_px, exact)


def oracle_islands(*, from_guide=False, **options):
    model = make_oracle(10, 3)
    x = model(None, size=2)
    guide = mean_field_of(model) if from_guide else None
    return worst_island(model, x, model.log_evidence(x), guide=guide, **options)


@pytest.mark.parametrize("from_guide", [False, True], ids=["prior", "guide"])
def test_islands_average_to_the_evidence(from_guide):
    assert oracle_islands(from_guide=from_guide) < 5


def gamma_islands(guide=None, **options):
    x = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    exact = gamma_exponential_evidence(x)
    return worst_island(gamma_exponential, x, exact, guide=guide, **options)


@pytest.mark.parametrize("guide", [None, gamma_guide])
def test_a_constrained_latent_has_its_closed_form_evidence(guide):
    assert gamma_islands(guide) < 5


def planted_end(monkeypatch):
    """The schedule stops at β = 0.97."""
    plan_for = smc_pilot.plan_for

    def cut(*args):
        plan = plan_for(*args)
        return plan._replace(betas=0.97 * plan.betas)

    monkeypatch.setattr(smc_pilot, "plan_for", cut)


def planted_start(monkeypatch):
    """Tempering at the wrong end: f_0 is where the schedule says that f_1 is."""
    for kind in machine.AbstractPath.__subclasses__():
        own = kind.weights
        monkeypatch.setattr(kind, "weights", staticmethod(lambda beta, own=own: own(1 - beta)))


def planted_loss(monkeypatch):
    """The weights before one resampling are dropped."""

    def without_first(betas, changes):
        log_w = log_weights(betas, changes)
        return torch.cat([0 * log_w[:1], log_w[1:]])

    monkeypatch.setattr(sequential.readings, "log_weights", without_first)


def planted_shift(monkeypatch):
    """Weights are of the particles of the next temperature."""

    def shifted(betas, changes):
        return log_weights(betas, torch.cat([changes[1:], changes[-1:]]))

    monkeypatch.setattr(sequential.readings, "log_weights", shifted)


def planted_ancestors(monkeypatch):
    """Ancestors are drawn from all particles alike."""
    resampled = particles.resampled

    def alike(cloud, log_w, count):
        return resampled(cloud, 0 * log_w, count)

    monkeypatch.setattr(machine.particles, "resampled", alike)


@pytest.mark.parametrize("plant", [planted_loss, planted_ancestors])
def test_a_planted_error_biases_the_islands(plant, monkeypatch):
    plant(monkeypatch)
    assert oracle_islands() > 5


@pytest.mark.parametrize(
    "plant",
    [
        planted_end,
        planted_start,
        planted_loss,
        planted_shift,
        planted_ancestors,
        planted_jacobian,
    ],
)
def test_a_planted_error_biases_the_islands_of_a_constrained_latent(plant, monkeypatch):
    plant(monkeypatch)
    assert gamma_islands() > 5


# Error bars: many groups of islands of one run stand for as many runs with the same pilot run.


def covered(records, exact, num_se=2.0):
    """The share of the data of a record whose interval holds the exact value."""
    errors = (records.log_px - exact).abs()
    return (errors <= num_se * records.log_px_variance.sqrt()).double().mean().item()


def grouped(log_px, size=32):
    """A record for every so many islands `[R, 1] -> [size, R / size]`."""
    return from_log_weights(log_px.reshape(size, -1))["iw"]


def two_modes(z):
    """Narrow and wide: shares of 0.7 and 0.3 that chains cannot change once they are apart."""
    narrow = dist.Normal(-3.0, 0.3).log_prob(z).sum(-1) + math.log(0.7)
    return torch.logaddexp(narrow, dist.Normal(3.0, 1.0).log_prob(z).sum(-1) + math.log(0.3))


def modes():
    zero = torch.zeros(2, dtype=torch.float64)
    z = pyro.sample("z", dist.Normal(zero, 3.0).to_event(1))
    pyro.factor("modes", two_modes(z) - dist.Normal(zero, 3.0).log_prob(z).sum(-1))


def test_two_standard_errors_cover_where_chains_do_not_mix():
    """In 90% to 99% of 100 runs; the twin, from the chains alone, is too short by far."""
    options = {"num_islands": 3200, "num_chains": 32, "num_steps": 3, "num_leapfrog_steps": 3}
    sampled = smc(modes, (), **options)
    records = grouped(sampled.log_px)
    assert worst_of(sampled.log_px, 0.0) < 5
    assert 0.90 <= covered(records, 0.0) <= 0.99
    spread = records.log_px.var().item()
    assert records.log_px_variance.mean().item() == pytest.approx(spread, rel=0.4)
    assert 100 * sampled.chain_variance.item() < 0.4 * spread


def test_two_standard_errors_cover_where_steps_are_correlated():
    """The twin counts all particles as independent."""
    model = make_oracle(50, 5)
    x = model(None, size=1)
    options = {"num_islands": 3200, "num_chains": 2, "num_steps": 8, "num_leapfrog_steps": 1}
    sampled = smc(model, x, **options)
    records, exact = grouped(sampled.log_px), model.log_evidence(x).item()
    assert 0.90 <= covered(records, exact) <= 0.99
    spread = records.log_px.var().item()
    assert records.log_px_variance.mean().item() == pytest.approx(spread, rel=0.4)
    planted = (len(sampled.betas[0]) - 1) * (1 / sampled.least_ess.item() - 1) / (32 * 16)
    assert planted < 0.6 * spread


def test_few_chains_say_that_islands_vary_too_widely():
    """And the advice, more chains, leads to the right number."""
    few = smc_evidence(modes, (), num_chains=4, num_steps=2)
    assert "the islands vary too widely" in few.not_reliable
    assert "(num_chains)" in few.not_reliable
    assert "NOT RELIABLE" in str(few)
    many = smc_evidence(modes, (), num_chains=256, num_steps=4)
    assert many.not_reliable is None
    assert abs(many.mean) < 4 * many.mc_se
    assert many.mc_se < 0.1


def funnel(centred):
    """Neal's funnel, from a wide start."""
    width = 10.0 if centred else 1.5

    def model():
        zero = torch.zeros(9, dtype=torch.float64)
        v = pyro.sample("v", dist.Normal(zero[0], 5.0))
        x = pyro.sample("x", dist.Normal(zero, width).to_event(1))
        start = dist.Normal(zero[0], 5.0).log_prob(v) + dist.Normal(zero, width).log_prob(x).sum(-1)
        scale = (v / 2).exp().unsqueeze(-1) if centred else 1.0
        end = dist.Normal(zero[0], 3.0).log_prob(v) + dist.Normal(zero, scale).log_prob(x).sum(-1)
        pyro.factor("funnel", end - start)

    return model


@pytest.mark.slow
def test_a_funnel_says_that_a_part_is_missing():
    """And the advice, a non-centred model, leads to the right number."""
    evidence = smc_evidence(funnel(centred=True), ())
    assert evidence.mean < -0.5
    assert "(non-centred), or begin from a guide" in evidence.not_reliable
    better = smc_evidence(funnel(centred=False), (), num_chains=8)
    assert better.not_reliable is None
    assert abs(better.mean) < 4 * better.mc_se


def line(age, height):
    """A regression: while β is small its noise may be anything, then it has to be small."""
    start = pyro.sample("start", dist.Normal(0.5, 0.5))
    slope = pyro.sample("slope", dist.Normal(0.0, 0.1))
    noise = pyro.sample("noise", dist.HalfNormal(0.1))
    with pyro.plate("children", len(age)):
        pyro.sample("height", dist.Normal(start + slope * age, noise), obs=height)


HEIGHTS = (
    torch.arange(2.0, 10.0, dtype=torch.float64),
    torch.tensor([0.86, 0.95, 1.03, 1.09, 1.16, 1.22, 1.28, 1.33], dtype=torch.float64),
)


def line_evidence():
    """Gaussian given the noise, by quadrature over its logarithm."""
    age, height = (part.numpy() for part in HEIGHTS)
    design = np.stack([np.ones_like(age), age], 1) * np.array([0.5, 0.1])
    log_noise = np.linspace(-9, 1, 2001)
    log_p = [
        stats.multivariate_normal(
            np.full(len(age), 0.5), np.exp(2 * s) * np.eye(len(age)) + design @ design.T
        ).logpdf(height)
        + stats.halfnorm(scale=0.1).logpdf(np.exp(s))
        + s
        for s in log_noise
    ]
    return float(np.logaddexp.reduce(log_p) + np.log(log_noise[1] - log_noise[0]))


@pytest.mark.parametrize("seed", [0, 3])
def test_the_neck_of_a_funnel_on_the_way_is_entered(seed, monkeypatch):
    """With steps of one length the islands agree on a number that is six of its errors too low."""
    evidence = smc_evidence(line, HEIGHTS, seed=seed)
    assert evidence.not_reliable is None
    assert abs(evidence.mean - line_evidence()) < 4 * evidence.mc_se
    if seed == 0:
        monkeypatch.setattr(pilot, "_SHORT_SHARE", 0.0)
        planted = smc_evidence(line, HEIGHTS, seed=seed)
        off = abs(planted.mean - line_evidence()) > 5 * planted.mc_se
        assert off or planted.not_reliable is not None


# Every kind of model that the paths serve.


@pytest.mark.parametrize("guide", [None, test_enumeration.mixture_guide])
def test_discrete_latents_are_summed_out(guide):
    x = test_enumeration.X
    evidence = smc_evidence(test_enumeration.ENUMERATED, x, guide=guide, num_chains=8)
    exact = test_enumeration.mixture_evidence(x)
    assert abs(test_enumeration.z_score(evidence, exact)) < 4
    assert abs(test_enumeration.z_score(evidence, exact + 0.5)) > 4


@pytest.mark.parametrize(
    ("way", "guide"), [("X @ w", None), ("length", test_shared_latents.wide_guide)]
)
def test_programs_that_do_not_broadcast(way, guide):
    model = test_shared_latents.regression(test_shared_latents.MEANS[way])
    data = test_shared_latents.X, test_shared_latents.Y
    options = {"num_islands": 20, "num_steps": 4, "num_leapfrog_steps": 3}
    evidence = smc_evidence(model, data, guide=guide, **options)
    exact = test_shared_latents.regression_evidence(*data)
    assert evidence.unit == "data set"
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se < 1.2
    assert abs(evidence.mean - exact + 2) > 4 * evidence.mc_se


@pytest.mark.parametrize("guide", [None, layered_guide])
def test_plain_functions_with_layers_plates_and_supports(guide):
    """The twin's evidence is two nats away."""
    x = torch.tensor([[0.5, -1.0], [2.0, 1.0], [0.1, 0.3]], dtype=torch.float64)
    log_px = smc(layered_model, x, guide=guide, **ROUGH | {"num_islands": 1500}).log_px
    assert worst_of(log_px, layered_evidence(x)) < 5
    assert worst_of(log_px, layered_evidence(x) + 2) > 5


@pytest.mark.parametrize("site", ["factor", "masked", "scaled"])
def test_factors_count_and_what_is_masked_or_a_scale_does_not(site):
    """z ~ N(0, 2²) and one term N(z; 1, 0.5²); the twins have none, and two."""
    one = torch.tensor([1.0], dtype=torch.float64)

    def model():
        z = pyro.sample("z", dist.Normal(0.0 * one[0], 2.0))
        if site == "factor":
            pyro.factor("f", dist.Normal(one[0], 0.5).log_prob(z))
        elif site == "masked":
            with pyro.poutine.mask(mask=one[0] < 0):
                pyro.sample("hidden", dist.Normal(z, 0.5), obs=5 * one[0])
            pyro.sample("x", dist.Normal(z, 0.5), obs=one[0])
        else:
            with pyro.poutine.scale(scale=2.0):
                pyro.sample("x", dist.Normal(z, 0.5), obs=one[0])

    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    term, prior = dist.Normal(one, 0.5).log_prob(grid), dist.Normal(0 * one, 2.0).log_prob(grid)
    none, once, twice = (
        (prior + number * term).logsumexp(0) + math.log(24 / 4000) for number in range(3)
    )
    log_px = smc(model, (), **ROUGH).log_px
    assert worst_of(log_px, once) < 5
    assert min(worst_of(log_px, none), worst_of(log_px, twice)) > 5


def test_data_of_many_blocks_are_each_right_and_in_their_order():
    """The twin's data are in another order."""
    model = make_oracle()
    x = model(None, size=20)
    sampled = smc(model, x, chunk_size=640, ess_share=0.7)
    evidence, exact = sampled.evidence, model.log_evidence(x)
    assert (len(sampled.betas), evidence.unit, evidence.num_data) == (2, "datum", 20)
    assert evidence.not_reliable is None
    assert abs(evidence.mean - exact.mean()) < 4 * evidence.mc_se - evidence.mean_bias
    assert covered(evidence, exact) > 0.8
    assert covered(evidence, exact.roll(1)) < 0.2


# What else a run leaves.


def test_the_draws_are_of_the_posterior():
    """Their means and covariances; the twin is the posterior of the next datum."""
    model = make_oracle()
    x = model(None, size=3)
    sampled = smc(model, x, num_islands=100, num_chains=10, chunk_size=10_000)
    z, exact = sampled.draws["z"], model.posterior(x)
    assert z.shape == (16_000, 3, 3)

    def worst(expected):
        islands = (z - expected).unflatten(0, (100, -1)).mean(1)  # or nearly so
        return (islands.mean(0) / islands.std(0) * 10).abs().max().item()

    assert worst(exact.loc) < 5
    assert worst(model.posterior(x.roll(1, 0)).loc) > 5
    centred = (z - exact.loc).movedim(0, 1)
    covariance = centred.mT @ centred / len(z[:, 0])
    assert (covariance - exact.covariance_matrix).abs().max() < 0.03


def test_islands_count_for_their_evidence_in_the_draws(monkeypatch):
    """Two modes of 0.7 and 0.3, one of which many a small island lacks; the twin counts alike."""
    options = {"num_islands": 400, "num_chains": 16, "num_steps": 2}

    def share():
        draws = smc(modes, (), **options).draws["z"]
        assert draws.shape == (400 * 16 * 2, 1, 2)
        return (draws[..., 0] < 0).double().mean().item()

    assert share() == pytest.approx(0.7, abs=0.1)
    resampled = particles.resampled
    monkeypatch.setattr(
        sequential.particles, "resampled", lambda cloud, w, n: resampled(cloud, 0 * w, n)
    )
    assert share() < 0.5


def test_thermodynamic_integration_of_the_same_run():
    """Within its errors; far from them without the correction of the trapezoids, the twin."""
    model = make_oracle()
    x = model(None, size=20)
    found = smc(model, x, ess_share=0.7, num_islands=64, chunk_size=10_000).thermodynamic
    error = found.log_px - model.log_evidence(x)
    assert ((error.abs() - found.trapezoid_error) / found.se).max() < 4
    assert error.mean().abs() < 0.01
    assert found.trapezoid_error.mean() > 0.02


def test_a_seed_decides_all_and_nothing_outside_is_touched():
    model = make_oracle()
    x = model(None, size=3)
    state = torch.get_rng_state()
    first, second, other = (smc(model, x, seed=seed, num_islands=4).log_px for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_the_record_says_what_it_is_and_what_it_cost():
    """One evaluation of every first particle, ancestor and leapfrog step, and beside every last."""
    model = make_oracle()
    x = model(None, size=3)
    options = {"num_islands": 8, "num_chains": 2, "num_steps": 4, "num_leapfrog_steps": 3}
    sampled = smc(model, x, metric="unit", **options)
    evidence, temperatures = sampled.evidence, len(sampled.betas[0]) - 1
    assert str(evidence).startswith("smc (S = 64): ")
    assert (evidence.estimator, evidence.num_particles, evidence.num_data) == ("smc", 64, 3)
    pilot = 16 * (16 + temperatures * (1 + 15 * 3))
    assert evidence.num_evaluations == 3 * (pilot + 16 * (4 + temperatures * (1 + 3 * 3)) + 64)
    assert torch.allclose(evidence.ess, 1 / (evidence.log_px_variance + 1 / 64))
    assert (sampled.acceptance > 0.5).all()


# Its parts.


def test_the_next_temperature_leaves_the_effective_share_that_was_asked_for():
    generator = torch.Generator().manual_seed(0)
    changes = 1e6 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    changes[:1000] = -math.inf  # a likelihood of zero: lost at any temperature
    beta = smc_pilot.next_beta(changes, 0.0, 0.5)
    ess = 1 / (beta * changes).softmax(0).square().sum(0)
    assert ess.min().item() == pytest.approx(0.5 * 3000, rel=1e-3)
    assert smc_pilot.next_beta(changes * 1e-7, 0.3, 0.5) == 1.0
    assert 0.3 < smc_pilot.next_beta(changes * 1e20, 0.3, 0.5) < 0.3 + 1e-15


def test_systematic_resampling_takes_every_particle_as_often_as_expected():
    """Rounded up or down; and on average exactly so."""
    log_w = torch.randn(1, 50, 2, dtype=torch.float64).expand(2000, -1, -1)
    places = particles.systematic(log_w, 20)
    ones = torch.ones(places.shape, dtype=torch.float64)
    counts = torch.zeros(log_w.shape, dtype=torch.float64).scatter_add(1, places, ones)
    expected = 20 * log_w[0].softmax(0)
    assert (counts.sum(1) == 20).all()
    assert (counts - expected).abs().max() < 1
    assert (counts.mean(0) - expected).abs().max() < 5 * 0.5 / math.sqrt(2000)


def test_chains_that_drift_are_told_from_those_that_do_not():
    """Of 300 data 5% or less by chance at 0.05; all that drift; none where nothing ever moves."""
    torch.manual_seed(0)
    shape, num_steps = (2, 32, 8 * 16, 300), 16
    betas = torch.tensor([0.0, 1.0], dtype=torch.float64)
    still = torch.zeros(num_steps, 32 * 8, 300, 1, dtype=torch.float64)
    changes = 0.3 * torch.randn(shape, dtype=torch.float64)
    assert (drift(betas, changes, still) < 0.05).double().mean() < 0.1
    moving = changes + torch.linspace(0, 0.3, num_steps).repeat(8).unsqueeze(-1)
    assert (drift(betas, moving, still) < 1e-3).all()
    assert (drift(betas, 0 * changes, still) == 1).all()
    moving_latents = still + torch.randn_like(still)
    moving_latents[num_steps // 2 :] += 0.3
    assert (drift(betas, 0 * changes, moving_latents) < 1e-3).all()


def test_a_mode_that_no_particle_is_left_of_is_said():
    """At the third datum of three; the twin's particle is still there at the end."""
    changes = torch.randn(4, 32, 20, 3, dtype=torch.float64).clamp(max=2.0)
    changes[3] += 0.5
    changes[1, 5, 7, 2] = 6.0
    lost = lost_peak(changes)
    assert (lost[:2] < 0.1).all()
    assert lost[2] > 3
    log_px, likely = torch.zeros(32, 3, dtype=torch.float64), torch.ones(3)
    assert "a mode was lost" in smc_caveat(log_px, likely, lost)
    changes[3, 0, 0, 2] = 5.9
    assert smc_caveat(log_px, likely, lost_peak(changes)) is None


def test_no_weight_at_all_is_said():
    def impossible():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 1.0))
        pyro.factor("f", torch.full_like(z, -math.inf))

    evidence = smc_evidence(impossible, (), num_islands=4, num_chains=2, num_steps=4)
    assert evidence.mean == -math.inf
    assert "is not finite, as all weights are zero" in evidence.not_reliable


def test_a_log_joint_that_is_no_number_is_refused():
    def broken():
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 1.0))
        pyro.factor("f", z.sqrt())

    with pytest.raises(ValueError, match=r"NaN or \+inf at draws from where the path begins"):
        smc_evidence(broken, ())


def test_a_few_draws_beyond_the_precision_are_said_and_count_as_zero():
    """Beyond 2.58 SD, half a percent on either side, the twin beyond 4 SD: nothing to speak of."""

    def model(limit):
        z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 1.0))
        pyro.factor("f", torch.where(z > limit, math.nan, 0.0 * z))

    few = smc_evidence(lambda: model(2.58), (), num_chains=8)
    assert few.mean == pytest.approx(math.log1p(-0.005), abs=0.005)
    assert "of the draws are on the edge of a support" in few.not_reliable
    assert smc_evidence(lambda: model(4.0), (), num_chains=8).not_reliable is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_islands": 1}, "expected num_islands of at least 2, got 1"),
        ({"num_chains": 0}, "expected num_chains of at least 1, got 0"),
        ({"num_steps": 1}, "expected num_steps of at least 2, got 1"),
        ({"ess_share": 1.0}, "expected ess_share between 0 and 1, got 1.0"),
        ({"target_acceptance": 0.0}, "expected target_acceptance between 0 and 1, got 0.0"),
        ({"metric": "round"}, "expected metric in .*, got 'round'"),
        ({"max_temperatures": 1, "ess_share": 0.9}, r"1 temperatures reach no further than β = "),
    ],
)
def test_bad_options_are_named(options, message):
    model = make_oracle()
    with pytest.raises(ValueError, match=message):
        smc(model, model(None, size=2), **options)
