"""Latents that a model masks: counted where the rest depends on them, and only there."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal

from evidence.inference import (
    annealed_evidence,
    check,
    fit,
    importance_weighted_evidence,
    marginal_likelihood,
    nuts_reference,
)
from evidence.inference.programs.random_state import isolated_rng

with isolated_rng(3):
    X = 0.3 + torch.randn(6).double()
SEEN = torch.arange(6) % 3 > 0
PRIOR_SD = 0.5


def missing(x, seen):
    """Normal data, some of them missing, as Pyro's documentation of `obs_mask` has them."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), PRIOR_SD))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x, obs_mask=seen)


def padded(x, seen):
    """A latent per datum, masked with its datum where there is none."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), PRIOR_SD))
    with pyro.plate("data", len(x)), poutine.mask(mask=seen):
        z = pyro.sample("z", dist.Normal(mu, 0.6))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def improper(x, seen):
    """The likelihood depends on latents whose prior is masked out: no density at all."""
    mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), PRIOR_SD))
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(mu, 0.6))
        pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def exact():
    seen = X[SEEN]
    covariance = torch.eye(len(seen)).double() + PRIOR_SD**2
    return dist.MultivariateNormal(torch.zeros_like(seen), covariance).log_prob(seen).item()


def fitted(model, x=X):
    guide = AutoMultivariateNormal(model, init_scale=0.3)
    guide(x, SEEN)
    guide.double()
    fit(model, guide, (x, SEEN), num_epochs=500, batch_size=len(x), lr=0.02, progress=False)
    return guide


@pytest.mark.parametrize("model", [missing, padded])
def test_evidence_of_what_was_seen(model):
    guide = fitted(model)
    assert check(model, guide, (X, SEEN)) == []
    for evidence in (
        importance_weighted_evidence(model, guide, (X, SEEN), 4000),
        annealed_evidence(model, (X, SEEN), num_chains=200, num_temperatures=40),
    ):
        assert evidence.not_reliable is None
        assert abs(evidence.mean - exact()) / evidence.mc_se < 4
        planted = exact() + math.log(2) * (~SEEN).sum().item()  # masked entries counted
        assert abs(evidence.mean - planted) / evidence.mc_se > 5


HISTORIES = torch.tensor(
    [
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [1, 0, 0, 0],
        [0, 1, 1, 1],
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [1, 1, 1, 0],
    ]
).double()
SEEN_RATE = 0.6


@config_enumerate
def recaptures(histories):
    """Capture and recapture, as in Pyro's examples: an animal is masked until it is first seen."""
    survival = pyro.sample("survival", dist.Beta(histories.new_tensor(2.0), 2.0))
    with pyro.plate("animals", len(histories)):
        alive = histories.new_ones(len(histories))
        first = torch.zeros(len(histories)).bool()
        for t in pyro.markov(range(histories.shape[1])):
            with poutine.mask(mask=first):
                prior = first.double() * survival * alive + (1 - first.double())
                alive = pyro.sample(f"alive_{t}", dist.Bernoulli(prior))
                pyro.sample(f"seen_{t}", dist.Bernoulli(SEEN_RATE * alive), obs=histories[:, t])
            first = first | histories[:, t].bool()


def recaptures_posterior():
    """Log-evidence and mean of the survival, by quadrature: χ is never to be seen again."""
    num_times, rows = HISTORIES.shape[1], 20_000
    survival = (torch.arange(rows).double() + 0.5) / rows
    never = [torch.ones(rows).double()]
    for _ in range(num_times - 1):
        never.insert(0, 1 - survival + survival * (1 - SEEN_RATE) * never[0])
    log_p = dist.Beta(2.0, 2.0).log_prob(survival)
    for history in HISTORIES:
        times = history.nonzero().squeeze(1).tolist()
        lived, seen = times[-1] - times[0], len(times) - 1
        log_p = log_p + lived * survival.log() + seen * math.log(SEEN_RATE)
        log_p = log_p + (lived - seen) * math.log(1 - SEEN_RATE) + never[times[-1]].log()
    mean = (log_p.softmax(0) * survival).sum().item()
    return (log_p.logsumexp(0) - math.log(rows)).item(), mean


def test_what_is_summed_out_is_not_counted_once_for_every_value():
    """A masked state has a probability, not one for each of its values; planted: one for each."""
    guide = AutoMultivariateNormal(poutine.block(recaptures, expose=["survival"]), init_scale=0.3)
    guide(HISTORIES)
    guide.double()
    assert check(recaptures, guide, HISTORIES) == []
    trained = fit(recaptures, guide, HISTORIES, num_epochs=300, lr=0.02, progress=False)
    exact, mean = recaptures_posterior()
    reached = -sum(record.train_loss for record in trained.epochs[-50:]) / 50 * len(HISTORIES)
    assert exact - 0.3 < reached < exact + 0.05
    options = {"num_chains": 100, "num_temperatures": 40}
    for evidence in (
        importance_weighted_evidence(recaptures, guide, HISTORIES, 2000, defensive=0.2),
        annealed_evidence(recaptures, HISTORIES, **options),
    ):
        assert evidence.not_reliable is None
        assert abs(evidence.mean - exact) / evidence.mc_se < 4
        assert abs(evidence.mean - exact - 0.3) / evidence.mc_se > 4
    found = nuts_reference(recaptures, HISTORIES, num_samples=150, num_warmup=80, num_chains=2)
    assert found.site_values["survival"].mean().item() == pytest.approx(mean, abs=0.04)


def test_a_latent_whose_prior_is_missing_is_refused():
    guide = AutoMultivariateNormal(improper)
    guide(X, SEEN)
    guide.double()
    with pytest.raises(ValueError, match="mask 'z'"):
        importance_weighted_evidence(improper, guide, (X, SEEN), 100)
    assert [finding.check for finding in check(improper, guide, (X, SEEN))] == ["mask"]


def test_the_reference_stays_where_the_posterior_is():
    found = nuts_reference(missing, (X, SEEN), num_samples=60, num_warmup=40, num_chains=2)
    draws = found.site_values["x_unobserved"]
    assert draws.std() < 3  # else it walks off where nothing holds it
    mean = X[SEEN].sum() / (len(X[SEEN]) + PRIOR_SD**-2)
    assert abs(found.site_values["mu"].mean() - mean) < 0.3


@pytest.mark.parametrize("model", [missing, padded])
def test_weights_of_draws_from_a_prior_that_is_masked_confirm_the_evidence(model):
    """Entries that are masked out need a density for that, of their own."""
    quick = {"num_islands": 16, "num_chains": 8, "max_rounds": 1}
    found = marginal_likelihood(model, (X, SEEN), **quick)
    assert found.not_reliable is None
    assert {"iw", "smc"} <= found.estimates.keys()
    for one in found.estimates.values():
        assert abs(one.mean - exact()) < 4 * one.mc_se < 0.4
