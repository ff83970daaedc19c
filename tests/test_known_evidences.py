"""Ordinary Bayesian models by annealing from the prior, against what their evidence is."""

import math
from contextlib import contextmanager

import pytest
import torch

from evidence.guides import FullRank
from evidence.inference import annealed_evidence, log_weights
from tests.known_evidences import KNOWN

# Chains and temperatures with which the standard error is at most 0.1.
SIZES = {
    "pines": (100, 300),
    "shells": (200, 200),
    "eight schools": (100, 200),
    "regression": (200, 400),
    "principal components": (16, 200),
    "noisy regression": (300, 1000),
    "gaussian process": (100, 600),
    "baseball": (300, 2000),
    "pumps": (500, 1500),
}
# A tenth of what κ near 1 leaves to averages of 0 and 1 is beyond float32, which is said.
DOUBLE = ["baseball"]
QUICK = ["pines", "shells", "eight schools", "regression", "principal components"]


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SIZES]
)
def test_annealing_from_the_prior(name):
    """|z| < 4 with SE ≤ 0.1; half a nat of error, the twin, is found."""
    known, (num_chains, num_temperatures) = KNOWN[name], SIZES[name]
    options = {"num_chains": num_chains, "num_temperatures": num_temperatures}
    dtype = torch.float64 if name in DOUBLE else torch.float32
    with default_dtype(dtype):
        data = [x.to(dtype) if name in DOUBLE else x for x in known.data]
        evidence = annealed_evidence(known.model, data, **options)
    exact = float(known.exact().mean())
    assert evidence.not_reliable is None
    assert evidence.mc_se <= 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean - exact + 0.5) > 4 * evidence.mc_se


@pytest.mark.parametrize("metric", ["unit", "diagonal"])
def test_a_metric_that_knows_less_is_no_less_right_but_less_certain(metric):
    """The pines' scales are orders of magnitude apart: without a metric chains stand still."""
    known, options = KNOWN["pines"], {"num_chains": 100, "num_temperatures": 100}
    dense = annealed_evidence(known.model, known.data, **options)
    other = annealed_evidence(known.model, known.data, metric=metric, **options)
    exact = float(known.exact())
    assert abs(dense.mean - exact) < 4 * dense.mc_se
    if metric == "diagonal":
        assert abs(other.mean - exact) < 4 * other.mc_se
    else:
        assert other.ess.item() < 0.5 * dense.ess.item()
    assert not math.isnan(other.mean)


@pytest.mark.filterwarnings("ignore:the pair does not broadcast")
def test_full_rank_is_the_posterior_of_a_gaussian_process_before_it_is_trained():
    """Every weight is the evidence: mode and curvature say all of it, without correlations less."""
    known = KNOWN["gaussian process"]
    exact = torch.as_tensor(known.exact())
    guide = FullRank.for_model(known.model, known.data)
    log_w = log_weights(known.model, guide, known.data, 5)
    assert torch.allclose(log_w, exact.expand_as(log_w), atol=1e-3)
    guide.unit.scale = guide.unit.scale.diagonal().diag_embed()  # the twin
    assert (log_weights(known.model, guide, known.data, 5) - exact).abs().max() > 1
