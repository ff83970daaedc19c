"""Approximation and amortization gaps against their closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from evidence.guides import FullRank, MeanField
from evidence.inference import Evidence, fit
from evidence.inference.estimation import gaps
from evidence.inference.estimation.gaps import inference_gaps
from tests.conftest import make_oracle


def little_trained(kind):
    model = make_oracle()
    pyro.set_rng_seed(2)
    guide = kind(3, 10, hidden_dims=()).double()
    x = model(None, size=1000)
    fit(model, guide, x, num_epochs=3, batch_size=100, lr=0.02, progress=False)
    return model, guide, model(None, size=80)


@pytest.fixture(scope="module")
def mean_field():
    model, guide, x = little_trained(MeanField)
    exact = Evidence.exact(model.log_evidence(x))
    return model, guide, x, inference_gaps(model, guide, x, evidence=exact)


@pytest.fixture(scope="module")
def full_rank():
    model, guide, x = little_trained(FullRank)
    return model, guide, x, inference_gaps(model, guide, x)


def as_multivariate(posterior):
    if isinstance(posterior, dist.MultivariateNormal):
        return posterior
    base = posterior.base_dist
    return dist.MultivariateNormal(base.loc, scale_tril=torch.diag_embed(base.scale))


def kl_from_posterior(model, guide, x):
    with torch.no_grad():
        return kl_divergence(as_multivariate(guide.posterior(x)), model.posterior(x))


def best_diagonal_kl(model, x):
    """Given precision Λ, the best diagonal Gaussian has variances 1/Λ_ii."""
    precision = model.posterior(x[:1]).precision_matrix[0]
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


def z_score(difference, expected):
    return (difference.mean - expected) / difference.mc_se


def test_the_approximation_gap_of_mean_field_is_its_closed_form(mean_field):
    """The twins, q for q* and the closed form of marginal variances, fail."""
    model, _, x, found = mean_field
    expected = best_diagonal_kl(model, x)
    assert abs(z_score(found.approximation, expected)) < 5
    assert abs(z_score(found.total, expected)) > 5
    covariance = model.posterior(x[:1]).covariance_matrix[0]
    marginal = 0.5 * (covariance.inverse().diagonal() * covariance.diagonal() - 1).sum().item()
    assert abs(z_score(found.approximation, expected + marginal)) > 5


def test_the_approximation_gap_of_full_rank_is_zero(full_rank):
    """1e-9 nat for rounding: q* is the posterior, and all weights are equal.

    With what the encoder loses the twin is not.
    """
    _, _, _, found = full_rank
    approximation = found.approximation
    assert abs(approximation.mean) < 5 * approximation.mc_se + 1e-9
    assert approximation.mean < 1e-4
    assert abs(found.total.mean) > 5 * found.total.mc_se + 1e-9


@pytest.mark.parametrize("which", ["mean_field", "full_rank"])
def test_the_amortization_gap_is_the_difference_of_the_divergences(which, request):
    """Per datum too: all |z| < 5. The twin, the gap of the neighbour, is not."""
    model, guide, x, found = request.getfixturevalue(which)
    least = best_diagonal_kl(model, x) if which == "mean_field" else 0.0
    expected = kl_from_posterior(model, guide, x) - least
    gap = found.amortization
    assert abs(z_score(gap, expected.mean().item())) < 5
    z_scores = (gap.per_datum - expected) / gap.variance.sqrt()
    assert z_scores.abs().max() < 5
    planted = (gap.per_datum - expected.roll(1)) / gap.variance.sqrt()
    assert planted.abs().max() > 5
    assert gap.data_se > gap.mc_se  # data differ in it, and it is known how much


@pytest.mark.parametrize("which", ["mean_field", "full_rank"])
def test_the_gaps_add_up_for_every_datum(which, request):
    *_, x, found = request.getfixturevalue(which)
    parts = found.approximation.per_datum + found.amortization.per_datum
    assert torch.allclose(parts, found.total.per_datum, atol=1e-9)
    assert found.converged
    assert found.best_parameters.shape[0] == len(x)
    assert "amortization: +0." in str(found)


def test_common_noise_makes_the_amortization_gap_precise():
    """A step of 0.02 in the log-scales from the optimum: the paired error is a fifth or less."""
    model, guide, x = little_trained(MeanField)
    exact = model.posterior(x)
    log_scale = exact.precision_matrix.diagonal(dim1=-2, dim2=-1).log() / -2
    best = torch.cat([exact.loc, log_scale], dim=1)
    near = torch.cat([exact.loc, log_scale + 0.02], dim=1)
    family = gaps._Family(model, guide, x)
    at_start, at_best, gap = gaps._bounds(family, near, best, 400)
    assert gap.mc_se < math.hypot(at_start.mc_se, at_best.mc_se) / 5
    expected = 3 * (0.5 * (math.exp(0.04) - 1) - 0.02)
    assert abs(z_score(gap, expected)) < 5
    assert abs(z_score(gap, 3 * expected)) > 5


def test_q_star_judged_by_the_noise_it_was_optimized_on_looks_too_good(monkeypatch):
    """The planted selection bias: four draws per datum, always the same, and the ELBO on these."""
    model, guide, x = little_trained(MeanField)

    def fixed_noise(family, parameters, num_draws):
        posterior = family.guide.given(parameters).posterior(family.x)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            z = posterior.rsample((num_draws,))
        return (posterior.log_prob(z) - model.log_joint(family.x, z)).sum() / num_draws

    monkeypatch.setattr(gaps, "_loss", fixed_noise)
    family = gaps._Family(model, guide, x)
    search = gaps._Search(lr=0.02, num_draws=4, max_steps=1000, restart=False)
    start = guide.local_parameters(x).detach()
    overfitted, _, _ = gaps._ascend(family, start, search)
    exact, best = model.log_evidence(x).mean().item(), best_diagonal_kl(model, x)
    planted = exact + fixed_noise(family, overfitted, 4).item() / len(x)
    assert planted < best - 0.1
    fresh = exact - family.weights(overfitted, slice(0, len(x)), 1000).mean().item()
    assert fresh > best + 0.1
    # what is worse than its start on fresh draws is not taken
    chosen = gaps._best_of(family, [start, overfitted], 1000)
    taken = exact - family.weights(chosen, slice(0, len(x)), 1000).mean().item()
    assert best < taken < fresh


class TwoModes:
    """A guide of no class of ours, whose start is in the lesser mode for two of twenty data."""

    def local_parameters(self, x):
        loc = torch.full_like(x, 3.0)
        loc[:2] = -3.0
        return torch.cat([loc, torch.full_like(x, -1.0)], dim=1)

    def given(self, parameters):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(parameters[:, 0], parameters[:, 1].exp()))

        return guide

    def __call__(self, x):
        return self.given(self.local_parameters(x))(x)


def two_modes(x):
    """Nine tenths of p(z) at 3, the rest at −3; x knows nothing of z."""
    weights = torch.tensor([0.9, 0.1]).double()
    mixture = dist.MixtureSameFamily(
        dist.Categorical(weights), dist.Normal(torch.tensor([3.0, -3.0]).double(), 0.5)
    )
    with pyro.plate("data", len(x)):
        pyro.sample("z", mixture)
        pyro.sample("x", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("restart", [False, True])
def test_a_restart_finds_the_better_mode(restart):
    """A Gaussian within one mode of mass m has KL −log m: 2.303 in the lesser one, else 0.105."""
    x = torch.randn(20, 1).double()
    exact = Evidence.exact(dist.Normal(0.0, 1.0).log_prob(x).squeeze(1))
    options = {"evidence": exact, "restart": restart, "max_steps": 600}
    found = inference_gaps(two_modes, TwoModes(), x, **options)
    expected = torch.full((20,), -math.log(0.9)).double()
    if not restart:
        expected[:2] = -math.log(0.1)
    error = found.approximation.per_datum - expected
    assert (error.abs() < 5 * found.approximation.variance.sqrt() + 1e-3).all()


class OfPixels:
    """q(z | x) of a model with a plate of pixels, in a plate named otherwise."""

    def local_parameters(self, x):
        return torch.zeros(len(x), 2).to(x)

    def given(self, parameters):
        def guide(x):
            with pyro.plate("rows", len(x), dim=-2):
                loc, log_scale = parameters.unsqueeze(1).split(1, dim=2)
                pyro.sample("z", dist.Normal(loc[..., 0], log_scale[..., 0].exp()))

        return guide


def pixels(x):
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1).to(x), 1.0))
        with pyro.plate("pixels", 4, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("num_data", [4, 5])
def test_any_pair_with_local_parameters_even_with_as_many_pixels_as_data(num_data):
    """The posterior is Gaussian: no approximation gap, and N(0, 1) amortizes badly."""
    x = torch.randn(num_data, 4).double()
    found = inference_gaps(pixels, OfPixels(), x, max_steps=800, lr=0.02)
    assert abs(found.approximation.mean) < 1e-4
    exact = dist.Normal(x.sum(1) / 5, 5**-0.5)
    expected = kl_divergence(dist.Normal(torch.zeros(num_data).double(), 1.0), exact)
    z_scores = (found.amortization.per_datum - expected) / found.amortization.variance.sqrt()
    assert z_scores.abs().max() < 5


class OfTwoTensors:
    """q(z | x, offset) of a model of two tensors."""

    def local_parameters(self, x, offset):
        return torch.zeros(len(x), 2).to(offset)

    def given(self, parameters):
        def guide(x, offset):
            with pyro.plate("data", len(offset)):
                pyro.sample("z", dist.Normal(parameters[:, 0], parameters[:, 1].exp()))

        return guide


def two_tensors(x, offset):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z + offset, 1.0), obs=x)


def test_a_pair_of_several_tensors_has_gaps():
    x, offset = torch.randn(6).double(), torch.randn(6).double()
    found = inference_gaps(two_tensors, OfTwoTensors(), (x, offset), max_steps=800, lr=0.02)
    assert abs(found.approximation.mean) < 1e-4
    exact = dist.Normal((x - offset) / 2, 0.5**0.5)
    expected = kl_divergence(dist.Normal(torch.zeros(6).double(), 1.0), exact)
    z_scores = (found.amortization.per_datum - expected) / found.amortization.variance.sqrt()
    assert z_scores.abs().max() < 5


class Coin:
    """A latent that cannot be reparameterized."""

    def local_parameters(self, x):
        return torch.zeros_like(x)

    def given(self, parameters):
        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=parameters[:, 0]))

        return guide


def coin(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3).double()))
        pyro.sample("x", dist.Normal(2 * z.unsqueeze(-1) - 1, 1.0).to_event(1), obs=x)


def test_discrete_latents_have_gaps_too():
    """log odds of z are log(0.3/0.7) + 2x; q* is found to 0.01 nat by the score function."""
    x = torch.randn(10, 1).double()
    found = inference_gaps(coin, Coin(), x, max_steps=1200, lr=0.02)
    exact = dist.Bernoulli(logits=math.log(0.3 / 0.7) + 2 * x.squeeze(1))
    expected = kl_divergence(dist.Bernoulli(torch.full((10,), 0.5).double()), exact).mean().item()
    assert found.approximation.mean > -5 * found.approximation.mc_se
    assert found.approximation.mean < 0.01
    assert abs(found.total.mean - expected) < 5 * found.total.mc_se


def test_parameters_and_random_state_of_others_stay_as_they_were():
    model, guide, x = little_trained(MeanField)
    model.requires_grad_(True)
    before = {n: p.clone() for n, p in guide.state_dict().items()}
    inference_gaps(model, guide, x[:5], max_steps=100, num_particles=50)
    assert all(torch.equal(before[n], p) for n, p in guide.state_dict().items())
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))
    assert list(pyro.get_param_store().keys()) == []


def test_a_search_that_is_cut_off_says_so():
    model, guide, x = little_trained(MeanField)
    found = inference_gaps(model, guide, x[:5], max_steps=100, num_particles=50)
    assert not found.converged
    assert "still gaining after 100 steps" in str(found)


def constant_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


class WrongShape(Coin):
    def local_parameters(self, x):
        return torch.zeros(3)


X = torch.zeros(4, 10).double()
BAD = {
    "plain guide": (constant_guide, {}, r"local_parameters\(x\) and given.*got function"),
    "evidence": (None, {"evidence": Evidence.exact(torch.zeros(3))}, "of 4 data, got 3"),
    "parameters": (WrongShape(), {}, r"shape \(4, P\), got \(3,\)"),
    "one particle": (None, {"num_particles": 1}, "num_particles of at least 2, got 1"),
    "draws": (None, {"num_draws": 0}, "num_draws of at least 1, got 0"),
    "steps": (None, {"max_steps": 0}, "max_steps of at least 1, got 0"),
    "lr": (None, {"lr": -1.0}, "lr > 0, got -1.0"),
    "divergence": (None, {"lr": 1e4}, r"not finite at step \d+: lower the learning rate"),
}


@pytest.mark.parametrize(("guide", "options", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(guide, options, message):
    guide = guide or MeanField(3, 10, hidden_dims=()).double()
    with pytest.raises(ValueError, match=message):
        inference_gaps(make_oracle(), guide, X, **options)
