"""Learnt priors: normalized, drawn from as they are scored, and trained along with the decoder."""

import math

import pyro.distributions as dist
import pytest
import torch

from evidence.guides import MeanField
from evidence.inference import fit
from evidence.models import VAE
from evidence.models.priors import FlowPrior, MixturePrior, VampPrior
from evidence.models.priors.flow import Flow
from tests.box_rule import box_rule


def randomized(prior, scale=0.5):
    """The prior in double precision, away from where it starts."""
    prior = prior.double()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return prior


PRIORS = {
    "mixture": lambda: randomized(MixturePrior(2, num_components=3), 0.3),
    "vampprior": lambda: randomized(VampPrior(2, 7, num_components=3, hidden_dims=(5,)), 0.1),
    "flow": lambda: randomized(FlowPrior(2, num_flows=3), 0.1),
}


NODES, LOG_WEIGHTS = box_rule(-16.0, 16.0, 2, num_panels=70, order=8)


def log_mass(log_prob):
    return (log_prob(NODES) + LOG_WEIGHTS).logsumexp(0).item()


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_priors_integrate_to_one(make):
    with torch.no_grad():
        assert abs(log_mass(make()().log_prob)) < 1e-6


def test_a_vampprior_without_its_log_k_does_not():
    """The planted error: the sum of the components in place of their mean is log K too high."""
    prior = PRIORS["vampprior"]()
    with torch.no_grad():
        loc, log_scale = prior.encode()
        components = dist.Normal(loc, log_scale.exp()).to_event(1)
        mass = log_mass(lambda z: components.log_prob(z.unsqueeze(-2)).logsumexp(-1))
    assert mass == pytest.approx(math.log(3), abs=1e-6)


def test_a_flow_without_its_log_determinant_does_not():
    prior = PRIORS["flow"]()

    def without(z):
        for layer in reversed(prior.layers):
            z, _ = layer.pull(z)
        return dist.Normal(0.0, 1.0).log_prob(z).sum(-1)

    with torch.no_grad():
        assert abs(log_mass(without)) > 0.01


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_draws_are_from_the_density(make):
    """Both means of 40,000 draws, |z| < 5; a shift by 0.1 standard deviations gives |z| = 20."""
    n, prior = 40_000, make()()
    with torch.no_grad():
        z, log_p_nodes = prior.sample((n,)), prior.log_prob(NODES)
        log_p, mass = prior.log_prob(z), (log_p_nodes + LOG_WEIGHTS).exp()
    edge = (mass.unsqueeze(1) * NODES).sum(0)
    spread = ((mass.unsqueeze(1) * NODES**2).sum(0) - edge**2).sqrt()
    for axis in (0, 1):
        means = (z[:, axis].mean(), (z[:, axis] + 0.1 * spread[axis]).mean())
        z_scores = [abs(m - edge[axis]) / spread[axis] * math.sqrt(n) for m in means]
        assert z_scores[0] < 5 < z_scores[1]
    # and E[log p], which knows about more than the means
    exact = (mass * log_p_nodes).sum()
    variance = (mass * (log_p_nodes - exact) ** 2).sum()
    assert abs(log_p.mean() - exact) / (variance / n).sqrt() < 5


@pytest.mark.parametrize("latent_dim", [2, 3, 6])
def test_the_flows_log_determinant_is_autograds(latent_dim):
    prior = randomized(FlowPrior(latent_dim, num_flows=4), 0.3)

    def push(x):
        for layer in prior.layers:
            x, _ = layer.push(x)
        return x

    ladj = []
    for u in 2 * torch.randn(10, latent_dim).double():
        ladj.append(torch.linalg.slogdet(torch.autograd.functional.jacobian(push, u))[1])
        expected = dist.Normal(0.0, 1.0).log_prob(u).sum() - ladj[-1]
        assert torch.allclose(prior().log_prob(push(u)), expected, atol=1e-9)
    assert torch.stack(ladj).abs().max() > 0.1


def test_a_flow_inverts_itself_and_moves_every_entry():
    prior = randomized(FlowPrior(5, num_flows=2), 0.3)
    z = u = torch.randn(40, 5).double()
    for layer in prior.layers:
        z, _ = layer.push(z)
    back = z
    for layer in reversed(prior.layers):
        back, _ = layer.pull(back)
    assert torch.allclose(back, u, atol=1e-10)
    assert ((z - u).abs().max(0).values > 0.01).all()


def test_a_flow_starts_as_the_standard_normal():
    z = torch.randn(10, 4)
    expected = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    assert torch.allclose(FlowPrior(4)().log_prob(z), expected, atol=1e-6)


def test_a_flow_remembers_nothing_between_two_steps():
    """Pyro's coupling layers return the density before the step, and have lost its graph."""
    prior, z = randomized(FlowPrior(2)), torch.randn(8, 2).double()
    before = prior().log_prob(z)
    before.sum().backward()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.1)
    after = prior().log_prob(z)
    assert not torch.allclose(before, after, atol=1e-3)
    after.sum().backward()


@pytest.mark.parametrize("make", PRIORS.values(), ids=PRIORS)
def test_priors_have_gradients_and_expand(make):
    prior = make()
    z = torch.randn(5, 7, 2).double().requires_grad_()
    log_p = prior().log_prob(z)
    assert log_p.shape == (5, 7)
    log_p.sum().backward()
    for tensor in (z, *prior.parameters()):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any()
    many = prior().expand([7])
    assert many.sample((5,)).shape == (5, 7, 2)
    assert torch.allclose(many.log_prob(z), log_p)
    assert torch.allclose(prior().log_prob(z[3, 4]), log_p[3, 4])


def test_reparameterized_draws_of_a_flow_have_gradients():
    prior = randomized(FlowPrior(3))
    assert isinstance(prior(), Flow)
    prior().rsample((4,)).sum().backward()
    assert all(parameter.grad is not None for parameter in prior.parameters())


def test_a_tied_vampprior_is_the_mixture_of_the_guides_posteriors():
    """It is the paper's prior, and its pseudo-inputs are trained through the guide."""
    model = VAE(6, 2, hidden_dims=(8,), prior="vampprior(num_components=4)").double()
    guide = MeanField(2, 6, hidden_dims=(8,)).double()
    model.prior_network.tie(guide.encode)
    names = [name for name, _ in model.named_parameters() if name.startswith("prior_network")]
    assert names == ["prior_network.pseudo_inputs"]
    z = torch.randn(9, 2).double()
    posteriors = guide.posterior(model.prior_network.pseudo_inputs)
    expected = posteriors.log_prob(z.unsqueeze(1)).logsumexp(1) - math.log(4)
    assert torch.allclose(model.prior().log_prob(z), expected, atol=1e-12)
    x = torch.bernoulli(torch.rand(64, 6)).double()
    before = model.prior_network.pseudo_inputs.detach().clone()
    fit(model, guide, x, num_epochs=2, batch_size=32, progress=False)
    assert not torch.equal(before, model.prior_network.pseudo_inputs)


@pytest.mark.parametrize(
    "prior", ["mixture(num_components=4)", "vampprior(num_components=4)", "flow(num_flows=2)"]
)
def test_a_learnt_prior_is_trained_with_the_model(prior):
    """Two clusters of data: the bound rises, and every parameter of the prior moves."""
    x = torch.zeros(128, 8)
    x[::2, :4], x[1::2, 4:] = 1.0, 1.0
    model = VAE(8, 2, hidden_dims=(16,), prior=prior)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    guide = MeanField(2, 8, hidden_dims=(16,))
    history = fit(model, guide, x, num_epochs=30, batch_size=64, lr=0.01, progress=False)
    assert history.train_loss[-1] < history.train_loss[0] - 1
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VAE(8, prior="vamprior"), "did you mean 'vampprior'"),
        (lambda: VAE(8, prior="mixture(num_flows=2)"), "'num_flows': expected one of num_comp"),
        (lambda: VAE(8, prior="standard-normal(num_flows=2)"), "expected none: leave it out"),
        (lambda: VAE(8, prior="flow(num_flow=2)"), "did you mean 'num_flows'"),
        (lambda: VAE(8, prior="flow(num_flows='2')"), "num_flows to be int, got '2'"),
        (lambda: VAE(8, prior="flow(2)"), r"flow\(option=value, ...\), got 'flow\(2\)'"),
        (lambda: VAE(8, prior="flow("), r"got 'flow\('"),
        (lambda: VAE(8, prior="flow()(num_flows=2)"), r"got 'flow\(\)\(num_flows=2\)'"),
        (lambda: VAE(8, prior="flow(num_flows=print(2))"), r"got 'flow\(num_flows=print\(2\)\)'"),
        (lambda: VAE(8, prior="mixture(num_components=0)"), "num_components of at least 1, got 0"),
        (lambda: VAE(8, prior="vampprior(num_components=0)"), "num_components of at least 1"),
        (lambda: VAE(8, 1, prior="flow"), "latent_dim of at least 2 .* got 1 and 4"),
        (lambda: VAE(8, 2, prior="flow(num_flows=0)"), "num_flows of at least 1 .* got 2 and 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
