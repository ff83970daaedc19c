"""Posteriors far narrower than the prior, by guides that are too narrow: weights of a mixture."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from scipy import integrate, stats

from evidence.guides import FullRank, RealNVP
from evidence.inference import estimate_evidence, fit, importance_weighted_evidence
from evidence.inference.estimation import defensive, unknown
from evidence.inference.estimation.defensive import _Mixture
from evidence.inference.programs import estimators
from tests.test_enumeration import ENUMERATED, X, mixture_evidence, mixture_guide

NUM = 20  # of repetitions
DOUBLE = {"dtype": torch.float64}


class Regression:
    """Of y = X w + noise, w ~ N(0, 100²) but for the last, whose exponential is the latent."""

    def __init__(self, dim, dtype=torch.float64):
        generator = torch.Generator().manual_seed(dim)
        self.x = torch.randn(40, dim, generator=generator, dtype=torch.float64).to(dtype)
        noise = torch.randn(40, generator=generator, dtype=torch.float64).to(dtype)
        self.y, self.dim = self.x.sum(-1) + noise, dim
        precision = self.x.double().mT @ self.x.double() + torch.eye(dim).double() / 100**2
        self.covariance = precision.inverse()
        self.mean = self.covariance @ self.x.double().mT @ self.y.double()
        marginal = 100**2 * self.x.double() @ self.x.double().mT + torch.eye(40).double()
        normal = dist.MultivariateNormal(torch.zeros(40, **DOUBLE), marginal)
        self.exact = normal.log_prob(self.y.double()).item()

    def model(self, x, y):
        zero = x.new_zeros(())
        last = pyro.sample("last", dist.LogNormal(zero, 100.0)).log()
        w = pyro.sample("w", dist.Normal(zero, 100.0).expand([self.dim - 1]).to_event(1))
        with pyro.plate("rows", len(x)):
            mean = (x[:, :-1] * w).sum(-1) + x[:, -1] * last
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(self, factor):
        """The posterior, its scales divided by a factor, of the last latent alone, or of all."""
        factor = torch.as_tensor(factor, **DOUBLE).expand(self.dim)
        scaled = self.covariance / factor / factor.unsqueeze(-1)
        order = torch.arange(self.dim).roll(1)  # the last one first
        factor_of_all = torch.linalg.cholesky(scaled[order][:, order]).to(self.x)
        mean = self.mean[order].to(self.x)

        def guide(x, y):
            first = dist.LogNormal(mean[0], factor_of_all[0, 0])
            noise = (pyro.sample("last", first).log() - mean[0]) / factor_of_all[0, 0]
            loc = mean[1:] + factor_of_all[1:, 0] * noise.unsqueeze(-1)
            rest = dist.MultivariateNormal(loc, scale_tril=factor_of_all[1:, 1:])
            pyro.sample("w", rest)

        return guide

    def records(self, guide, num_particles=2000, share=0.2):
        for seed in range(NUM):
            torch.manual_seed(seed)
            yield importance_weighted_evidence(
                self.model,
                guide,
                (self.x, self.y),
                num_particles,
                defensive=share,
                search_modes=False,
            )

    def z_scores(self, guide, **options):
        records = self.records(guide, **options)
        return torch.tensor([(one.mean - self.exact) / one.mc_se for one in records])


def in_one_direction(dim, factor):
    return torch.tensor([1.0] * (dim - 1) + [factor])


NARROW = {
    "all of 2, by 2": (2, 2.0),
    "all of 10, by 1.5": (10, 1.5),
    "one of 3, by 1.5": (3, in_one_direction(3, 1.5)),
}


@pytest.mark.parametrize("case", NARROW)
def test_a_narrow_guide_of_a_posterior_far_narrower_than_the_prior(case):
    """Alone it is mostly told to be unreliable; with a mixture right, and so is the error bar."""
    dim, factor = NARROW[case]
    problem = Regression(dim)
    guide = problem.guide(factor)
    alone, mixed = list(problem.records(guide, share=0.0)), list(problem.records(guide))
    z = torch.tensor([(one.mean - problem.exact) / one.mc_se for one in mixed])
    assert sum(one.not_reliable is None for one in mixed) >= 0.9 * NUM
    assert sum(one.not_reliable is None for one in alone) <= 0.7 * NUM
    assert z.abs().max() < 4
    assert 0.6 < z.square().mean().sqrt() < 1.5
    assert sum(one.mc_se for one in mixed) < sum(one.mc_se for one in alone)


class WithoutJacobian(_Mixture):
    def _log_stretched(self, u):
        dim = self.path.dim
        parts = zip(super()._log_stretched(u), self.scales, strict=True)
        return [part + dim * math.log(scale) for part, scale in parts]


class WeighedByTheGuide(_Mixture):
    """p/q for draws of stretched guides."""

    def weighed(self):
        found = super().weighed()
        log_w = found.log_w.clone()
        stretched = slice(self.counts[0], -self.counts[-1])
        log_w[stretched] = found.log_ratio[stretched]
        return found._replace(log_w=log_w)


class WithoutCentre(_Mixture):
    """The way back goes to zero."""

    def _about(self, u, scale):
        return scale * u if scale < 1 else super()._about(u, scale)


@pytest.mark.parametrize("twin", [_Mixture, WithoutJacobian, WeighedByTheGuide, WithoutCentre])
def test_errors_of_stretching_are_seen(monkeypatch, twin):
    """The mean of all repetitions is right, and wrong with a planted error."""
    monkeypatch.setattr(defensive, "_Mixture", twin)
    problem = Regression(3)
    errors = torch.tensor([r.mean - problem.exact for r in problem.records(problem.guide(1.2))])
    z = errors.mean() / errors.std() * math.sqrt(NUM)
    assert abs(z) < 4 if twin is _Mixture else abs(z) > 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_either_precision(dtype):
    problem = Regression(2, dtype)
    torch.manual_seed(0)
    found = next(problem.records(problem.guide(1.5), 4000))
    assert found.dtype == dtype
    assert found.not_reliable is None
    assert abs(found.mean - problem.exact) < 4 * found.mc_se
    assert abs(found.mean - problem.exact + 0.3) > 4 * found.mc_se


NEARBY = init_to_value(
    values={"mean": torch.tensor(4.0).double(), "scale": torch.ones(()).double()}
)
MAKERS = {
    "AutoNormal": lambda model, data: AutoNormal(model, init_loc_fn=NEARBY),
    "AutoMultivariateNormal": lambda model, data: AutoMultivariateNormal(model, NEARBY),
    "AutoLaplace": lambda model, data: AutoLaplaceApproximation(model, NEARBY),
    "FullRank": lambda model, data: FullRank.for_model(model, data).double(),
    "RealNVP": lambda model, data: RealNVP.for_model(model, data).double(),
}


def scale_model(y):
    """A normal of unknown mean and scale, both far narrower than their priors."""
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 30.0))
    scale = pyro.sample("scale", dist.LogNormal(y.new_zeros(()), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


SCALED_Y = 3.7 + 1.3 * torch.special.ndtri((torch.arange(30, **DOUBLE) + 0.5) / 30)
FEW_Y = torch.tensor([3.1, 4.9, 2.2, 4.4, 3.3, 3.9, 5.6, 2.7], **DOUBLE)


def scale_evidence(y):
    """Gaussian given the scale, by adaptive quadrature over its logarithm."""
    n, total, squares = len(y), y.sum().item(), y.square().sum().item()

    def joint(log_scale):
        variance = math.exp(2 * log_scale)
        square = (squares - total**2 / (n + variance / 900)) / variance
        log_det = (n - 1) * math.log(variance) + math.log(variance + 900 * n)
        log_p = -0.5 * (square + log_det + n * math.log(2 * math.pi))
        return math.exp(log_p) * stats.norm.pdf(log_scale, 0, 3)

    return math.log(integrate.quad(joint, -4, 6, epsabs=0, epsrel=1e-10, limit=500)[0])


@pytest.mark.parametrize("kind", MAKERS)
def test_trained_guides_of_any_kind(kind):
    torch.manual_seed(0)
    pyro.clear_param_store()
    guide = MAKERS[kind](scale_model, SCALED_Y)
    fit(scale_model, guide, SCALED_Y, num_steps=600, lr=0.003, progress=False)
    if kind == "AutoLaplace":
        guide = guide.laplace_approximation(SCALED_Y)
    exact = scale_evidence(SCALED_Y)
    found = importance_weighted_evidence(scale_model, guide, SCALED_Y, 10_000, defensive=0.2)
    assert found.not_reliable is None
    assert abs(found.mean - exact) < 4 * found.mc_se
    assert abs(found.mean - exact + 0.3) > 4 * found.mc_se


def test_every_datum_has_a_centre_of_its_own():
    """Of 60 data far apart, by an amortized guide that is too narrow for each."""
    torch.manual_seed(0)
    x = 50 * torch.randn(60, **DOUBLE)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 50.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * 2500 / 2501, 0.5))

    exact = dist.Normal(0.0, math.sqrt(2501.0)).log_prob(x)
    records = estimate_evidence(model, guide, x, 2000, defensive=0.2)
    found = records["iw"]
    z = (found.log_px - exact) / found.log_px_variance.sqrt()
    assert found.not_reliable is None
    assert z.abs().max() < 4
    assert abs(z.mean() * math.sqrt(len(z))) < 4
    assert records["elbo"].k_hat.median() > 0.5  # still says what the guide is
    assert found.k_hat.median() < 0.3


def test_discrete_latents_that_are_summed_out():
    torch.manual_seed(0)
    exact = mixture_evidence(X)
    found = importance_weighted_evidence(ENUMERATED, mixture_guide, X, 4000, defensive=0.3)
    assert found.not_reliable is None
    assert abs(found.mean - exact) < 4 * found.mc_se
    assert abs(found.mean - exact + 0.3) > 4 * found.mc_se


def test_the_error_bar_is_that_of_strata():
    """Of components with fixed numbers of draws, beside what repetitions spread by."""
    counts, scales = (800, 150, 50), torch.tensor([1.0, 2.0, 0.5], **DOUBLE)
    locs = torch.tensor([3.0, 1.0, 9.0], **DOUBLE)
    parts = [
        loc + scale * (torch.rand(count, 2000, **DOUBLE) - 0.5)
        for loc, scale, count in zip(locs, scales, counts, strict=True)
    ]
    log_w = torch.cat(parts).log()
    share = estimators.share_within(log_w, counts)
    stated = (estimators.log_mean_variance(log_w) * share).mean()
    spread = estimators.iwae(log_w).var()
    assert abs(stated / spread - 1) < 5 * math.sqrt(2 / 2000)
    assert estimators.log_mean_variance(log_w).mean() > 3 * spread  # the twin, without strata
    assert (estimators.share_within(torch.zeros(9, 2), (5, 3, 1)) == 1).all()


# Advice.


AGE = torch.arange(2.0, 10.0, **DOUBLE)
HEIGHT = torch.tensor([0.86, 0.95, 1.03, 1.09, 1.16, 1.22, 1.28, 1.33], **DOUBLE)


def line(age, height):
    start = pyro.sample("start", dist.Normal(age.new_tensor(0.5), 0.5))
    slope = pyro.sample("slope", dist.Normal(age.new_tensor(0.0), 0.1))
    noise = pyro.sample("noise", dist.HalfNormal(age.new_tensor(0.1)))
    with pyro.plate("children", len(age)):
        pyro.sample("height", dist.Normal(start + slope * age, noise), obs=height)


def line_evidence():
    """Gaussian given the noise, quadrature over its logarithm."""
    features = torch.stack([0.5 * torch.ones(8, **DOUBLE), 0.1 * AGE], -1)
    log_noise = torch.linspace(-8, 1, 3001, **DOUBLE)
    noise = log_noise.exp()
    covariance = features @ features.T + noise.square()[:, None, None] * torch.eye(8, **DOUBLE)
    given = dist.MultivariateNormal(torch.full((8,), 0.5, **DOUBLE), covariance).log_prob(HEIGHT)
    log_p = given + dist.HalfNormal(0.1).log_prob(noise) + log_noise
    return (log_p.logsumexp(0) + (log_noise[1] - log_noise[0]).log()).item()


def advised():
    """Models, guides that fall short, data and evidences."""
    problem = Regression(2)
    return {
        "regression": (problem.model, problem.guide(2.0), (problem.x, problem.y), problem.exact),
        "scale": (scale_model, FullRank, (FEW_Y,), scale_evidence(FEW_Y)),
        "line": (line, FullRank, (AGE, HEIGHT), line_evidence()),
    }


@pytest.mark.parametrize("name", ["regression", "scale", "line"])
def test_the_advice_of_an_unreliable_estimate_leads_to_the_evidence(name):
    model, guide, data, exact = advised()[name]
    x = data if len(data) > 1 else data[0]
    if guide is FullRank:
        guide = FullRank.for_model(model, x).double()  # at the mode, with the curvature there
    torch.manual_seed(1)
    first = importance_weighted_evidence(model, guide, x, 10_000)
    said = re.search(r"k̂ is too large: .*?defensive=([0-9.]+), --defensive", first.not_reliable)
    torch.manual_seed(2)
    share = float(said.group(1))
    found = importance_weighted_evidence(model, guide, x, 10_000, defensive=share)
    assert found.not_reliable is None
    assert abs(found.mean - exact) < 4 * found.mc_se
    assert abs(found.mean - exact + 0.3) > 4 * found.mc_se
    # Where it has been followed, or is not to be had, it is not given.
    assert "defensive" not in str(found)


# Draws at which nothing can be computed.


def overflowing(y):
    """A rate of exp(40 z) is infinite in float32 above 2.2, and its density NaN."""
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson((40 * z).exp()), obs=y)


def about_one(y):
    pyro.sample("z", dist.Normal(y.new_tensor(1.0), 0.25))


class KnownNearby(dist.Normal):
    """Whose density is NaN from five scales on."""

    def log_prob(self, value):
        far = (value - self.loc).abs() > 5 * self.scale
        return torch.where(far, math.nan, super().log_prob(value))


def known_nearby(y):
    pyro.sample("z", KnownNearby(y.new_tensor(1.0), 0.25))


def flat(y):
    z = pyro.sample("z", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 0.3), obs=y)


UNKNOWN = {
    "model": (overflowing, about_one, torch.tensor([math.exp(40.0)]), "NaN by site 'y' at"),
    "guide": (flat, known_nearby, torch.ones(1), "density of the proposal is NaN at"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_too_many_draws_where_nothing_can_be_computed_are_told(monkeypatch, case):
    model, guide, y, message = UNKNOWN[case]

    def told(share):
        torch.manual_seed(0)
        return importance_weighted_evidence(
            model, guide, y, 4000, defensive=share, search_modes=False
        )

    many = told(0.6)
    assert message in many.not_reliable
    assert re.search(r"at \d+ of 4,000 draws \([0-9.]+%; near z = ", many.not_reliable)
    assert math.isfinite(many.mean)
    few = told(0.05)
    assert few.caveat is None
    assert math.isfinite(few.mean)
    monkeypatch.setattr(unknown, "_MOST", 1.0)  # the planted error: nothing is said
    assert told(0.6).caveat is None
