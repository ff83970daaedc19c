"""The marginal likelihood by kinds of estimate that confirm each other, on known evidences."""

import dataclasses
import math
import re
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from scipy.special import logsumexp

from evidence.experiments.own.program import default_dtype
from evidence.guides import FullRank
from evidence.inference import (
    Evidence,
    MarginalLikelihood,
    bayes_factor,
    fit,
    marginal_likelihood,
    nested_evidence,
)
from evidence.inference.estimation.unknown import Unknown
from evidence.inference.model_choice import marginal_likelihood as marginal_module
from evidence.inference.model_choice import mixture_proposal
from evidence.inference.model_choice.mixture_proposal import Mixture, MixtureProposal, _fitted
from evidence.inference.paths.log_joint import PriorPath
from evidence.models.problems import PROBLEMS
from tests.test_bayes_factors import record

QUICK = {"num_islands": 16, "num_chains": 8, "num_steps": 16}


def found_for(name, **options):
    problem = PROBLEMS[name]
    with default_dtype(torch.float64 if problem.double else torch.float32):
        return marginal_likelihood(problem.model, problem.arguments, **options)


SLOW = ["eight-schools", "regression", "pumps", "shells-10", "log-gamma-10", "student-mixture"]


@pytest.mark.parametrize(
    "name",
    ["pines", "separated-modes", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)],
)
def test_two_kinds_agree_and_are_right(name):
    found = found_for(name, **({} if name in SLOW else QUICK))
    assert found.not_reliable is None, found
    assert found.se <= 0.05
    assert found.apart < 4
    assert len(found.estimates) >= 2
    exact = PROBLEMS[name].log_evidence
    assert abs(found.log_ml - exact) < 4 * found.se
    for estimate in found.estimates.values():
        if estimate.not_reliable is None:
            assert abs(estimate.mean - exact) < 4 * estimate.mc_se
    assert abs(found.log_ml - exact - math.log(2)) > 4 * found.se  # the twin: half the modes
    assert found.num_evaluations > 1000


def test_the_radiata_pines():
    """ln BF 8.4237 (N. Friel, A. N. Pettitt, 2008)."""
    adjusted, density = (
        found_for(name, target_se=0.02, **QUICK) for name in ("pines-adjusted", "pines")
    )
    factor = bayes_factor(adjusted.evidence, density.evidence, names=("adjusted", "density"))
    assert factor.se < 0.03
    assert abs(factor.log_bf - 8.42369) < 4 * factor.se
    assert factor.verdict == "very strong evidence for adjusted"


def per_datum(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def test_of_data_with_latents_of_their_own_the_sum_is_told():
    x = torch.tensor([0.3, -1.0, 2.0])
    found = marginal_likelihood(per_datum, x, **QUICK)
    exact = stats.norm(0, math.sqrt(1.25)).logpdf(x.numpy()).sum()
    assert found.not_reliable is None, found
    assert abs(found.log_ml - exact) < 4 * found.se
    assert set(found.estimates) == {"smc", "bridge"}


def test_a_guide_weighs_where_there_is_one():
    problem = PROBLEMS["pines"]
    guide = FullRank.for_model(problem.model, problem.data)
    fit(problem.model, guide, problem.data, num_steps=300, lr=0.01, progress=False)
    found = marginal_likelihood(problem.model, problem.data, guide=guide, max_rounds=1, **QUICK)
    assert "iw" in found.estimates
    assert abs(found.log_ml - problem.log_evidence) < 4 * found.se


def test_kinds_that_disagree_are_not_relied_on():
    estimates = {"iw": record(-10.0, 0.01), "smc": record(-9.5, 0.05, estimator="smc")}
    found = MarginalLikelihood(estimates, 0.05, 1000, 1.0)
    assert found.apart == pytest.approx(0.5 / math.hypot(0.01, 0.05))
    assert "9.8 standard errors apart" in found.not_reliable
    assert found.evidence.not_reliable == found.not_reliable
    assert "NOT RELIABLE" in str(found)
    alone = {"iw": record(-10.0), "smc": record(-9.5, caveat="islands disagree")}
    lone = MarginalLikelihood(alone, 0.05, 1000, 1.0)
    assert lone.not_reliable == ("no two kinds of estimate are reliable (smc: islands disagree)")
    agreed = dataclasses.replace(found, estimates={"iw": record(-10.0), "smc": record(-10.1, 0.1)})
    assert agreed.not_reliable is None
    assert isinstance(agreed.evidence, Evidence)
    assert "± 0.010" in str(agreed)


def test_no_defence_is_advised_to_a_mixture_that_has_one():
    """The twin, weights of a guide alone, is told of it: the advice names what a guide needs."""
    weights = found_for("pines", max_rounds=1, **QUICK).estimates["iw"]
    too_heavy = dataclasses.replace(weights, k_hat=weights.k_hat * 0 + 0.9)
    assert "k̂ is too large" in too_heavy.not_reliable
    assert "defensive" not in too_heavy.not_reliable
    assert "defensive=0.2" in dataclasses.replace(too_heavy, defensive=0.0).not_reliable


def test_nested_sampling_confirms_where_it_is_asked_to(monkeypatch):
    few = partial(nested_evidence, num_live=30)
    monkeypatch.setattr(marginal_module, "nested_evidence", few)
    found = found_for("pines", nested=True, max_rounds=1, **QUICK)
    nested = found.estimates["nested"]
    assert next(iter(found.estimates)) != "nested"
    assert found.not_reliable is None, found
    assert abs(nested.mean - PROBLEMS["pines"].log_evidence) < 4 * nested.mc_se
    assert found.num_evaluations == sum(one.num_evaluations for one in found.estimates.values())


@pytest.mark.parametrize("option", [{"target_se": 0.0}, {"max_rounds": 0}])
def test_bad_options_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        found_for("pines", **option)


# The mixture that is fitted to draws.


@pytest.mark.parametrize("degrees", [5.0, math.inf])
def test_a_mixture_has_the_density_it_is_drawn_from(degrees):
    torch.manual_seed(0)
    factors = torch.tensor([[[1.0, 0.0], [0.5, 0.8]], [[0.3, 0.0], [-0.1, 0.4]]]).double()
    locs = torch.tensor([[0.0, 1.0], [3.0, -2.0]]).double()
    mixture = Mixture(torch.tensor([0.3, 0.7]).double().log(), locs, factors, degrees)
    z = mixture.sample(40_000)
    parts = []
    for share, loc, factor in zip([0.3, 0.7], locs, factors, strict=True):
        shape = (factor @ factor.mT).numpy()
        one = stats.multivariate_t(loc, shape, degrees)
        parts.append(share * one.pdf(z[:50]))
    assert torch.allclose(mixture.log_prob(z[:50]).exp(), torch.tensor(sum(parts)))
    # Weights of any other density against it average to one.
    other = stats.multivariate_normal([1.0, 0.0], [[1.0, 0.2], [0.2, 1.0]])
    weights = other.pdf(z) / mixture.log_prob(z).exp().numpy()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(len(weights))


def test_weights_that_forget_the_share_of_the_prior_are_seen(monkeypatch):
    """The planted twin of the mixture's density: a twentieth of it is the prior's."""
    weigh = MixtureProposal._weigh

    def error():
        found = found_for("pines", max_rounds=1, **QUICK).estimates["iw"]
        return abs(found.mean - PROBLEMS["pines"].log_evidence) / found.mc_se

    assert error() < 4
    monkeypatch.setattr(
        MixtureProposal, "_weigh", lambda self, mixture, u, share: weigh(self, mixture, u, 1e-9)
    )
    assert error() > 5


def test_the_number_of_components_is_found():
    torch.manual_seed(0)
    near, far = torch.randn(600, 2), 0.2 * torch.randn(200, 2) + 20.0
    for mixture in _fitted(torch.cat([near, far]), seed=0):
        assert len(mixture.locs) == 2
        assert mixture.log_shares.exp().min().item() == pytest.approx(0.25, abs=1e-3)
    assert len(_fitted(near, seed=0)[0].locs) == 1


COUNTS = torch.tensor([2.0, 5.0, 0.0, 9.0, 1.0, 3.0])


def overdispersed(counts):
    """A rate of exp(spread · effect) is infinite in float32 from 89 on, and its density NaN."""
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    with pyro.plate("sites", len(counts)):
        effect = pyro.sample("effect", dist.Normal(1.0, 1.0))
        pyro.sample("counts", dist.Poisson((spread * effect).exp()), obs=counts)


def overdispersed_evidence():
    """Every site by Gauss-Hermite, the log of the spread by the trapezoidal rule."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    log_weights = np.log(weights / weights.sum())
    log_spread = np.linspace(-9, 2, 801)[:, None]
    log_rate = np.exp(log_spread) * (1 + nodes)
    log_p = stats.halfnorm.logpdf(np.exp(log_spread)) + log_spread
    for count in COUNTS.numpy():
        log_pmf = count * log_rate - np.exp(log_rate) - math.lgamma(count + 1)
        log_p = log_p + logsumexp(log_pmf + log_weights, axis=1, keepdims=True)
    return logsumexp(log_p) + math.log(log_spread[1, 0] - log_spread[0, 0])


def test_tails_of_the_proposal_may_reach_where_the_log_joint_overflows():
    path = PriorPath(overdispersed, COUNTS)
    u = torch.full((1, 1, path.dim), 3.5)  # the planted NaN, far out in the tails of the spread
    with torch.no_grad():
        assert path(u)[1].isnan().all()
    found = marginal_likelihood(overdispersed, COUNTS, **QUICK)
    assert found.not_reliable is None, found
    assert abs(found.log_ml - overdispersed_evidence()) < 4 * found.se
    assert abs(found.log_ml - overdispersed_evidence() - 0.5) > 4 * found.se
    wide = Mixture(torch.zeros(1), u[0], 3 * torch.eye(path.dim).unsqueeze(0), 5.0)
    proposal, unknown = MixtureProposal(path, path.sample(200), 0), Unknown(path)
    log_w = proposal._log_weights(wide, 200, unknown)
    assert not log_w.isnan().any()
    assert 2 < unknown.number <= log_w.isneginf().sum()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_proposal_many_of_whose_draws_are_no_number_is_not_relied_on(monkeypatch, is_told):
    """How many, and where; untold, the planted error, their weights pass for zeros."""
    fitted = mixture_proposal._fitted

    def far_out(z, seed):
        """The mixtures fitted, moved to where a part of the draws overflows."""
        return [dataclasses.replace(one, locs=one.locs + 2.5) for one in fitted(z, seed)]

    monkeypatch.setattr(mixture_proposal, "_fitted", far_out)
    if not is_told:
        monkeypatch.setattr(Unknown, "caveat", lambda self, num_draws: None)
    record = marginal_likelihood(overdispersed, COUNTS, max_rounds=1, **QUICK).estimates["iw"]
    said = r"NaN by site 'counts' at [0-9,]+ of [0-9,]+ draws \([0-9.]+%; near spread = "
    assert bool(re.search(said, str(record.not_reliable))) == is_told
