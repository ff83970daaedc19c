"""Problems with a known evidence: the values that others found, and ours by another way."""

import math

import numpy as np
import pytest
import torch
from pyro import poutine
from scipy import integrate

from evidence.experiments.own.program import default_dtype
from evidence.models.problems import PROBLEMS

# Feroz, Hobson and Bridges (2009); Friel and Pettitt (2008); the rest from this formula or that.
PUBLISHED = {
    "shells-2": -1.7456,
    "shells-5": -5.6736,
    "shells-10": -14.5905,
    "shells-20": -36.0865,
    "shells-30": -60.1278,
    "eggbox": 235.8559,
    "rosenbrock": -5.8041,
    "pines": -310.12829,
    "pines-adjusted": -301.70460,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_evidences_are_those_that_were_published(name):
    assert PROBLEMS[name].log_evidence == pytest.approx(PUBLISHED[name], abs=6e-5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_runs_and_says_where_it_comes_from(name):
    problem = PROBLEMS[name]
    assert problem.name == name
    assert problem.how
    assert problem.source
    with default_dtype(torch.float64 if problem.double else torch.float32):
        trace = poutine.trace(problem.model).get_trace(*problem.arguments)
    assert math.isfinite(trace.log_prob_sum()) or name == "baseball"
    assert math.isfinite(problem.log_evidence)


@pytest.mark.parametrize(
    "name",
    ["shells-2", "eggbox", "rosenbrock", "student-mixture", "separated-modes", "log-gamma-2"],
)
def test_a_density_in_the_plane_by_quadrature(name):
    """The program's own density, summed over a fine grid of its square."""
    problem = PROBLEMS[name]
    support = {"eggbox": (0, 10 * math.pi), "rosenbrock": (-5, 5), "shells-2": (-6, 6)}
    low, high = support.get(name, (-30, 30))
    edges = np.linspace(low, high, 2001)
    points = torch.tensor((edges[1:] + edges[:-1]) / 2)
    z = torch.stack(torch.meshgrid(points, points, indexing="ij"), -1)
    scored = poutine.trace(poutine.condition(problem.model, {"z": z})).get_trace()
    scored.compute_log_prob()
    log_p = sum(site["log_prob"].double() for site in scored.nodes.values() if "log_prob" in site)
    found = log_p.flatten().logsumexp(0).item() + 2 * math.log(edges[1] - edges[0])
    assert found == pytest.approx(problem.log_evidence, abs=2e-3)


def test_the_funnel_by_another_rule():
    def integrand(v):
        log_p = -0.5 * (v / 3) ** 2 - math.log(3 * math.sqrt(2 * math.pi))
        return math.exp(log_p - 4.5 * math.log(2 * math.pi * (math.exp(v) + 0.25)))

    mass, _ = integrate.quad(integrand, -40, 40, epsabs=0, limit=200)
    assert PROBLEMS["funnel"].log_evidence == pytest.approx(math.log(mass), abs=1e-6)
