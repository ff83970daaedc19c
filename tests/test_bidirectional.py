"""Bidirectional Monte Carlo on data simulated from models whose evidence is known exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.inference.annealing.run import AnnealingRun
from evidence.inference.estimation.bidirectional import Bracket, bidirectional_evidence
from evidence.inference.paths import hmc
from evidence.inference.paths.guide_path import GuidePath
from evidence.models import VAE, Autoencoder
from tests import test_shared_latents as shared
from tests.conftest import make_oracle
from tests.test_annealing import (
    LATENT_DIMS,
    POSITIVE_X,
    RESUMED,
    ROUGH,
    TEMPERATURES,
    auxiliary_guide,
    gamma_exponential,
    gamma_exponential_evidence,
    mean_field_of,
    model_of_z,
    planted_adaptation,
    planted_end,
    planted_jacobian,
    planted_order,
    planted_shift,
    positive_evidence,
    positive_model,
    z_scores,
)


def bracket_of(data_dim=10, *, size=2000, from_guide=False, **options):
    """One chain per direction and datum: the bounds are log-weights, independent of each other."""
    model = make_oracle(data_dim, LATENT_DIMS[data_dim])
    guide = mean_field_of(model) if from_guide else None
    options = {"num_temperatures": TEMPERATURES[data_dim], "num_chains": 1} | options
    bracket = bidirectional_evidence(model, size=size, guide=guide, **ROUGH | options)
    return bracket, model.log_evidence(bracket.x)


def reverse_z(bracket, exact):
    """|z| of E[1/w] p(x) = 1, over simulated data."""
    return z_scores((exact - bracket.log_px_upper).exp().unsqueeze(-1)).abs().item()


def sides(bracket, exact):
    """z of E[log p(x) − lower] and of E[upper − log p(x)]: neither should be far below zero."""
    differences = exact - bracket.log_px_lower, bracket.log_px_upper - exact
    return [(d.mean() / d.std() * math.sqrt(len(d))).item() for d in differences]


@pytest.mark.parametrize("from_guide", [False, True], ids=["prior", "guide"])
@pytest.mark.parametrize("data_dim", [2, 10, 50])
def test_reverse_weights_average_to_the_inverse_evidence(data_dim, from_guide):
    """And the bounds are on their sides, both at a distance that shows: 5 standard errors."""
    sizes = {2: 5000, 10: 2000, 50: 1000}
    bracket, exact = bracket_of(data_dim, from_guide=from_guide, size=sizes[data_dim])
    assert reverse_z(bracket, exact) < 5
    assert min(sides(bracket, exact)) > 5


def gamma_bracket():
    options = {"num_temperatures": 20, "num_leapfrog_steps": 2, "num_chains": 1}
    like = torch.ones(20_000, dtype=torch.float64)
    bracket = bidirectional_evidence(gamma_exponential, like=like, **ROUGH | options)
    return bracket, gamma_exponential_evidence(bracket.x)


def test_a_plain_model_with_a_constrained_latent_is_simulated_and_bracketed():
    bracket, exact = gamma_bracket()
    assert reverse_z(bracket, exact) < 5
    assert min(sides(bracket, exact)) > 5


@pytest.mark.parametrize(
    "plant", [planted_adaptation, planted_end, planted_shift, planted_order, planted_jacobian]
)
def test_a_planted_error_biases_the_reverse_weights(plant, monkeypatch):
    plant(monkeypatch)
    assert reverse_z(*gamma_bracket()) > 5


def test_chains_from_a_guide_of_auxiliary_draws_start_where_the_latents_are(monkeypatch):
    """Reverse chains begin at the auxiliary draws of the latents; the twin's beside them."""

    def reverse():
        options = {"num_temperatures": 20, "num_leapfrog_steps": 2, "num_chains": 1}
        options |= {"like": POSITIVE_X.repeat(1000, 1), "guide": auxiliary_guide}
        bracket = bidirectional_evidence(positive_model, **ROUGH | options)
        return reverse_z(bracket, positive_evidence(bracket.x))

    assert reverse() < 5
    locate = GuidePath.locate
    monkeypatch.setattr(GuidePath, "locate", lambda path, values: locate(path, values) + 1)
    assert reverse() > 5


def planted_start(monkeypatch):
    """Reverse chains start at draws from the prior, not at the posterior's."""
    monkeypatch.setattr(
        AnnealingRun,
        "_exact_draws",
        lambda self: self._path(self.blocks[self.position.block]).sample(self.num_chains),
    )


def test_reverse_chains_that_start_elsewhere_give_no_upper_bound(monkeypatch):
    planted_start(monkeypatch)
    lower, upper = sides(*gamma_bracket())
    assert lower > 5
    assert upper < -5


@pytest.mark.parametrize("form", ["tuple", "dict"])
def test_a_data_set_that_shares_latents_is_simulated_and_bracketed(form):
    """X is kept, y drawn anew; exact for the new y, and not, the twin, for the old one."""
    like = (shared.X, shared.Y) if form == "tuple" else {"y": shared.Y, "X": shared.X}
    options = {"num_chains": 100, "num_temperatures": 100}
    model = shared.regression(shared.MEANS["X @ w"])
    bracket = bidirectional_evidence(model, like=like, **options)
    X, y = bracket.x.args if form == "tuple" else (bracket.x.kwargs["X"], bracket.x.kwargs["y"])
    assert torch.equal(X, shared.X)
    assert not torch.equal(y, shared.Y)
    exact = shared.regression_evidence(X, y)
    assert abs(bracket.lower - exact) < 0.3
    assert abs(bracket.upper - exact) < 0.3
    assert abs(bracket.lower - shared.regression_evidence(X, shared.Y)) > 0.3
    assert "(a simulated data set of 12, 100 chains)" in str(bracket)


def spread(bracket):
    """Standard deviation of upper − lower; its relative error is 1/√(2B)."""
    return bracket.gap_se * math.sqrt(len(bracket.x))


def brackets_of(sizes):
    """D = 10, one chain, one leapfrog step: by the number of temperatures."""
    options = {"num_leapfrog_steps": 1, "num_pilot_temperatures": 100}
    return [bracket_of(size=n, num_temperatures=t, **options)[0] for t, n in sizes.items()]


def test_the_gap_closes_with_the_number_of_temperatures():
    """With normal log-weights the gap is half the variance of upper − lower: both fall."""
    short, medium = brackets_of({100: 2000, 1000: 2000})
    assert short.gap > medium.gap + 3 * math.hypot(short.gap_se, medium.gap_se)
    assert medium.gap + 5 * medium.gap_se < 0.05
    assert medium.likely_gap == pytest.approx(max(medium.gap, 0) + 2 * medium.gap_se)
    assert spread(short) > 2 * spread(medium)


@pytest.mark.slow
def test_the_gap_vanishes_with_many_temperatures():
    medium, long = brackets_of({1000: 2000, 10_000: 100})
    assert abs(long.gap) < 0.01
    assert spread(medium) > 2 * spread(long)


def test_a_planted_standstill_keeps_the_gap_open(monkeypatch):
    """Chains that do not move get the weights of the prior's draws, whatever the schedule."""
    step = hmc.step
    monkeypatch.setattr(hmc, "step", lambda s, p, size, **options: step(s, p, 0 * size, **options))
    short, long = brackets_of({10: 500, 100: 500})
    assert long.gap > 0.05
    assert not spread(short) > 2 * spread(long)


def test_a_resumed_bracket_is_the_bracket_bit_for_bit():
    model, snapshots = make_oracle(), []
    options = {"size": 5, "snapshot_every": 9, **RESUMED}
    whole = bidirectional_evidence(model, on_snapshot=snapshots.append, **options)
    assert {s.meta["position"]["stage"] for s in snapshots} == {0, 1, 2}
    for snapshot in snapshots[::4]:
        resumed = bidirectional_evidence(model, resume_from=snapshot, **options)
        assert torch.equal(resumed.log_px_upper, whole.log_px_upper)
        assert torch.equal(resumed.log_px_lower, whole.log_px_lower)


def test_the_seed_decides_and_nothing_outside_is_touched():
    model = make_oracle()
    before = torch.get_rng_state()
    bracket = bidirectional_evidence(model, size=3, **RESUMED)
    assert torch.equal(torch.get_rng_state(), before)
    pyro.set_rng_seed(99)
    again = bidirectional_evidence(model, size=3, **RESUMED)
    assert torch.equal(again.x, bracket.x)
    assert torch.equal(again.log_px_upper, bracket.log_px_upper)
    other = bidirectional_evidence(model, size=3, **RESUMED | {"seed": 4})
    assert not torch.equal(other.x, bracket.x)


def test_the_record_says_what_it_is():
    bracket = Bracket(
        torch.zeros(3, 2), torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-0.5, -1.0, -3.0]), 16
    )
    assert (bracket.lower, bracket.upper, bracket.gap) == (-2.0, -1.5, 0.5)
    assert bracket.gap_se == pytest.approx(0.5 / math.sqrt(3))
    assert str(bracket) == (
        "-2.000 to -1.500 nats per datum, gap 0.500 ± 0.289 (3 simulated data, 16 chains)"
    )
    single = Bracket(torch.zeros(1, 2), torch.zeros(1), torch.ones(1), 16)
    assert math.isnan(single.gap_se)


def pairs(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=x)


BAD = {
    "no size": (lambda: bidirectional_evidence(VAE(10, 3)), "either a size, or data"),
    "size of none": (lambda: bidirectional_evidence(VAE(10, 3), size=0), "size of at least 1"),
    "plain model": (lambda: bidirectional_evidence(model_of_z, size=3), "pass a batch to simulate"),
    "flat simulation": (lambda: bidirectional_evidence(Autoencoder(10, 3), size=3), "no prior"),
    "two observed sites": (
        lambda: bidirectional_evidence(pairs, like=torch.zeros(3)),
        "one site that observes x as it is, got 1 of 2",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
