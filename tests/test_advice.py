"""What a message advises leads to the evidence of the same model: followed to the letter."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from evidence.inference import check, importance_weighted_evidence

pytestmark = pytest.mark.filterwarnings("ignore:the pair does not broadcast")
Y = torch.tensor([0.3, -1.1, 0.8, 1.9, 0.2, 1.4], dtype=torch.float64)


def exact():
    """y ~ N(0, I + 11ᵀ)."""
    covariance = torch.eye(len(Y)).double() + 1
    return dist.MultivariateNormal(torch.zeros_like(Y), covariance).log_prob(Y).item()


def model(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def guide(y):
    """A little wider than the posterior."""
    pyro.sample("mean", dist.Normal(y.sum() / (len(y) + 1), 0.5))


def of_some_rows(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def without_plate(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def with_event(y):
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    pyro.sample("y", dist.Normal(mean, 1.0).expand(y.shape).to_event(), obs=y)


def masked(y):
    with poutine.mask(mask=torch.tensor(False)):
        mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def narrow(y):
    pyro.sample("mean", dist.Uniform(y.new_tensor(0.0), 2.0))


def point(y):
    pyro.sample("mean", dist.Delta(y.mean()))


def improper(y):
    mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def extra(y):
    guide(y)
    pyro.sample("noise", dist.Normal(y.new_zeros(()), 2.0))


def with_noise(y):
    """Any density given the rest."""
    model(y)
    pyro.sample("noise", dist.Normal(y.new_zeros(()), 1.5))


def swapped(y):
    pyro.sample("men", dist.Normal(y.mean(), 0.5))


ADVICE = {
    r"len\(x\)\) without subsampling": (of_some_rows, guide, model, guide),
    "use no scale": (poutine.scale(model, 0.5), guide, model, guide),
    r"declare them with .to_event\(\)": (without_plate, guide, with_event, guide),
    r"mask its prior and its guide alike .*, or neither": (masked, guide, model, guide),
    "let the guide's distribution have the model's support": (model, narrow, model, guide),
    "choose another guide": (model, point, model, guide),
    "give it a proper one": (improper, guide, model, guide),
    "give the model a site of this name": (model, extra, with_noise, extra),
    "rename it": (model, swapped, model, guide),
    "pass obs=x to its data's site": (poutine.uncondition(model), guide, model, guide),
}


@pytest.mark.parametrize("advice", ADVICE)
def test_advice_that_is_followed_leads_to_the_evidence(advice):
    """|z| < 4 against the exact evidence, of which the twin is half a nat off."""
    program, its_guide, mended, mended_guide = ADVICE[advice]
    said = " | ".join(map(str, check(program, its_guide, Y)))
    assert re.search(advice, said), said
    assert check(mended, mended_guide, Y) == []
    found = importance_weighted_evidence(mended, mended_guide, Y, 4000)
    assert found.not_reliable is None
    assert abs(found.mean - exact()) < 4 * found.mc_se
    assert abs(found.mean - exact() + 0.5) > 4 * found.mc_se
