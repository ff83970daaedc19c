"""EUBO, forward KL and marginal distances against closed forms, and what planted errors do."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import kl_divergence

from evidence.inference import Evidence, compare_to_reference, smc
from evidence.inference.bridging import upper_bound as bounds
from evidence.inference.bridging.posterior_draws import PosteriorDraws, reference_of
from evidence.inference.bridging.upper_bound import Mean, upper_bound
from evidence.inference.diagnostics.two_samples import distance_and_floor, marginal_wasserstein
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.programs.data import as_data, takes
from evidence.models import GaussianMixture2D
from evidence.models.problems import PROBLEMS as KNOWN
from tests.conjugate_chains import COVARIANCE, LOC, PROBLEMS, chains_of

NUM_DATA = 100  # repetitions of one problem
SCALES = COVARIANCE.inverse().diagonal().rsqrt()
# The exact posterior and a guide that is not, by problem.
PAIRS = {
    "normal": (dist.Normal(1.2, math.sqrt(0.2)), dist.Normal(1.0, 0.6)),
    "exponential": (dist.Gamma(4.0, 2.7), dist.Gamma(2.5, 2.0)),
    "regression": (
        dist.MultivariateNormal(LOC, COVARIANCE),
        dist.MultivariateNormal(LOC, scale_tril=SCALES.diag()),
    ),
}


def found(name, *, seed=0, memory=0.8, evidence=None):
    """The bound of as many repetitions; the exact log p(x), KL(p ‖ q) and KL(q ‖ p)."""
    problem, (p, q) = PROBLEMS[name], PAIRS[name]
    pyro.set_rng_seed(seed)
    draws = chains_of(problem, NUM_DATA, memory=memory, num_draws=200)
    x = problem.x.expand(NUM_DATA, *problem.x.shape).clone()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    with annealing_mode(problem.model, guide, seed + 1, x.device):
        path = GuidePath(problem.model, guide, x)
        of_p = PosteriorDraws(draws, path)
        bound = upper_bound(path, of_p, of_p.located(path), evidence=evidence)
    return bound, problem.exact, kl_divergence(p, q).item(), kl_divergence(q, p).item()


def z_of(mean, exact):
    """|z| of the mean error of the repetitions."""
    errors = mean.mean - exact
    return abs((errors.mean() / errors.std() * math.sqrt(len(errors))).item())


def covered(mean, exact):
    """The share of intervals of ±2 SE that hold the exact value."""
    return ((mean.mean - exact).abs() < 2 * mean.se).double().mean().item()


@pytest.mark.parametrize("name", PAIRS)
def test_eubo_and_forward_kl_are_those_of_closed_forms(name):
    """Means over 100 repetitions |z| < 4, ±2 SE hold 88% to 99.5%, lag-one autocorrelation 0.8.

    Twins: the KL the other way round, log p(x) left out.
    """
    bound, log_px, kl, reverse = found(name)
    assert z_of(bound.eubo, log_px + kl) < 4
    assert z_of(bound.forward_kl, kl) < 4
    assert 0.88 <= covered(bound.eubo, log_px + kl) <= 0.995
    assert 0.88 <= covered(bound.forward_kl, kl) <= 0.995
    assert z_of(bound.forward_kl, reverse) > 5
    assert z_of(bound.eubo, kl) > 5


def test_the_log_density_of_the_guide_is_that_of_constrained_latents():
    """E_p[log q(z)] = −KL(p ‖ q) − H(p); the twin has the density of log z."""
    bound, *_ = found("exponential")
    p, q = PAIRS["exponential"]
    expected = -kl_divergence(p, q).item() - p.entropy().item()
    assert z_of(bound.log_q_z, expected) < 4
    assert z_of(bound.log_q_z, expected + stats.gamma(4, scale=1 / 2.7).expect(np.log)) > 5


def test_autocorrelation_left_out_makes_the_error_bars_too_short(monkeypatch):
    monkeypatch.setattr(
        bounds, "mean_ess", lambda v: torch.full_like(v[0, 0], math.prod(v.shape[:2]))
    )
    bound, log_px, kl, _ = found("normal")
    assert covered(bound.eubo, log_px + kl) < 0.88
    assert covered(bound.forward_kl, kl) < 0.88


def test_both_error_bars_at_once_are_shorter_than_apart():
    """The EUBO and a bridge from the same draws err together; apart they would not."""
    bound, log_px, kl, _ = found("regression", memory=0.0)
    exact = torch.full((NUM_DATA,), log_px).double()
    given, *_ = found("regression", memory=0.0, evidence=Evidence.exact(exact))
    assert z_of(given.forward_kl, kl) < 4
    assert torch.equal(given.forward_kl.se, given.eubo.se)
    assert torch.allclose(given.forward_kl.mean, given.eubo.mean - log_px)
    spread = bound.forward_kl.mean.std()
    assert bound.forward_kl.se.mean() == pytest.approx(spread.item(), rel=0.25)
    with pytest.raises(ValueError, match="100 estimates of log p\\(x\\), got 3"):
        found("normal", evidence=Evidence.exact(torch.zeros(3)))


def ring_guide(model, x, kept):
    """The exact posterior of a ring, or one without some of its components."""
    exact = model.posterior(x)

    def guide(x):
        logits = exact.mixture_distribution.logits.masked_fill(~kept, -9.0)
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.MixtureSameFamily(
                    dist.Categorical(logits=logits), exact.component_distribution
                ),
            )

    return guide


def test_a_mixture_in_the_plane_by_quadrature():
    """A guide that has almost lost two of four modes: KL, shares and distances, |z| < 5.

    The ELBO of such a guide shows next to nothing; the twins are KL(q ‖ p) and the exact guide.
    """
    pyro.set_rng_seed(0)
    model = GaussianMixture2D(2).double()
    x = torch.tensor([[0.3, -0.2]]).double()
    kept = torch.tensor([True, True, False, False])
    guide = ring_guide(model, x, kept)
    p = model.posterior(x)
    draws = {"z": p.sample([4, 1000])}
    seen = compare_to_reference(model, guide, draws, x, modes=model.modes(x), classifier="logistic")
    side = torch.linspace(-6, 6, 601).double()
    grid = torch.cartesian_prod(side, side).unsqueeze(1)
    with pyro.poutine.trace() as traced:
        guide(x)
    log_p, log_q = p.log_prob(grid), traced.trace.nodes["z"]["fn"].log_prob(grid)
    cell = (side[1] - side[0]) ** 2
    forward = ((log_p.exp() * (log_p - log_q)).sum() * cell).item()
    reverse = ((log_q.exp() * (log_q - log_p)).sum() * cell).item()
    assert abs(seen.forward_kl.item() - forward) < 5 * seen.forward_kl_se.item()
    assert abs(seen.forward_kl.item() - reverse) > 5 * seen.forward_kl_se.item()
    assert forward > 2 > 2 * reverse
    log_px = model.log_evidence(x)
    assert abs(seen.eubo - seen.forward_kl - log_px).item() < 0.2
    shares = seen.modes.guide
    assert (shares.shares[0, 2:] < 0.01).all()
    assert ((seen.modes.reference.shares - shares.exact) / seen.modes.reference.se).abs().max() < 5
    assert shares.jensen_shannon.mean.item() > 0.1
    assert (seen.worst_wasserstein.between > 3 * seen.worst_wasserstein.floor).all()
    assert "KL(p ‖ q)" in str(seen)
    exact = compare_to_reference(
        model, ring_guide(model, x, ~kept | kept), draws, x, classifier="logistic"
    )
    assert abs(exact.forward_kl.item()) < 1e-6
    assert (exact.worst_wasserstein.between < 2 * exact.worst_wasserstein.floor).all()


def test_draws_of_every_form_are_a_reference():
    """Of `smc` by islands; a guide at one of two modes has lost the other, log 2 nats and more."""
    problem = KNOWN["separated-modes"]
    no_data, sampled = as_data(()), smc(problem.model, (), num_chains=4)
    reference = reference_of(takes(problem.model, no_data), sampled, no_data)
    assert reference.draws.shape == (32, 64, 1, 2)
    assert reference.converged == (sampled.evidence.not_reliable is None)

    def at_one(loc=8.0):
        pyro.sample("z", dist.Normal(loc, 1.0).expand([2]).to_event(1))

    seen = compare_to_reference(problem.model, at_one, sampled, (), modes=problem.modes)
    assert seen.forward_kl.item() > 10
    assert seen.modes.guide.shares[0].tolist() == pytest.approx([0, 1], abs=1e-3)
    with pytest.raises(ValueError, match="the data that the draws are given"):
        compare_to_reference(problem.model, at_one, sampled.draws)


# Marginal distances


def test_marginal_distances_are_scipys_and_those_of_distribution_functions():
    """SciPy's on the same draws; ∫|F − G| by quadrature, |z| < 5 over 20 data; the twin is W₂."""
    first = torch.randn(500, 2, 3).double()
    second = 0.5 + 2 * torch.randn(500, 2, 3).double()
    found = marginal_wasserstein(first, second)
    for (row, entry), value in np.ndenumerate(found.numpy()):
        pair = first[:, row, entry].numpy(), second[:, row, entry].numpy()
        assert value == pytest.approx(stats.wasserstein_distance(*pair), rel=1e-10)
    expected, _ = integrate.quad(
        lambda t: abs(stats.norm.cdf(t) - stats.norm.cdf(t, 0.6, 0.5)), -8, 8, points=[1.2]
    )
    many = torch.randn(20_000, 20, 1).double(), 0.6 + 0.5 * torch.randn(20_000, 20, 1).double()
    distance = marginal_wasserstein(*many).flatten()
    se = distance.std() / math.sqrt(20)
    assert abs(distance.mean() - expected) < 5 * se
    assert abs(distance.mean() - math.hypot(0.6, 0.5)) > 5 * se


def test_the_floor_of_marginal_distances_is_that_of_equals():
    """Within 5 SE over 1,000 data, of the largest of three latents as of each."""
    samples = torch.randn(2, 200, 1000, 3).double()
    for distance in (marginal_wasserstein, lambda *pair: marginal_wasserstein(*pair).amax(-1)):
        seen = distance_and_floor(*samples, distance=distance)
        gap = (seen.between - seen.floor).reshape(1000, -1).mean(1)
        assert abs(gap.mean() / gap.std()) * math.sqrt(1000) < 5
        assert seen.floor.mean() > 0.05


def test_what_a_guide_that_scores_nothing_gets():
    unknown = bounds.UpperBound.unknown(torch.zeros(2), "no density")
    assert unknown.caveat == "no density"
    for mean in (unknown.eubo, unknown.forward_kl, unknown.log_q_z):
        assert isinstance(mean, Mean)
        assert mean.mean.isnan().all()
