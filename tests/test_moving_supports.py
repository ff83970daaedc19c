"""Data whose support moves with the latents: p(x, z) is zero for some, and the evidence is not."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.guides import FullRank
from evidence.inference import (
    annealed_evidence,
    check,
    fit,
    importance_weighted_evidence,
    marginal_likelihood,
)

DATA = torch.tensor([0.3, 0.9, 0.5, 0.1, 0.6]).double()
LEAST, MOST = DATA.max() - 1, DATA.min() + 1  # of z


def uniform(x):
    z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Uniform(z - 1, z + 1), obs=x)


def uniform_evidence():
    """2⁻ᴺ times the prior mass of the z that allow for all data."""
    cdf = dist.Normal(0.0, 1.0).cdf
    return (cdf(MOST) - cdf(LEAST)).log().item() - len(DATA) * math.log(2)


def inside(x):
    pyro.sample("z", dist.Uniform(LEAST, MOST))


def around(x):
    """Draws that the data rule out, too."""
    pyro.sample("z", dist.Normal(x.new_tensor(0.4), 0.8))


def shifted(x):
    """A density that by its formula is no zero below its support."""
    z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Pareto(z.exp(), 2.0), obs=x + 2)


def shifted_evidence():
    """By quadrature over z, up to the least of the data."""
    x = DATA + 2
    z = torch.linspace(-9, float(x.min().log()), 40_001).double()
    log_p = dist.Normal(0.0, 1.0).log_prob(z) + len(x) * (math.log(2) + 2 * z) - 3 * x.log().sum()
    log_p[[0, -1]] -= math.log(2)
    return (log_p.logsumexp(0) + (z[1] - z[0]).log()).item()


CASES = {
    "uniform": (uniform, around, uniform_evidence),
    "inside": (uniform, inside, uniform_evidence),
    "shifted": (shifted, around, shifted_evidence),
}


@pytest.mark.parametrize("name", CASES)
def test_evidence_by_importance_weights(name):
    """|z| < 4; a tenth of a nat, the twin, is found."""
    model, guide, exact = CASES[name]
    evidence = importance_weighted_evidence(model, guide, DATA, 60_000)
    se = max(evidence.mc_se, 1e-6)
    assert abs(evidence.mean - exact()) < 4 * se
    assert se < 0.02
    assert abs(evidence.mean + 0.1 - exact()) > 4 * se


@pytest.mark.parametrize("name", ["uniform", "shifted"])
def test_evidence_by_annealing_from_the_prior(name):
    model, _, exact = CASES[name]
    options = {"num_chains": 1000, "num_temperatures": 50}
    evidence = annealed_evidence(model, DATA, **options)
    assert evidence.mc_se < 0.1
    assert abs(evidence.mean - exact()) < 4 * evidence.mc_se
    assert abs(evidence.mean + 0.5 - exact()) > 4 * evidence.mc_se


def test_check_finds_nothing_wrong_with_the_data():
    assert "data" not in {finding.check for finding in check(uniform, around, DATA)}


def standing(x):
    """Data beyond a support that is the same for all latents, though not for all families."""
    z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Uniform(x.new_tensor(0.0), 0.5), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    "call",
    [
        lambda: annealed_evidence(standing, DATA),
        lambda: importance_weighted_evidence(standing, around, DATA, 10),
        lambda: fit(standing, around, DATA, num_epochs=1, progress=False),
    ],
    ids=["annealing", "weights", "fit"],
)
def test_data_beyond_a_support_that_stands_still_are_refused(call):
    with pytest.raises(ValueError, match="data outside the support of site 'x'"):
        call()


def taxis(x):
    """The largest number seen ends the support of the number of taxis."""
    theta = pyro.sample("theta", dist.Pareto(x.new_tensor(2.0), 1.0))
    with pyro.plate("seen", len(x)):
        pyro.sample("x", dist.Uniform(0.0, theta), obs=x)


def test_a_model_without_an_elbo_is_led_to_its_evidence():
    """By ∫ 2 θ⁻² θ⁻ᴺ dθ from the largest number on."""
    x = torch.tensor([1.0, 4.0, 3.5, 7.0, 2.0])
    guide = FullRank.for_model(taxis, x)
    advice = r"no ELBO is finite: marginal_likelihood \(evidence marginal\) needs none"
    with pytest.raises(ValueError, match=advice):
        fit(taxis, guide, x, progress=False)
    (finding,) = [found for found in check(taxis, guide, x) if found.check == "finite"]
    assert re.search(advice, finding.mend)
    found = marginal_likelihood(taxis, x)
    assert found.not_reliable is None
    assert abs(found.log_ml - (math.log(2 / 6) - 6 * math.log(7.0))) < 4 * found.se
