"""Whitened coordinates, and chains that move in them by turns: the same density, a truer neck."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.distributions.util import sum_rightmost
from pyro.infer import config_enumerate

from evidence.inference import marginal_likelihood, smc, smc_evidence
from evidence.inference.annealing import smc_pilot
from evidence.inference.paths import interweaving
from evidence.inference.paths.interweaving import coordinates_of, moved_in
from evidence.inference.paths.log_joint import PriorPath, Way
from evidence.inference.programs import unconstrained
from evidence.inference.programs.data import as_data, takes
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.scaled_prior import scaled
from evidence.inference.programs.whitening import whitening
from tests.test_annealing import worst_of
from tests.test_smc import ROUGH

EIGHT = torch.float64


def line(*values):
    return torch.tensor(values, dtype=EIGHT)


def root(scale):
    return scale * torch.tensor([[1.0, 0.0], [0.7, 0.5]], dtype=EIGHT)


# By location (or nothing) and scale.
FAMILIES = {
    "Normal": dist.Normal,
    "StudentT": lambda loc, scale: dist.StudentT(4.0, loc, scale),
    "Cauchy": dist.Cauchy,
    "Laplace": dist.Laplace,
    "Gumbel": dist.Gumbel,
    "LogNormal": dist.LogNormal,
    "HalfNormal": lambda _, scale: dist.HalfNormal(scale),
    "HalfCauchy": lambda _, scale: dist.HalfCauchy(scale),
    "Weibull": lambda _, scale: dist.Weibull(scale, 1.5),
    "Exponential": lambda _, scale: dist.Exponential(1 / scale),
    "Gamma": lambda _, scale: dist.Gamma(line(2.5), 1 / scale),
    "InverseGamma": lambda _, scale: dist.InverseGamma(line(2.5), scale),
    "MultivariateNormal": lambda loc, s: dist.MultivariateNormal(loc, scale_tril=root(s)),
    "by its precision": lambda loc, s: dist.MultivariateNormal(
        loc, precision_matrix=torch.linalg.inv(root(s) @ root(s).mT)
    ),
    "MultivariateStudentT": lambda loc, s: dist.MultivariateStudentT(line(4.0)[0], loc, root(s)),
    "LowRankMultivariateNormal": lambda loc, s: dist.LowRankMultivariateNormal(
        loc, root(s)[:, :1], s.square() * line(0.2, 0.3)
    ),
    "of several factors": lambda loc, s: dist.MultivariateNormal(
        loc, scale_tril=root(s) * line([[1.0]], [[2.0]], [[3.0]])
    ),
    "Logistic": dist.Logistic,
    "SkewLogistic": lambda loc, scale: dist.SkewLogistic(loc, scale, line(0.7)),
    "AsymmetricLaplace": lambda loc, scale: dist.AsymmetricLaplace(loc, scale, line(1.3)),
    "SoftLaplace": dist.SoftLaplace,
    "SoftAsymmetricLaplace": lambda loc, scale: dist.SoftAsymmetricLaplace(loc, scale, line(1.3)),
    "transformed": lambda loc, scale: dist.TransformedDistribution(
        dist.StudentT(line(4.0), 0.0, 1.0), transforms.AffineTransform(loc, scale)
    ),
    "logit-normal": lambda loc, scale: dist.TransformedDistribution(
        dist.Normal(loc, scale), transforms.SigmoidTransform()
    ),
    "ScaledPrior": lambda loc, scale: scaled(dist.Normal(loc, scale), 0.5),
    "Independent": lambda loc, scale: dist.Normal(loc, scale).to_event(1),
    "masked": lambda loc, scale: dist.Normal(loc, scale).mask(True),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_neither_location_nor_scale_move_what_is_whitened(name):
    """Log p(T(ε)) + log|det ∂T/∂ε| is one function of ε."""
    epsilon = line([0.3, -1.2], [1.5, 0.4], [-0.2, 0.1])

    def density(loc, scale):
        fn = FAMILIES[name](loc, scale)
        transform = whitening(fn)
        value = transform(epsilon)
        assert fn.support.check(value).all()
        torch.testing.assert_close(transform.inv(value), epsilon)
        ladj = transform.log_abs_det_jacobian(epsilon, value)
        log_p = fn.log_prob(value)
        return log_p + sum_rightmost(ladj, ladj.ndim - log_p.ndim)

    one = density(line(0.0, 0.0), line(1.0)[0])
    assert one.std() > 0.01
    torch.testing.assert_close(density(line(2.0, -3.0), line(0.05)[0]), one)


@pytest.mark.parametrize(
    "fn",
    [
        dist.Beta(2.0, 3.0),
        dist.Uniform(0.0, 1.0),
        dist.Bernoulli(0.5),
        dist.AffineBeta(2.0, 3.0, 0.0, 2.0),
        dist.FoldedDistribution(dist.Normal(0.0, 1.0)),
        dist.TransformedDistribution(dist.Normal(line(0.0, 0.0), 1.0), [transforms.Planar(2)]),
    ],
)
def test_what_has_neither_is_left_as_it_is(fn):
    assert whitening(fn) is None


# Models: the groups of a hierarchy, y_n ~ N(θ_n, noise), θ_n ~ N(0, σ), σ ~ HalfNormal.


def hierarchy(noise=0.3, width=1.0):
    def model(y):
        sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(width)))
        with pyro.plate("groups", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, sigma))
            pyro.sample("y", dist.Normal(theta, noise), obs=y)

    return model


def dependent(y):
    """The same with one vector; under a plate of chains its shapes do not fit."""
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
    theta = pyro.sample("theta", dist.MultivariateNormal(0 * y, torch.eye(3).to(y) * sigma**2))
    with pyro.plate("groups", len(y)):
        pyro.sample("y", dist.Normal(theta, 0.3), obs=y)


def looped(y):
    """The same, one group after the other, with a branch of Python's on a latent."""
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
    scale = sigma if float(sigma.detach()) > 0 else -sigma
    for n in pyro.plate("groups", len(y)):
        theta = pyro.sample(f"theta_{n}", dist.Normal(0.0, scale))
        pyro.sample(f"y_{n}", dist.Normal(theta, 0.3), obs=y[n])


def hierarchy_evidence(y, noise=0.3, width=1.0):
    """Gaussian given σ, by quadrature over its logarithm."""
    log_sigma = torch.linspace(-25, 5, 200_001, dtype=EIGHT)
    spread = (log_sigma.exp().square().unsqueeze(-1) + noise**2).sqrt()
    given = dist.Normal(0.0, spread).log_prob(y.double()).sum(-1)
    prior = dist.HalfNormal(torch.tensor(width, dtype=EIGHT)).log_prob(log_sigma.exp()) + log_sigma
    return (given + prior).logsumexp(0) + math.log(30 / 200_000)


Y = line(0.4, -1.3, 2.2)


def unrelated(y):
    loc = pyro.sample("loc", dist.Normal(y.new_tensor(0.0), 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(y.new_tensor(1.0)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(loc, scale), obs=y)


@pytest.mark.parametrize(
    ("model", "number"), [(hierarchy(), 2), (dependent, 2), (looped, 2), (unrelated, 1)]
)
def test_only_priors_that_move_with_other_latents_are_whitened(model, number):
    with evaluation_mode(model):
        assert len(coordinates_of(PriorPath(model, Y))) == number


@pytest.mark.parametrize(
    ("model", "way"),
    [(hierarchy(), Way.PLATE), (dependent, Way.VMAP), (looped, Way.ONE_BY_ONE)],
)
def test_both_coordinates_hold_one_density(model, way):
    """Of u = (log σ, θ) and ε = θ / σ: log|det ∂θ/∂ε| is 3 log σ."""
    with evaluation_mode(model), torch.no_grad():
        path, other = coordinates_of(PriorPath(model, Y))
        assert path.way is other.way is way
        u = path.sample(4)
        there = other.at_latents_of(path, u)
        torch.testing.assert_close(there[..., 1:], u[..., 1:] / u[..., :1].exp())
        torch.testing.assert_close(path.at_latents_of(other, there), u)
        here, whitened = path(u), other(there)
    torch.testing.assert_close(whitened.log_p_x, here.log_p_x)
    torch.testing.assert_close(whitened.log_p_z, here.log_p_z + 3 * u[..., 0])


def in_pairs(y):
    """Pairs with a covariance that is a latent in scale, as ordinary hierarchies have them."""
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)).expand([2]).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, y.new_tensor(2.0)))
    with pyro.plate("groups", len(y)):
        prior = dist.MultivariateNormal(y.new_zeros(2), scale_tril=sigma.unsqueeze(-1) * factor)
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta.sum(-1), 0.3), obs=y)


def layered(y):
    """A horseshoe whose slabs are logit-normal, in a plate left of that of the data."""
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(1.0)))
    with pyro.plate("rows", 2, dim=-2):
        width = pyro.sample("width", dist.Weibull(tau, 1.5))
        with pyro.plate("groups", len(y), dim=-1):
            loc_scale = transforms.AffineTransform(-width, width)
            logit = dist.TransformedDistribution(dist.Logistic(0 * y, 1.0), loc_scale)
            p = pyro.sample("p", dist.TransformedDistribution(logit, transforms.SigmoidTransform()))
            pyro.sample("y", dist.Normal(p, 0.3), obs=y)


@pytest.mark.parametrize("model", [in_pairs, layered])
def test_the_jacobian_is_that_of_differences(model):
    with evaluation_mode(model), torch.no_grad():
        path, other = coordinates_of(PriorPath(model, Y))
        assert path.way is Way.PLATE
        u = path.sample(3)
        there = other.at_latents_of(path, u)
        torch.testing.assert_close(path.at_latents_of(other, there), u)
        size = u.shape[2]
        steps = 1e-6 * torch.eye(size, dtype=EIGHT)
        ahead, behind = (
            other.at_latents_of(path, (u + sign * steps).reshape(-1, 1, size)) for sign in (1, -1)
        )
        here, whitened = path(u), other(there)
    jacobian = ((ahead - behind) / 2e-6).reshape(3, size, size)
    torch.testing.assert_close(whitened.log_p_x, here.log_p_x)
    expected = here.log_p_z.squeeze(1) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(whitened.log_p_z.squeeze(1), expected, atol=1e-5, rtol=0)


def test_a_location_that_makes_up_for_a_scale_moves_nonetheless():
    """N(−σ, σ): −σ + 1 · σ is the same number whatever σ is."""

    def model(y):
        sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
        with pyro.plate("groups", len(y)):
            theta = pyro.sample("theta", dist.Normal(-sigma, sigma))
            pyro.sample("y", dist.Normal(theta, 0.3), obs=y)

    with evaluation_mode(model):
        assert len(coordinates_of(PriorPath(model, Y))) == 2


def worst_island(model=None, **options):
    """Of chains that make every move twice or more."""
    options = ROUGH | {"num_steps": 6} | options
    return worst_of(smc(model or hierarchy(), Y, **options).log_px, hierarchy_evidence(Y))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (hierarchy(), {}),
        (dependent, {"num_islands": 1000}),
        pytest.param(
            looped,
            {"num_islands": 20, "num_steps": 4, "ess_share": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_islands_average_to_the_evidence(model, options):
    assert worst_island(model, **options) < 5


def planted_jacobian(monkeypatch):
    """Densities in whitened coordinates lack the Jacobian of these."""
    own = unconstrained.Assignment.assign

    def assign(self, site):
        own(self, site)
        if site["name"] in self.packing._whitened:
            self.ladj.pop(site["name"], None)

    monkeypatch.setattr(unconstrained.Assignment, "assign", assign)


def planted_places(monkeypatch):
    """Chains do not come back from the other coordinates."""

    def at(path, state, move, *, kept_in):
        if path is kept_in:
            return move(state)
        moved, info = move(path.state(interweaving.seen_from(kept_in, state.z, path)))
        return kept_in.state(moved.z), info

    monkeypatch.setattr(smc_pilot, "moved_in", at)


@pytest.mark.parametrize("plant", [planted_jacobian, planted_places])
def test_a_planted_error_biases_the_islands(plant, monkeypatch):
    plant(monkeypatch)
    assert worst_island() > 5


def test_chains_that_whitened_coordinates_cannot_tell_stay_where_they_are():
    """σ is 0 in float32 at log σ = −200, and θ / σ no number."""
    model, y = hierarchy(), Y.float()
    with evaluation_mode(model):
        path, other = coordinates_of(PriorPath(model, y))
        u = torch.zeros(2, 1, 4)
        u[0, 0] = torch.tensor([-200.0, 0.1, 0.2, 0.3])
        state = path.state(u)

        def shifted(there):
            moved = other.state(there.z + 1.0)
            yes = torch.ones_like(there.z[..., 0])
            return moved, interweaving.Info(yes, yes > 0, yes < 0)

        moved, _ = moved_in(other, state, shifted, kept_in=path)
        again = path.state(moved.z)
    assert torch.equal(moved.z[0], state.z[0])
    torch.testing.assert_close(moved.log_probs[:, 0], state.log_probs[:, 0], equal_nan=True)
    torch.testing.assert_close(moved.z[1, 0, 1:], torch.full((3,), math.e))
    torch.testing.assert_close(moved.log_probs[:, 1], again.log_probs[:, 1])
    torch.testing.assert_close(moved.grads[:, 1], again.grads[:, 1])


# Latents that are summed out: a whitened ε would stand for as many values as these have.

SHARES = (0.3, 0.6, 0.1)


@config_enumerate
def spiked(y, locs=(-1.0, 2.0, -1.0), scales=(1.0, 1.0, 1.0)):
    """θ_n ~ N(loc_k, σ · scale_k), k of three; the first and the last may be alike."""
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
    shift = pyro.sample("shift", dist.Normal(0.0, sigma))
    with pyro.plate("groups", len(y)):
        k = pyro.sample("k", dist.Categorical(line(*SHARES)))
        prior = dist.Normal(line(*locs)[k], sigma * line(*scales)[k])
        theta = pyro.sample("theta", prior)
        pyro.sample("y", dist.Normal(theta + shift, 0.3), obs=y)


def spiked_evidence(y, locs=(-1.0, 2.0, -1.0), scales=(1.0, 1.0, 1.0)):
    """Gaussian given σ and the three to the power of N assignments, by quadrature over log σ."""
    log_sigma = torch.linspace(-15, 3, 20_001, dtype=EIGHT)
    square = log_sigma.exp().square().reshape(-1, 1, 1)
    total = dist.HalfNormal(line(1.0)[0]).log_prob(log_sigma.exp()) + log_sigma
    terms = []
    for ks in itertools.product(range(3), repeat=len(y)):
        chosen = list(ks)
        covariance = square * (line(*scales)[chosen].square().diag() + 1.0)
        covariance = covariance + 0.09 * torch.eye(len(y), dtype=EIGHT)
        given = dist.MultivariateNormal(line(*locs)[chosen], covariance).log_prob(y)
        terms.append(given + line(*SHARES)[chosen].log().sum())
    return (torch.stack(terms).logsumexp(0) + total).logsumexp(0) + math.log(18 / 20_000)


@pytest.mark.parametrize(
    "prior",
    [{}, {"locs": (0.0, 0.0, 0.0), "scales": (0.3, 3.0, 0.3)}],
    ids=["location", "scale"],
)
def test_what_moves_with_latents_that_are_summed_out_is_not_whitened(prior):
    model = partial(spiked, **prior)
    with evaluation_mode(model), torch.no_grad():
        path, other = coordinates_of(PriorPath(model, Y))
        u = path.sample(4)
        there = other.at_latents_of(path, u)
    moved = [0, *range(2, 5)]
    torch.testing.assert_close(there[..., moved], u[..., moved])
    torch.testing.assert_close(there[..., 1], u[..., 1] / u[..., 0].exp())
    found = smc_evidence(model, Y, num_steps=8)
    assert abs(found.mean - spiked_evidence(Y, **prior)) < 4 * found.mc_se < 0.4


def test_discrete_parents_alone_whiten_nothing():
    """Of fixed locations, nothing that is drawn moves the prior."""

    @config_enumerate
    def model(y):
        with pyro.plate("groups", len(y)):
            k = pyro.sample("k", dist.Categorical(line(*SHARES)))
            theta = pyro.sample("theta", dist.Normal(0.0, line(0.1, 1.0, 2.0)[k]))
            pyro.sample("y", dist.Normal(theta, 0.3), obs=y)

    with evaluation_mode(model):
        assert len(coordinates_of(PriorPath(model, Y))) == 1


# What it is for: necks of funnels, that data say little of.

NECK = 0.1 * torch.randn(20, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_the_neck_of_a_hierarchy_is_entered(monkeypatch):
    """Without turns the error is three times as large, and no test of the run shows it."""
    model, exact = hierarchy(0.1, 2.0), hierarchy_evidence(NECK, 0.1, 2.0).item()
    found = [smc_evidence(model, NECK, seed=seed) for seed in range(6)]
    z = torch.tensor([(one.mean - exact) / one.mc_se for one in found])
    assert all(one.not_reliable is None for one in found)
    assert z.abs().max() < 4
    assert z.square().mean().sqrt() < 1.9  # χ² of 6: one in a thousand is above
    name = "evidence.inference.estimation.sequential.coordinates_of"
    monkeypatch.setattr(name, lambda path: [path])
    alone = [smc_evidence(model, NECK, seed=seed) for seed in range(3)]
    assert max(one.mc_se for one in found) < 0.7 * min(one.mc_se for one in alone)


@pytest.mark.slow
def test_weights_in_whitened_coordinates_confirm_it():
    """Of a spatial model: the neighbours' field is Gaussian, its scale a latent."""
    torch.manual_seed(0)
    ring = torch.eye(8).roll(1, 0) + torch.eye(8).roll(-1, 0)
    precision = torch.diag(ring.sum(1)) - 0.9 * ring
    y = 0.05 * torch.randn(8)

    def spatial(y):
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        field = dist.MultivariateNormal(torch.zeros(8), precision_matrix=precision / sigma**2)
        phi = pyro.sample("phi", field)
        with pyro.plate("regions", 8):
            pyro.sample("y", dist.Normal(phi, 0.05), obs=y)

    values, vectors = torch.linalg.eigh(precision.double())
    log_sigma = torch.linspace(-25, 5, 200_001, dtype=EIGHT)
    spread = (log_sigma.exp().square().unsqueeze(-1) / values + 0.05**2).sqrt()
    given = dist.Normal(0.0, spread).log_prob(y.double() @ vectors).sum(-1)
    prior = dist.HalfNormal(torch.ones((), dtype=EIGHT)).log_prob(log_sigma.exp()) + log_sigma
    exact = (given + prior).logsumexp(0) + math.log(30 / 200_000)
    found = marginal_likelihood(spatial, y)
    assert found.not_reliable is None
    assert "iw" in found.estimates
    assert abs(found.log_ml - exact) < 4 * found.se < 0.2


def test_data_with_latents_of_their_own_are_whitened_too():
    """x_n ~ N(z_n, 0.3), z_n ~ N(0, s_n), s_n ~ HalfNormal, one evidence for every datum."""

    def model(x):
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.HalfNormal(x.new_tensor(1.0)))
            z = pyro.sample("z", dist.Normal(0.0, s))
            pyro.sample("x", dist.Normal(z, 0.3), obs=x)

    x = as_data(Y)
    with evaluation_mode(model):
        assert len(coordinates_of(PriorPath(takes(model, x), x))) == 2
    exact = torch.stack([hierarchy_evidence(one.reshape(1)) for one in Y])
    log_px = smc(model, Y, **ROUGH | {"num_islands": 3000}).log_px
    assert worst_of(log_px, exact) < 5
    assert worst_of(log_px, exact + 0.1) > 5
