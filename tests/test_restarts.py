"""Several starts: a guide of one mode ends at the largest one that a start was near."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal, init_to_sample

from evidence.guides import FullRank, MeanField
from evidence.inference import best_start, fit, log_weights

LARGE, SMALL, SHARE, WIDTH = 5.0, -1.5, 0.9, 0.5


def two_modes():
    """A small mode near the prior's median, and nine times as much likelihood farther off."""
    z = pyro.sample("z", dist.Normal(0.0, 5.0))
    parts = torch.stack([dist.Normal(m, WIDTH).log_prob(z) for m in (LARGE, SMALL)])
    log_share = torch.tensor([SHARE, 1 - SHARE]).log().reshape(2, *[1] * z.ndim)
    pyro.factor("modes", (parts + log_share).logsumexp(0))


def log_mass(mode):
    """Of a mode, which the prior leaves a normal: log of share × N(mode; 0, 25 + width²)."""
    share = SHARE if mode == LARGE else 1 - SHARE
    return math.log(share) + dist.Normal(0.0, math.hypot(5, WIDTH)).log_prob(torch.tensor(mode))


def of_suite(kind):
    return lambda seed: kind.for_model(two_modes, (), seed=seed, start=seed)


def of_pyro(seed):
    return AutoNormal(two_modes, init_loc_fn=init_to_sample, init_scale=0.3)


def elbo(guide):
    return log_weights(two_modes, guide, (), 4000).mean().item()


MAKERS = {"MeanField": of_suite(MeanField), "FullRank": of_suite(FullRank), "AutoNormal": of_pyro}


@pytest.mark.parametrize("name", MAKERS)
def test_the_large_mode_wins(name):
    guide = best_start(two_modes, MAKERS[name], (), num_steps=60)
    fit(two_modes, guide, (), num_steps=150, lr=0.02, progress=False)
    assert elbo(guide) == pytest.approx(log_mass(LARGE).item(), abs=0.1)


@pytest.mark.parametrize("kind", [MeanField, FullRank])
def test_one_start_stays_at_the_small_mode(kind):
    """The twin: from the prior's median the nearest mode is the small one."""
    guide = kind.for_model(two_modes, (), seed=0)
    fit(two_modes, guide, (), num_steps=150, lr=0.02, progress=False)
    assert elbo(guide) == pytest.approx(log_mass(SMALL).item(), abs=0.1)
    assert elbo(guide) < log_mass(LARGE).item() - 1


def test_the_same_seed_keeps_the_same_guide_and_the_model_stays():
    weight = torch.nn.Linear(1, 1, bias=False)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = weight

        def forward(self, y):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                mean = self.layer.weight.squeeze() * z
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    model, y, before = Model(), torch.ones(5), weight.weight.clone()
    options = {"num_starts": 2, "num_steps": 5}
    kept = [best_start(model, lambda s: MeanField.for_model(model, (y,), seed=s, start=s), (y,),
                       **options) for _ in range(2)]  # fmt: skip
    states = [guide.state_dict() for guide in kept]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert torch.equal(weight.weight, before)


def test_what_cannot_be_restarted_is_refused():
    with pytest.raises(ValueError, match="num_starts of at least 1, got 0"):
        best_start(two_modes, of_pyro, (), num_starts=0)
    with pytest.raises(ValueError, match="a module with parameters of its own, got function"):
        best_start(two_modes, lambda seed: lambda: None, ())
