"""Masks inside a distribution, `.mask(...)`: they count on the terms of those around a site."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal

from evidence.guides import MeanField
from evidence.inference import (
    annealed_evidence,
    check,
    importance_weighted_evidence,
    marginal_likelihood,
    nuts_reference,
    smc_evidence,
)
from evidence.inference.estimation.gaps import inference_gaps
from evidence.inference.objectives.kl import _site_kl
from evidence.inference.programs import masks
from evidence.inference.programs.masking import counted, share_counted, unmasked
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Layout
from evidence.inference.programs.unconstrained import Assignment, Packing
from tests import test_masks
from tests.test_masks import PRIOR_SD, SEEN

with isolated_rng(5):
    X = 0.4 + torch.randn(6).double()
SPREAD, NOISE = 0.6, 0.8


def centre(x):
    return pyro.sample("mu", dist.Normal(x.new_zeros(()), PRIOR_SD))


def in_plate(x, seen):
    mu = centre(x)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, SPREAD).mask(seen))
        pyro.sample("x", dist.Normal(z, NOISE).mask(seen), obs=x)


def of_events(x, seen):
    mu = centre(x).unsqueeze(-1)
    z = pyro.sample("z", dist.Normal(mu, SPREAD).mask(seen).to_event(1))
    pyro.sample("x", dist.Normal(z, NOISE).mask(seen).to_event(1), obs=x)


def nested(x, seen):
    """Two rows of three: the first entry of both is masked as an entry, the rest by rows."""
    mu = centre(x)[..., None, None]
    rows, (first, *_) = torch.ones(2).bool(), seen.reshape(2, 3)
    inner = dist.Normal(mu, SPREAD).expand([*mu.shape[:-2], 2, 3]).mask(first).to_event(1)
    z = pyro.sample("z", inner.mask(rows).to_event(1))
    likelihood = dist.Normal(z, NOISE).mask(first).to_event(2)
    pyro.sample("x", likelihood, obs=x.reshape(2, 3))


def positive(x, seen):
    """The same latents as logarithms of positive ones: their map has a Jacobian of every entry."""
    mu = centre(x).unsqueeze(-1)
    z = pyro.sample("z", dist.LogNormal(mu, SPREAD).mask(seen).to_event(1))
    pyro.sample("x", dist.Normal(z.log(), NOISE).mask(seen).to_event(1), obs=x)


def both_ways(x, seen):
    """A mask around the site leaves out one entry, one inside the other."""
    mu, first = centre(x), torch.arange(len(x)) > 0
    with pyro.plate("data", len(x)):
        with poutine.mask(mask=first):
            z = pyro.sample("z", dist.Normal(mu, SPREAD).mask(seen | ~first))
        pyro.sample("x", dist.Normal(z, NOISE).mask(seen), obs=x)


MODELS = [in_plate, of_events, nested, positive, both_ways]


def improper(x, seen):
    """The likelihood depends on entries whose prior is masked out: no density at all."""
    mu = centre(x).unsqueeze(-1)
    z = pyro.sample("z", dist.Normal(mu, SPREAD).mask(seen).to_event(1))
    pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)


def exact():
    """Data that were seen are normal, with the spread that they share."""
    seen = X[SEEN]
    covariance = (SPREAD**2 + NOISE**2) * torch.eye(len(seen)).double() + PRIOR_SD**2
    return dist.MultivariateNormal(torch.zeros_like(seen), covariance).log_prob(seen).item()


def expect_exact(evidence):
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.1
    assert abs(evidence.mean - exact()) < 4 * evidence.mc_se


@functools.cache
def fitted(model):
    return test_masks.fitted(model, X)


def estimates(model):
    """By weights, by sequential Monte Carlo, and annealed."""
    yield importance_weighted_evidence(model, fitted(model), (X, SEEN), 4000)
    yield smc_evidence(model, (X, SEEN), num_islands=16, num_chains=16)
    yield annealed_evidence(model, (X, SEEN), num_chains=200, num_temperatures=40)


@pytest.mark.parametrize("model", MODELS)
def test_every_estimate_is_that_of_what_was_seen(model):
    assert check(model, fitted(model), (X, SEEN)) == []
    for evidence in estimates(model):
        expect_exact(evidence)
        planted = exact() + math.log(2)  # an entry counted that is masked
        assert abs(evidence.mean - planted) > 5 * evidence.mc_se


@pytest.mark.parametrize("model", MODELS)
def test_the_marginal_likelihood_is_reliable(model):
    quick = {"num_islands": 16, "num_chains": 8, "max_rounds": 1}
    found = marginal_likelihood(model, (X, SEEN), **quick)
    assert found.not_reliable is None
    assert {"iw", "smc"} <= found.estimates.keys()
    for one in found.estimates.values():
        assert abs(one.mean - exact()) < 4 * one.mc_se < 0.4


def test_masks_that_are_not_seen_are_no_density(monkeypatch):
    """The planted error: only masks around a site are looked at."""
    monkeypatch.setattr(masks, "is_masked", lambda site: site["mask"] is not None)
    with pytest.raises(ValueError, match="mask 'z'"):
        importance_weighted_evidence(of_events, fitted(of_events), (X, SEEN), 100)
    quick = {"num_islands": 16, "num_chains": 8, "max_rounds": 1}
    assert marginal_likelihood(of_events, (X, SEEN), **quick).not_reliable is not None


def test_a_latent_whose_prior_is_missing_is_refused():
    guide = AutoMultivariateNormal(improper)
    guide(X, SEEN)
    guide.double()
    with pytest.raises(ValueError, match="mask 'z'"):
        importance_weighted_evidence(improper, guide, (X, SEEN), 100)
    assert [finding.check for finding in check(improper, guide, (X, SEEN))] == ["mask"]
    quick = {"num_islands": 16, "num_chains": 8, "max_rounds": 1}
    assert marginal_likelihood(improper, (X, SEEN), **quick).not_reliable is not None


def test_the_reference_stays_where_the_posterior_is():
    found = nuts_reference(of_events, (X, SEEN), num_samples=60, num_warmup=40, num_chains=2)
    assert found.site_values["z"][..., ~SEEN].std() < 3  # else it walks off: nothing holds it
    seen = X[SEEN]
    mean = seen.sum() / (len(seen) + (SPREAD**2 + NOISE**2) / PRIOR_SD**2)
    assert abs(found.site_values["mu"].mean() - mean) < 0.3


@config_enumerate
def coins(x, seen):
    """A discrete latent of every datum, the prior of some of them masked out."""
    mu = centre(x)
    with pyro.plate("data", len(x)):
        side = pyro.sample("side", dist.Bernoulli(x.new_tensor(0.3)).mask(seen))
        pyro.sample("x", dist.Normal(mu + side, NOISE), obs=x)


def coins_evidence():
    """By the trapezoidal rule; a mask leaves draws, and so probabilities, as they are."""
    mu = torch.linspace(-6, 6, 4001).double()
    sides = [
        math.log(share) + dist.Normal(mu[:, None] + side, NOISE).log_prob(X)
        for side, share in ((0, 0.7), (1, 0.3))
    ]
    log_p = torch.logaddexp(*sides).sum(1) + dist.Normal(0.0, PRIOR_SD).log_prob(mu)
    return (log_p.logsumexp(0) + (mu[1] - mu[0]).log()).item()


def test_what_is_summed_out_has_its_probabilities():
    evidence = smc_evidence(coins, (X, SEEN), num_islands=16, num_chains=16)
    assert abs(evidence.mean - coins_evidence()) < 4 * evidence.mc_se < 0.2


def site(fn, mask=None):
    return {"fn": fn, "mask": mask}


def test_entries_that_count():
    fn = (
        dist.Normal(torch.zeros(2, 6), 1.0).mask(SEEN).to_event(1).mask(torch.tensor([True, False]))
    )
    both = torch.stack([SEEN, torch.zeros(6).bool()])
    assert torch.equal(counted(site(fn)).expand(2, 6), both)
    assert torch.equal(counted(site(fn, torch.tensor([False, True]))).expand(2, 6), both & False)
    assert share_counted(fn).tolist() == pytest.approx([4 / 6, 0.0])
    value = torch.randn(2, 6)
    bare = dist.Normal(torch.zeros(2, 6), 1.0).to_event(1)
    assert torch.equal(unmasked(fn).log_prob(value), bare.log_prob(value))
    assert not torch.equal(fn.log_prob(value), bare.log_prob(value))
    assert unmasked(bare) is bare
    rows = dist.Dirichlet(torch.ones(3, 4)).mask(torch.tensor([True, False, True]))
    assert counted(site(rows)).shape == (3, 1)
    assert share_counted(rows).tolist() == [1, 0, 1]


def around_and_inside(loc, scale):
    """The same latents `[3, 2]`, whose second row is masked: around the site, and inside."""
    rows, fn = torch.tensor([True, False, True]), dist.Normal(loc, scale)
    return site(fn.to_event(1), rows), site(fn.mask(rows.unsqueeze(-1)).to_event(1))


def test_free_bits_are_of_entries_that_count():
    with isolated_rng(1):
        loc, value = torch.randn(3, 2), torch.randn(3, 2)
    models, guides = around_and_inside(torch.zeros(3, 2), 1.0), around_and_inside(loc, 0.5)
    common = {"value": value, "scale": 1.0}
    around, inside = (
        _site_kl({**model, **common}, {**guide, **common}, closed_form=True)
        for model, guide in zip(models, guides, strict=True)
    )
    kl = -math.log(0.5) + 0.5 * (0.25 + loc[[0, 2]].square() - 1)
    for found in (around, inside):
        assert torch.allclose(found.kl, kl.sum(0))
        assert found.num_data.tolist() == [2, 2]


def test_the_jacobian_is_of_entries_that_count():
    """Of two rows of shares: a row that is masked has none, in a path between masked densities."""
    kept = torch.tensor([True, False])
    for fn in (
        dist.Dirichlet(torch.tensor([[2.0, 1.0, 3.0]] * 2)).mask(kept).to_event(1),
        dist.Gamma(torch.tensor([2.0, 3.0]), 1.0).mask(kept).to_event(1),
    ):
        latent = {**site(fn), "name": "z", "type": "sample", "value": None}
        packing = Packing({"z": latent}, Layout(None, -1))
        u = torch.tensor([0.4, -0.3, 0.8, 0.1])[: packing.dim].reshape(1, 1, -1)
        assignment = Assignment(packing, u, has_chains=False)
        assignment.assign(latent)
        first = u[0, 0, : packing.dim // 2]
        first = first.squeeze() if packing.dim == 2 else first
        transform = biject_to(fn.base_dist.base_dist.support)
        expected = transform.log_abs_det_jacobian(first, transform(first))
        assert torch.allclose(assignment.counted_ladj(latent), expected)
        assert not torch.allclose(assignment.ladj["z"], expected)


def test_gaps_of_latents_that_are_masked():
    """Where nothing depends on them a normal guide has no gap but that of its encoder."""
    x = torch.where(SEEN, X, -9.0).unsqueeze(-1)

    def model(x):
        seen = x > -9
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(1), 1.0).expand(x.shape).mask(seen).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, NOISE).mask(seen).to_event(1), obs=x)

    found = inference_gaps(model, MeanField.for_model(model, x), x, max_steps=1500)
    assert abs(found.approximation.mean) < 0.01
