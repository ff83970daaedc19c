"""Models: the contract, and densities against formulas and scikit-learn."""

import copy
import math

import pyro
import pytest
import torch
from pyro import poutine
from sklearn.decomposition import PCA, FactorAnalysis

from models import VAE, Autoencoder, LinearGaussian
from models.likelihoods import Bernoulli, Normal
from tests.conftest import make_oracle

MODELS = {
    "VAE-bernoulli": lambda: VAE(12, 3, hidden_dims=(8,)),
    "VAE-gaussian": lambda: VAE(12, 3, hidden_dims=(8,), likelihood="gaussian"),
    "PPCA": lambda: LinearGaussian(12, 3),
    "FA": lambda: LinearGaussian(12, 3, noise="diagonal"),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_simulates_and_scores_batches(make):
    model = make()
    x = model(None, size=7)
    assert x.shape == (7, 12)
    trace = poutine.trace(model).get_trace(x.detach())
    trace.compute_log_prob()
    assert set(trace.stochastic_nodes) == {"z", "data"}
    assert trace.nodes["z"]["log_prob"].shape == (7,)
    assert trace.nodes["x"]["log_prob"].shape == (7,)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_scores_particles_left_of_the_data(make):
    model = make()
    z = torch.randn(5, 7, 3)
    assert model.likelihood(z).batch_shape == (5, 7)
    assert model.likelihood(z).event_shape == (12,)
    one = model.likelihood(z[2, 4:5]).log_prob(torch.ones(1, 12))
    assert torch.allclose(model.likelihood(z).log_prob(torch.ones(12))[2, 4], one[0], atol=1e-5)


def test_gaussian_vae_scale_stays_above_its_floor():
    model = VAE(12, 3, hidden_dims=(8,), likelihood="gaussian", scale_floor=0.05)
    with torch.no_grad():
        model.decoder[-1].bias.fill_(-100.0)
    scale = model.likelihood(torch.randn(4, 3)).base_dist.scale
    assert torch.allclose(scale, torch.tensor(0.05), atol=1e-6)


def test_gaussian_vae_log_prob_is_the_seminars_formula():
    model = VAE(12, 3, hidden_dims=(8,), likelihood="gaussian").double()
    z, x = torch.randn(4, 3).double(), torch.rand(4, 12).double()
    mu, raw = model.decoder(z).chunk(2, -1)
    floor = math.log(0.01)
    logsigma = floor + torch.log1p((raw - floor).exp())
    expected = (
        -0.5 * math.log(2 * math.pi) - logsigma - 0.5 * ((x - mu) / logsigma.exp()) ** 2
    ).sum(-1)
    assert torch.allclose(model.likelihood(z).log_prob(x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 20.0, 200.0])
def test_bernoulli_log_prob_is_torchs(dtype, size):
    """Also for logits at which exp underflows, and for probabilities in place of bits."""
    logits = (size * torch.randn(40, 30, dtype=dtype)).requires_grad_()
    x = torch.bernoulli(torch.rand(40, 30, dtype=dtype))
    x[0] = torch.rand(30)
    options = {"logits": logits, "validate_args": False}
    values = [kind(**options).log_prob(x) for kind in (Bernoulli, torch.distributions.Bernoulli)]
    gradients = [torch.autograd.grad(value.sum(), logits)[0] for value in values]
    # Either formula cancels by one rounding of the logit, torch's for x = 0, ours for x = 1.
    rounding = 2 * torch.finfo(dtype).eps * logits.abs().max().item()
    assert torch.allclose(*values, rtol=0, atol=rounding)
    assert torch.allclose(*gradients, rtol=0, atol=rounding)
    assert type(Bernoulli(**options).expand([2, 40, 30])) is Bernoulli


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bernoulli_log_prob_survives_half_precision(dtype):
    logits = torch.tensor([-20.0, 20.0], dtype=dtype, requires_grad=True)
    log_p = Bernoulli(logits=logits).log_prob(torch.tensor([1.0, 1.0]))
    assert log_p.tolist() == pytest.approx([-20.0, 0.0], abs=0.2)
    assert torch.autograd.grad(log_p.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_log_prob_is_torchs(dtype):
    """Gradients too, and after an expansion."""
    loc = torch.randn(40, 30, dtype=dtype, requires_grad=True)
    log_scale = (2 * torch.randn(40, 30, dtype=dtype)).requires_grad_()
    x = loc.detach() + log_scale.detach().exp() * torch.randn(40, 30, dtype=dtype)
    ours, theirs = Normal(loc, log_scale), torch.distributions.Normal(loc, log_scale.exp())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    values = [normal.expand([5, 40, 30]).log_prob(x) for normal in (ours, theirs)]
    assert torch.allclose(*values, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(value.sum(), (loc, log_scale)) for value in values]
    for got, expected in zip(*gradients, strict=True):
        assert torch.allclose(got, expected, rtol=10 * tolerance, atol=10 * tolerance)
    assert torch.equal(ours.scale, theirs.scale)


def test_autoencoder_loss_is_half_the_squared_error():
    model, z, x = Autoencoder(12, 3, hidden_dims=(8,)), torch.randn(4, 3), torch.rand(4, 12)
    squared_error = (x - model.decoder(z)).pow(2).sum(-1)
    expected = -0.5 * squared_error - 6 * math.log(2 * math.pi)
    assert torch.allclose(model.likelihood(z).log_prob(x), expected, atol=1e-5)
    assert model.prior().log_prob(z).eq(0).all()


def test_autoencoder_is_the_seminars():
    model = Autoencoder(784)
    sizes = [tuple(layer.weight.shape) for layer in model.decoder if hasattr(layer, "weight")]
    assert sizes == [(600, 60), (784, 600)]
    assert type(model.decoder[1]).__name__ == "ELU"
    for layer in (model.decoder[0], model.decoder[2]):
        bound = math.sqrt(6 / sum(layer.weight.shape))  # Glorot and Bengio, eq. 16
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert not layer.bias.any()


def test_autoencoder_has_nothing_to_simulate_from():
    with pytest.raises(ValueError, match="no prior"):
        Autoencoder(12, 3)(None, size=2)


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_linear_gaussian_bayes_rule_holds_exactly(noise):
    """log p(x) = log p(z) + log p(x | z) − log p(z | x) at any z."""
    model = make_oracle(noise=noise)
    x, z = model(None, size=50), 3 * torch.randn(50, 3).double()
    bayes = (
        model.prior().log_prob(z) + model.likelihood(z).log_prob(x) - model.posterior(x).log_prob(z)
    )
    assert (bayes - model.log_evidence(x)).abs().max() < 1e-9


def test_linear_gaussian_agrees_with_factor_analysis_and_pca_of_scikit_learn():
    x = make_oracle()(None, size=400).numpy()
    for peer, noise in ((FactorAnalysis(3), "diagonal"), (PCA(3), "isotropic")):
        peer.fit(x)
        model = LinearGaussian(10, 3, noise=noise).double()
        weight = torch.from_numpy(peer.components_.T)
        variance = torch.as_tensor(peer.noise_variance_)
        if noise == "isotropic":  # rows of unit length: Tipping and Bishop 1999, eq. 7
            weight = weight * (torch.from_numpy(peer.explained_variance_) - variance).sqrt()
        with torch.no_grad():
            model.weight.copy_(weight)
            model.loc.copy_(torch.from_numpy(peer.mean_))
            model.log_scale.copy_(0.5 * variance.log())
        score = model.log_evidence(torch.from_numpy(x)).mean().item()
        assert score == pytest.approx(peer.score(x), abs=1e-6)
        with torch.no_grad():
            model.log_scale.add_(0.01)  # the planted error must show
        assert model.log_evidence(torch.from_numpy(x)).mean().item() != pytest.approx(
            score, abs=1e-6
        )


def test_simulated_moments_are_the_exact_ones():
    """|z| < 5 for each of 10 means at 20,000 draws; a shift of 0.2 σ would give |z| = 28."""
    model = make_oracle()
    x = model(None, size=20_000)
    scale = model.marginal().variance.sqrt()
    z_scores = (x.mean(0) - model.loc) / scale * math.sqrt(len(x))
    assert z_scores.abs().max() < 5
    shifted = (x.mean(0) + 0.2 * scale - model.loc) / scale * math.sqrt(len(x))
    assert shifted.abs().max() > 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VAE(12)(torch.zeros(3, 4, 3)), r"expected x of shape \(B, 12\), got \(3, 4, 3\)"),
        (lambda: VAE(12)(torch.zeros(3, 11)), r"expected x of shape \(B, 12\), got \(3, 11\)"),
        (lambda: VAE(12)(), "got neither"),
        (lambda: VAE(12, likelihood="gausian"), "did you mean 'gaussian'"),
        (lambda: VAE(12, activation="tahn"), "did you mean 'tanh'"),
        (lambda: VAE(12, scale_floor=0.0), "expected scale_floor > 0"),
        (lambda: VAE(0), "at least 1"),
        (lambda: VAE(12, hidden_dims=(0,)), "layer sizes"),
        (lambda: LinearGaussian(12, noise="diagnoal"), "did you mean 'diagonal'"),
        (lambda: make_oracle().log_evidence(torch.zeros(3, 4)), r"shape \(B, 10\), got \(3, 4\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_instances_and_copies_never_share_a_parameter_name():
    first = VAE(12, 3)
    x = torch.ones(2, 12)
    for model in (first, VAE(12, 3), copy.deepcopy(first)):
        model(x)
    names = list(pyro.get_param_store().keys())
    assert len(names) == 3 * len(list(first.parameters()))


def test_evaluation_leaves_nothing_in_the_parameter_store():
    with torch.no_grad():
        VAE(12, 3)(torch.ones(2, 12))
    assert not list(pyro.get_param_store().keys())
