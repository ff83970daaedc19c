"""Annealing by turns in the model's coordinates and in whitened ones: the same weights, truer."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.inference import anneal, annealed_evidence, bidirectional_evidence
from evidence.inference.annealing import pilot, run
from evidence.inference.paths.interweaving import seen_from
from tests.test_annealing import RESUMED, equal, through_a_file, worst_of, z_scores
from tests.test_interweaving import (
    NECK,
    Y,
    hierarchy,
    hierarchy_evidence,
    planted_jacobian,
    unrelated,
)

EIGHT = torch.float64
ROUGH = {"num_temperatures": 9, "num_pilot_temperatures": 10, "num_leapfrog_steps": 3, "seed": 2}


def alone(monkeypatch):
    """Chains stay in the coordinates in which the model is written."""
    monkeypatch.setattr(run, "coordinates_of", lambda path: [path])


def worst_forward(**options):
    found = anneal(hierarchy(), Y, **ROUGH | {"num_chains": 20_000} | options)
    return worst_of(found.log_w, hierarchy_evidence(Y))


@pytest.mark.parametrize("metric", ["dense", "diagonal", "unit"])
def test_forward_weights_average_to_the_evidence(metric):
    assert worst_forward(metric=metric) < 5


def test_a_planted_jacobian_biases_the_forward_weights(monkeypatch):
    """Densities in whitened coordinates lack it: their transitions leave another one invariant."""
    planted_jacobian(monkeypatch)
    assert worst_forward() > 5


NOISE = 0.7


def local(x):
    """A funnel for every datum."""
    with pyro.plate("data", len(x)):
        scale = pyro.sample("scale", dist.HalfNormal(x.new_ones(())))
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def local_evidence(x):
    """By the trapezoidal rule over the logarithm of the scale `[B]`."""
    logs = torch.linspace(-25, 4, 20_001, dtype=EIGHT).unsqueeze(-1)
    prior = dist.HalfNormal(torch.ones((), dtype=EIGHT)).log_prob(logs.exp()) + logs
    given = dist.Normal(0.0, (logs.exp().square() + NOISE**2).sqrt()).log_prob(x)
    return (prior + given).logsumexp(0) + math.log(29 / 20_000)


def bracket_scores():
    """|z| of E[w] / p(x) = 1 forward, and of p(x) E[1 / w] = 1 in reverse, over simulated data."""
    options = ROUGH | {"num_temperatures": 12, "num_chains": 1}
    found = bidirectional_evidence(local, like=torch.zeros(4000, dtype=EIGHT), **options)
    exact = local_evidence(found.x)
    forward, reverse = (found.log_px_lower - exact).exp(), (exact - found.log_px_upper).exp()
    return [z_scores(ratios.unsqueeze(-1)).abs().item() for ratios in (forward, reverse)]


def test_reverse_weights_average_to_the_inverse_evidence():
    """The same transitions, each its own reversal, from exact draws back to the prior."""
    assert max(bracket_scores()) < 5


def test_planted_places_bias_the_weights_of_both_directions(monkeypatch):
    """Chains do not come back from whitened coordinates."""

    def at(path, state, move, *, kept_in):
        if path is kept_in:
            return move(state)
        moved, info = move(path.state(seen_from(kept_in, state.z, path)))
        return kept_in.state(moved.z), info

    monkeypatch.setattr(pilot, "moved_in", at)
    assert not any(score < 5 for score in bracket_scores())  # of infinite weights it is none


def test_models_whose_priors_do_not_move_run_the_same_bits(monkeypatch):
    found = anneal(unrelated, Y, **RESUMED)
    alone(monkeypatch)
    before = anneal(unrelated, Y, **RESUMED)
    assert torch.equal(found.log_w, before.log_w)
    assert equal(found.latents, before.latents)
    assert found.num_evaluations == before.num_evaluations
    # The twin: a prior that moves.
    turns = {"num_chains": 4, "num_temperatures": 9, "num_pilot_temperatures": 4, "seed": 3}
    before = anneal(hierarchy(), Y, **turns)
    monkeypatch.undo()
    assert not torch.equal(anneal(hierarchy(), Y, **turns).log_w, before.log_w)


@pytest.mark.parametrize("model", [hierarchy(), local])
def test_a_resumed_run_is_the_run_bit_for_bit(model):
    """From either turn, pilot run included, of one block of data or of several."""
    x, snapshots = Y, []
    options = RESUMED | {"chunk_size": 8}
    whole = anneal(model, x, on_snapshot=snapshots.append, snapshot_every=5, **options)
    places = [snapshot.meta["position"] for snapshot in snapshots]
    assert {place["step"] % 2 for place in places} == {0, 1}
    for snapshot in snapshots[::4] + snapshots[-2:]:
        resumed = anneal(model, x, resume_from=through_a_file(snapshot), **options)
        assert torch.equal(resumed.log_w, whole.log_w)
        assert torch.equal(resumed.acceptance, whole.acceptance)
        assert equal(resumed.latents, whole.latents)
        assert resumed.num_evaluations == whole.num_evaluations


def test_a_snapshot_of_other_coordinates_is_refused(monkeypatch):
    snapshots = []
    alone(monkeypatch)
    anneal(hierarchy(), Y, on_snapshot=snapshots.append, snapshot_every=5, **RESUMED)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="snapshot"):
        anneal(hierarchy(), Y, resume_from=through_a_file(snapshots[2]), **RESUMED)


@pytest.mark.slow
def test_the_neck_of_a_hierarchy_is_entered(monkeypatch):
    """Without turns the error bar is several times as large."""
    model, exact = hierarchy(0.1, 2.0), hierarchy_evidence(NECK, 0.1, 2.0).item()
    found = [annealed_evidence(model, NECK, num_temperatures=200, seed=s) for s in range(6)]
    z = torch.tensor([(one.mean - exact) / one.mc_se for one in found])
    assert z.abs().max() < 4
    assert z.square().mean().sqrt() < 1.9  # χ² of 6: one in a thousand is above
    alone(monkeypatch)
    before = [annealed_evidence(model, NECK, num_temperatures=200, seed=s) for s in range(3)]
    assert max(one.mc_se for one in found) < 0.7 * min(one.mc_se for one in before)
