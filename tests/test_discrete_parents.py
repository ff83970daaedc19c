"""Continuous latents beside discrete ones that are summed out: no draw of these is in between."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from scipy.special import gammaln, logsumexp

from evidence.guides import FullRank
from evidence.inference import importance_weighted_evidence
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.log_joint import AbstractPath, PriorPath, Way
from evidence.inference.programs import latents
from evidence.inference.programs.random_state import isolated_rng

with isolated_rng(5):
    X = torch.randn(4, 3).double() + torch.tensor([0.0, 2.0, 1.0]).double()
PRESENT = 0.4


@config_enumerate
def effects(x):
    """Of three groups, some of them treated: the prior of an effect depends on which."""
    mean = pyro.sample("mean", dist.Normal(x.new_zeros(()), 1.0))
    with pyro.plate("groups", 3):
        is_treated = pyro.sample("is_treated", dist.Bernoulli(x.new_tensor(PRESENT)))
        effect = pyro.sample("effect", dist.Normal(mean + 2 * is_treated, 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(effect, 1.0), obs=x)


def effects_evidence():
    """Over all eight sets of treated groups; given one, all data are normal."""
    groups = torch.arange(3).repeat(4)
    same = (groups.unsqueeze(1) == groups).double()
    covariance = 1.0 + 0.25 * same + torch.eye(12).double()
    terms = []
    for treated in itertools.product((0, 1), repeat=3):
        loc = 2 * torch.tensor(treated).double()[groups]
        prior = sum(math.log(PRESENT if one else 1 - PRESENT) for one in treated)
        normal = dist.MultivariateNormal(loc, covariance)
        terms.append(prior + normal.log_prob(X.flatten()).item())
    return logsumexp(terms)


def effects_of_one_draw(guide):
    """The effects that several runs of a guide make of the same auxiliary draw."""
    v = torch.linspace(-1, 1, 4).double()
    runs = [pyro.condition(guide, {"_latent": v})(X) for _ in range(20)]
    return torch.stack([run["effect"] for run in runs])


def test_a_guide_makes_the_same_of_the_same_draw(monkeypatch):
    """In units of its prior, the twin, an effect would move with a draw of its group's treatment.

    Then log q is no density of the effects, which annealing, bridges and gradients rely on.
    """
    assert (effects_of_one_draw(FullRank.for_model(effects, X)).std(0) == 0).all()
    monkeypatch.setattr(latents, "moved_by_enumerated", lambda *_: frozenset())
    monkeypatch.setattr("evidence.guides.placement.undrawn", lambda model: model)
    assert effects_of_one_draw(FullRank.for_model(effects, X)).std(0).min() > 0.1


def test_the_evidence_of_latents_with_discrete_parents():
    guide = FullRank.for_model(effects, X)
    assert GuidePath(effects, guide, X).way is Way.PLATE
    torch.manual_seed(0)
    evidence = importance_weighted_evidence(effects, guide, X, 20_000, search_modes=False)
    assert evidence.mc_se < 0.1
    assert abs(evidence.mean - effects_evidence()) < 4 * evidence.mc_se
    assert abs(evidence.mean + 0.5 - effects_evidence()) > 4 * evidence.mc_se


COUNTS = np.array([1, 0, 7, 6])
TRANSITION_PRIOR = np.eye(2) + 1


def hidden_markov(counts):
    """As Pyro's examples have it: states index tables from the left, so that nothing broadcasts."""
    prior = torch.tensor(TRANSITION_PRIOR)
    transition = pyro.sample("transition", dist.Dirichlet(prior).to_event(1))
    with pyro.plate("states", 2):
        rate = pyro.sample("rate", dist.Gamma(counts.new_tensor(2.0), 0.5))
    z = 0
    for t in pyro.markov(range(len(counts))):
        probs = transition[z]
        z = pyro.sample(f"z_{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
        pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=counts[t])


def hidden_markov_evidence():
    """Over all sequences of states; given one, Dirichlet and gamma priors are conjugate."""
    terms = []
    for states in itertools.product((0, 1), repeat=len(COUNTS)):
        moves = np.zeros((2, 2))
        np.add.at(moves, ((0, *states[:-1]), states), 1)
        alpha = TRANSITION_PRIOR
        log_p = (gammaln(alpha + moves) - gammaln(alpha)).sum() - gammaln(COUNTS + 1).sum()
        log_p += (gammaln(alpha.sum(1)) - gammaln((alpha + moves).sum(1))).sum()
        for state in (0, 1):
            own = COUNTS[np.array(states) == state]
            shape, rate = 2 + own.sum(), 0.5 + len(own)
            log_p += 2 * math.log(0.5) + gammaln(shape) - shape * math.log(rate)
        terms.append(log_p)
    return logsumexp(terms)


@pytest.fixture
def path():
    with isolated_rng(0):
        yield PriorPath(hidden_markov, torch.tensor(COUNTS).double())


def test_latents_of_a_program_that_does_not_broadcast_are_placed_at_once(path, monkeypatch):
    """And read at once: one run for all chains, under `torch.vmap`, which can draw no state."""
    assert path.way is Way.VMAP
    z = path.sample(50)
    monkeypatch.setattr(AbstractPath, "num_runs", 0, raising=False)
    run = AbstractPath._run

    def counted(self, *args, **options):
        AbstractPath.num_runs += 1
        return run(self, *args, **options)

    monkeypatch.setattr(AbstractPath, "_run", counted)
    values = {name: value.squeeze(1) for name, value in path.site_values(z).items()}
    found = path.locate(values)
    assert AbstractPath.num_runs == 2
    assert torch.allclose(found, z, atol=1e-9)
    assert not torch.allclose(path.locate({n: v.flip(0) for n, v in values.items()}), z, atol=0.1)


def test_the_evidence_of_a_hidden_markov_model_whose_parameters_are_unknown(path):
    """The mean likelihood of draws from the prior."""
    log_p_x = path(path.sample(400))[1].squeeze(1)
    p_x = (log_p_x - hidden_markov_evidence()).exp()
    se = p_x.std().item() / len(p_x) ** 0.5
    assert abs(p_x.mean().item() - 1) < 4 * se
    assert abs(p_x.mean().item() - 2) > 4 * se  # the twin: each sequence of states counted twice
