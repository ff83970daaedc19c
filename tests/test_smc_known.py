"""Sequential Monte Carlo from the prior on ordinary models, against what their evidence is."""

import numpy as np
import pytest
import torch

from evidence.experiments.own.program import default_dtype
from evidence.inference import smc, smc_evidence
from evidence.inference.programs import estimators
from evidence.models.problems import PROBLEMS
from tests.test_smc import covered, grouped

QUICK = ["pines"]


MODELS = [
    *("pines", "regression", "noisy-regression", "eight-schools", "pumps"),
    *("principal-components", "gaussian-process", "shells-2"),
]
SHAPES = ["shells-2", "shells-5", "shells-10", "eggbox", "rosenbrock"]


def slow_but_for(quick, names):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", slow_but_for(QUICK, MODELS))
def test_the_evidence_of_ordinary_models(name):
    """|z| < 4 with SE ≤ 0.1; half a nat of error, the twin, is found."""
    known = PROBLEMS[name]
    with default_dtype(torch.float64 if known.double else torch.float32):
        chains = {"gaussian-process": 24, "noisy-regression": 32}.get(name)
        evidence = smc_evidence(known.model, known.arguments, num_chains=chains)
    exact = float(np.mean(known.exact()))
    assert evidence.not_reliable is None
    assert evidence.mc_se <= 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean - exact + 0.5) > 4 * evidence.mc_se


@pytest.mark.slow
def test_averages_near_the_edge_of_what_floats_tell_are_right_or_not_reliable():
    """A tenth of the prior of κ lies where the players' averages are 0 and 1."""
    known = PROBLEMS["baseball"]
    with default_dtype(torch.float64):
        evidence = smc_evidence(known.model, known.arguments)
    error = abs(evidence.mean - known.log_evidence)
    assert evidence.not_reliable is not None or error < 4 * evidence.mc_se


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_integral_of_hard_shapes(name):
    """As above."""
    model, exact = PROBLEMS[name].model, PROBLEMS[name].log_evidence
    with default_dtype(torch.float64):
        evidence = smc_evidence(model, ())
    assert evidence.not_reliable is None
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se < 0.4
    assert abs(evidence.mean - exact + 0.5) > 4 * evidence.mc_se


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shells-5", "eggbox", "rosenbrock"])
def test_two_standard_errors_cover_hard_shapes(name):
    """In 90% to 99% of 100 groups of islands, and few of them raise an alarm."""
    model, exact = PROBLEMS[name].model, PROBLEMS[name].log_evidence
    with default_dtype(torch.float64):
        sampled = smc(model, (), num_islands=3200, num_chains=8)
    groups = grouped(sampled.log_px)
    assert 0.90 <= covered(groups, exact) <= 0.99
    assert abs((groups.log_px - exact).mean()) < 5 * groups.log_px.std() / 10
    vary = estimators.ess(sampled.log_px.reshape(32, -1)) < 0.7 * 32
    assert vary.double().mean() <= 0.05
