"""Guides around guides: refined and unamortized; and guides of several sites."""

import contextlib
import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO

from evidence import guides
from evidence.guides import (
    IAF,
    FullRank,
    Hierarchical,
    LowRank,
    MeanField,
    Mixture,
    Planar,
    Refined,
    Unamortized,
)
from evidence.guides.common_noise import CommonNoise
from evidence.inference import estimate_evidence, fit, log_weights
from evidence.inference.programs.data import Data
from tests.conftest import make_oracle

LAYERS = {"z2": (2, constraints.real_vector), "z1": (3, constraints.real_vector)}


@torch.no_grad()
def log_w_of(model, guide, x, num_particles=400):
    """Log-weights `[S, B]`, the guide run once: `log_weights` checks it, and refines many times."""
    posterior = guide.posterior(x)
    z = posterior.sample((num_particles,))
    return model.log_joint(x, z) - posterior.log_prob(z)


def elbo(model, guide, x, num_particles=400):
    return log_w_of(model, guide, x, num_particles).mean().item()


def best_mean_field(model, x):
    """The exact ELBO of the best diagonal Gaussian: variances 1 / Λ_ii (Bishop 2006, eq. 10.14)."""
    exact = model.posterior(x)
    scale = exact.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()
    best = dist.MultivariateNormal(exact.loc, scale_tril=torch.diag_embed(scale))
    return (model.log_evidence(x) - torch.distributions.kl_divergence(best, exact)).mean().item()


@pytest.fixture
def data(oracle):
    return oracle(None, size=24)


@pytest.fixture
def untrained():
    return MeanField(3, 10, hidden_dims=()).double()


def test_refinement_reaches_the_best_of_its_family(oracle, data, untrained):
    """With many draws and steps the refined ELBO is the closed-form best, and never above it."""
    refined = Refined(untrained, oracle, num_steps=400, num_particles=200, lr=0.03)
    best = best_mean_field(oracle, data)
    log_w = log_w_of(oracle, refined, data)
    gap = best - log_w.mean().item()
    se = log_w.mean(1).std().item() / math.sqrt(400)
    assert -5 * se < gap < 0.05
    assert best - elbo(oracle, untrained, data) > 1.0  # what there was to gain


def test_more_steps_are_better(oracle, data, untrained):
    values = [
        elbo(oracle, Refined(untrained, oracle, num_steps=steps), data) for steps in (1, 10, 60)
    ]
    assert elbo(oracle, untrained, data) < values[0] < values[1] < values[2]


def test_a_single_draw_is_not_overfitted(oracle, data, untrained, monkeypatch):
    """Steps on one draw each help; steps that all see the same one make matters worse."""
    start = elbo(oracle, untrained, data)
    refined = Refined(untrained, oracle, num_steps=100, num_particles=1)
    assert elbo(oracle, refined, data) > start + 1.0
    planted = "evidence.guides.refined.seed_torch"
    monkeypatch.setattr(planted, lambda step: torch.manual_seed(0))  # the planted error
    assert elbo(oracle, refined, data) < start - 1.0


def test_a_refined_posterior_is_a_function_of_x(oracle, data, untrained):
    refined = Refined(untrained, oracle, num_steps=5)
    state = torch.get_rng_state()
    first, second = refined.local_parameters(data), refined.local_parameters(data)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


class GammaGuide(MeanField):
    """Its draws are made of a row's parameters, not of noise alone."""

    def posterior(self, x):
        log_shape, log_rate = self.encode(x)
        return dist.Gamma(log_shape.exp() + 0.5, log_rate.exp()).to_event(1)


class StudentGuide(MeanField):
    """Its draws take two kinds of noise."""

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        return dist.StudentT(4.0, loc, log_scale.exp()).to_event(1)


NOISES = [MeanField, FullRank, LowRank, Mixture, Planar, IAF, GammaGuide, StudentGuide]


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("num_particles", [1, 8])
def test_refined_rows_do_not_depend_on_the_batch(oracle, data, kind, num_particles, monkeypatch):
    """Parameters and log q of a row, alone and in a batch; by row's noise they move apart."""
    guide = kind(3, 10, hidden_dims=()).double()
    refined = Refined(guide, oracle, num_steps=6, num_particles=num_particles)

    def worst_difference():
        together, z = refined.local_parameters(data), refined.posterior(data).sample((2,))
        log_q = refined.posterior(data).log_prob(z.clone())
        worst = 0.0
        for rows in (torch.tensor([5]), torch.tensor([23, 0]), torch.arange(24).flip(0)):
            alone = refined.local_parameters(data[rows]) - together[rows]
            score = refined.posterior(data[rows]).log_prob(z[:, rows]) - log_q[:, rows]
            worst = max(worst, alone.abs().max().item(), score.abs().max().item())
        return worst

    assert worst_difference() < 1e-7
    monkeypatch.setattr(guides.refined, "CommonNoise", lambda *_: contextlib.nullcontext())
    assert worst_difference() > 1e-3


def test_a_refined_elbo_does_not_depend_on_the_size_of_chunks(oracle, data, untrained):
    """Of the same z: what evaluates them in parts, finds the same scores; the planted error not."""
    refined = Refined(untrained, oracle, num_steps=6, num_particles=1)
    z = refined.posterior(data).sample((50,))
    scores = [
        torch.cat(
            [
                refined.posterior(data[rows]).log_prob(z[:, rows])
                for rows in torch.arange(24).split(size)
            ],
            dim=1,
        )
        for size in (24, 7, 1)
    ]
    assert all(torch.allclose(score, scores[0], rtol=0, atol=1e-8) for score in scores)
    records = [
        estimate_evidence(oracle, refined, data, 200, chunk_size=size)["elbo"]
        for size in (24 * 200, 7 * 200, 200)
    ]
    for record in records[1:]:
        assert abs(record.mean - records[0].mean) < 5 * math.hypot(record.mc_se, records[0].mc_se)


def test_noise_is_common_to_rows_and_new_for_particles():
    """Every way to draw: in place, by size, like another tensor, with a row's parameters."""
    ones = torch.ones(4, 3, 2).double()
    draws = {
        "in place": lambda: torch.empty(4, 3, 2).normal_(),
        "by size": lambda: torch.rand(4, 3, 2),
        "like": lambda: torch.randn_like(ones),
        "gamma": lambda: torch._standard_gamma(ones),
        "bernoulli": lambda: torch.bernoulli(0.5 * ones),
        "dropout": lambda: torch.dropout(ones, 0.5, train=True),
        "normal": lambda: torch.normal(0 * ones, ones),
    }
    for name, draw in draws.items():
        with CommonNoise(4, 3):
            z = draw()
            assert (z == z[:, :1]).all(), name
            assert (z != z[:1]).any(), name
            assert not torch.equal(draw(), z), name
        assert (draw() != z).any(), name
    with CommonNoise(4, 3):
        other = torch.randn(3, 4, 2)  # another shape is none of its business
    assert not (other == other[:, :1]).all()


def test_refinement_leaves_the_model_and_its_gradients_alone(data, untrained):
    model = make_oracle().requires_grad_(True)
    refined = Refined(untrained, model, num_steps=3)
    before = copy.deepcopy(model.state_dict())
    refined(data)
    assert all(p.grad is None for p in (*model.parameters(), *refined.parameters()))
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    names = {name for name, _ in refined.named_parameters()}
    assert names == {f"guide.{name}" for name, _ in untrained.named_parameters()}


def test_refined_sites_stay_inside(oracle, data, untrained):
    """The model that is run to refine leaves no trace, also under a plate of particles."""
    refined = Refined(untrained, oracle, num_steps=2)
    with pyro.plate("particles", 7, dim=-2):
        trace = poutine.trace(refined).get_trace(data)
    assert set(trace.stochastic_nodes) == {"z", "data"}
    assert trace.nodes["z"]["value"].shape == (7, 24, 3)


def test_a_refined_guide_trains(oracle, data, untrained):
    refined = Refined(untrained, oracle, num_steps=3)
    history = fit(oracle, refined, data, num_epochs=60, lr=0.02, batch_size=24, progress=False)
    assert history.train_loss[-1] < history.train_loss[0] - 0.5


def test_unamortized_parameters_reach_the_best_of_the_family(oracle, data, untrained):
    guide = Unamortized(untrained, data)
    loss = Trace_ELBO(num_particles=20, vectorize_particles=True)
    fit(
        oracle, guide, data, num_epochs=1000, lr=0.1, lr_decay=0.995, batch_size=24, objective=loss,
        progress=False,
    )  # fmt: skip
    log_w = log_weights(oracle, guide, data, 2000)
    gap = best_mean_field(oracle, data) - log_w.mean().item()
    se = log_w.mean(1).std().item() / math.sqrt(2000)
    assert -5 * se < gap < 0.02


def test_unamortized_rows_are_known_by_their_values(data, untrained):
    guide = Unamortized(untrained, data)
    with torch.no_grad():
        guide.table.normal_()
    shuffled = torch.randperm(24)
    loc = guide.posterior(data).base_dist.loc
    assert torch.equal(guide.posterior(data[shuffled]).base_dist.loc, loc[shuffled])
    assert torch.equal(guide.posterior(data[:1].clone()).base_dist.loc, loc[:1])
    twice = Unamortized(untrained, torch.cat([data[:1], data[:1]]))
    assert torch.equal(*twice.local_parameters(torch.cat([data[:1], data[:1]])))


def test_unamortized_starts_at_the_encoders_answer_and_drops_it(data, untrained):
    guide = Unamortized(untrained, data)
    assert torch.equal(guide.table, untrained.local_parameters(data))
    assert [name for name, _ in guide.named_parameters()] == ["table"]


def test_unamortized_names_data_it_does_not_know(data, untrained):
    guide = Unamortized(untrained, data)
    with pytest.raises(ValueError, match="24 data it was made with, got another one at row 1"):
        guide.posterior(torch.cat([data[:1], data[:1] + 1e-9]))


def location_and_scale(x):
    with pyro.plate("data", len(x)):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        tau = pyro.sample("tau", dist.LogNormal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(mu.expand(*mu.shape[:-1], 8), tau).to_event(1), obs=x)


@pytest.mark.parametrize("kind", [MeanField, FullRank, Planar])
def test_a_density_over_several_sites_has_the_jacobian(kind):
    """log q(mu, tau) = log q(mu, log tau) − log tau."""
    x = torch.rand(5, 8).double()
    guide = kind.for_model(location_and_scale, x, hidden_dims=(16,), standardize="none")
    z = guide.posterior(x).sample((4,))
    assert (z[..., 1] > 0).all()
    u = torch.stack([z[..., 0], z[..., 1].log()], -1)
    inside = guide.guide.posterior(guide.inputs(Data((x,)))).log_prob(u)
    got = guide.posterior(x).log_prob(z.clone())
    assert torch.allclose(got, inside - z[..., 1].log(), atol=1e-9)
    assert not torch.allclose(got, inside, atol=1e-3)  # the planted error: no Jacobian


def test_a_guide_over_several_sites_samples_each():
    x = torch.rand(5, 8).double()
    trace = poutine.trace(FullRank.for_model(location_and_scale, x)).get_trace(x)
    assert set(trace.stochastic_nodes) == {"_latent", "mu", "tau", "data"}
    assert trace.nodes["tau"]["value"].shape == (5, 1)
    assert (trace.nodes["tau"]["value"] > 0).all()


def gamma_model(x):
    """tau ~ Gamma(2, 1), x_i ~ Exponential(tau): the evidence of n exponentials is known."""
    with pyro.plate("data", len(x)):
        tau = pyro.sample("tau", dist.Gamma(torch.tensor([2.0]).double(), 1.0).to_event(1))
        pyro.sample(
            "x", dist.Exponential(tau.expand(*tau.shape[:-1], x.shape[1])).to_event(1), obs=x
        )


def test_weights_over_a_constrained_site_estimate_the_evidence():
    """log p(x) = log Γ(2 + n)/Γ(2) − (2 + n) log(1 + Σx), in closed form."""
    x = torch.rand(6, 4).double() + 0.1
    guide = MeanField.for_model(gamma_model, x, hidden_dims=(), standardize="none")
    guide.guide.encoder[-1].weight.data *= 0.1
    log_w = log_weights(gamma_model, guide, x, 20_000)
    exact = math.lgamma(6.0) - 6 * (1 + x.sum(1)).log()
    estimate = log_w.logsumexp(0) - math.log(20_000)
    ess = (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()
    z_score = (estimate - exact) / (1 / ess - 1 / 20_000).sqrt()
    assert z_score.abs().max() < 5
    assert (estimate + math.log(1.2) - exact).abs().min() > 5 * (1 / ess).sqrt().max()


@pytest.mark.parametrize("direction", ["bottom-up", "top-down"])
def test_layers_are_drawn_at_their_sites_in_the_order_of_the_direction(direction):
    guide = Hierarchical(5, 8, latents=LAYERS, direction=direction, hidden_dims=(16,)).double()
    x = torch.rand(4, 8).double()
    trace = poutine.trace(guide).get_trace(x)
    trace.compute_log_prob()
    drawn = [name for name in trace.stochastic_nodes if name != "data"]
    assert drawn == (["z1", "z2"] if direction == "bottom-up" else ["z2", "z1"])
    z = torch.cat([trace.nodes["z2"]["value"], trace.nodes["z1"]["value"]], -1)  # as in the model
    expected = trace.nodes["z1"]["log_prob"] + trace.nodes["z2"]["log_prob"]
    assert torch.allclose(guide.posterior(x).log_prob(z), expected, atol=1e-12)
    assert torch.equal(guide.site_values(z)["z1"], trace.nodes["z1"]["value"])
    # the planted error: the layers packed the other way round
    swapped = torch.cat([trace.nodes["z1"]["value"], trace.nodes["z2"]["value"]], -1)
    assert not torch.allclose(guide.posterior(x).log_prob(swapped), expected, atol=1e-3)


def shared(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0).expand([2]).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Hierarchical(3, 8, latents={"z": (3, constraints.real)}), "two or more latent"),
        (lambda: Hierarchical(5, 8, latents=LAYERS, direction="botom-up"), "did you mean"),
        (
            lambda: Hierarchical(2, 8, latents={**LAYERS, "z1": (1, constraints.positive)}),
            "real, got 'z1': Hierarchical.for_model maps",
        ),
        (lambda: Refined.for_model(shared, torch.ones(3, 2)), "the data share a latent"),
        (lambda: Unamortized.for_model(shared, (torch.ones(3, 2),)), "data of one tensor"),
        (lambda: Refined(MeanField(3, 8), print, num_steps=0), "num_steps of at least 1, got 0"),
        (lambda: Refined(MeanField(3, 8), print, lr=0.0), "lr > 0, got 0.0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
