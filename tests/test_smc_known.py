"""Sequential Monte Carlo from the prior on ordinary models, against what their evidence is."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.inference import smc, smc_evidence
from evidence.inference.programs import estimators
from tests.known_evidences import KNOWN
from tests.test_known_evidences import default_dtype
from tests.test_smc import covered, grouped

QUICK = ["pines"]


def shells(dim):
    """Two shells of radius 2 and width 0.1 in so many dimensions."""

    def model():
        z = pyro.sample("z", dist.Uniform(-6.0, 6.0).expand([dim]).to_event(1))
        centre = torch.zeros(dim).index_fill(0, torch.tensor(0), 3.5)
        rings = [
            dist.Normal(2.0, 0.1).log_prob((z - side * centre).norm(dim=-1)) for side in (-1, 1)
        ]
        pyro.factor("shells", torch.logaddexp(*rings))

    return model


def eggbox():
    z = pyro.sample("z", dist.Uniform(0.0, 10 * math.pi).expand([2]).to_event(1))
    pyro.factor("eggs", (2 + (z / 2).cos().prod(-1)) ** 5)


def rosenbrock():
    z = pyro.sample("z", dist.Uniform(-5.0, 5.0).expand([2]).to_event(1))
    pyro.factor("valley", -((1 - z[..., 0]) ** 2) - 100 * (z[..., 1] - z[..., 0] ** 2) ** 2)


# Log-evidences by converged quadrature; of shells in d dimensions by that over the radius:
# F. Feroz, M. P. Hobson, M. Bridges, "MultiNest", 2009, https://arxiv.org/abs/0809.3437.
SHAPES = {
    "shells in 2": (shells(2), -1.7456),
    "shells in 5": (shells(5), -5.6736),
    "shells in 10": (shells(10), -14.5905),
    "eggbox": (eggbox, 235.8559),
    "rosenbrock": (rosenbrock, -5.8041),
}


def slow_but_for(quick, names):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", slow_but_for(QUICK, KNOWN))
def test_the_evidence_of_ordinary_models(name):
    """|z| < 4 with SE ≤ 0.1; half a nat of error, the twin, is found."""
    known, dtype = KNOWN[name], torch.float64 if name == "baseball" else torch.float32
    with default_dtype(dtype):
        data = tuple(x.to(dtype) if name == "baseball" else x for x in known.data)
        evidence = smc_evidence(known.model, data, num_chains=64 if name == "baseball" else None)
    exact = float(known.exact().mean())
    assert evidence.not_reliable is None
    assert evidence.mc_se <= 0.1
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert abs(evidence.mean - exact + 0.5) > 4 * evidence.mc_se


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_the_integral_of_hard_shapes(name):
    """As above."""
    model, exact = SHAPES[name]
    with default_dtype(torch.float64):
        evidence = smc_evidence(model, ())
    assert evidence.not_reliable is None
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se < 0.4
    assert abs(evidence.mean - exact + 0.5) > 4 * evidence.mc_se


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_two_standard_errors_cover_hard_shapes(name):
    """In 90% to 99% of 100 groups of islands, and few of them raise an alarm."""
    model, exact = SHAPES[name]
    with default_dtype(torch.float64):
        sampled = smc(model, (), num_islands=3200, num_chains=8)
    groups = grouped(sampled.log_px)
    assert 0.90 <= covered(groups, exact) <= 0.99
    assert abs((groups.log_px - exact).mean()) < 5 * groups.log_px.std() / 10
    vary = estimators.ess(sampled.log_px.reshape(32, -1)) < 0.7 * 32
    assert vary.double().mean() <= 0.05
