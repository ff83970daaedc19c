"""`log_weights` against exact evidence, for any pair of Pyro callables."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal

from evidence.guides import Delta, FullRank, MeanField, Planar
from evidence.inference import log_prob_terms, log_weights
from evidence.models import VAE, Autoencoder
from tests.conftest import make_oracle


def exact_guide(model):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", model.posterior(x))

    return guide


def worst_error(model, guide, x, **options):
    log_w = log_weights(model, guide, x, 20, **options)
    assert log_w.shape == (20, len(x))
    return (log_w - model.log_evidence(x)).abs().max().item()


@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
@pytest.mark.parametrize("data_dim", [2, 10, 50])
def test_every_weight_of_the_exact_posterior_is_the_evidence(data_dim, noise):
    model = make_oracle(data_dim, 2, noise)
    x = model(None, size=30)
    assert worst_error(model, exact_guide(model), x) < 1e-8


def planted_wrong_scale(model):
    def guide(x):
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            wider = dist.MultivariateNormal(exact.loc, scale_tril=1.001 * exact.scale_tril)
            pyro.sample("z", wider)

    return guide


def test_a_planted_error_in_the_guide_shows():
    model = make_oracle()
    assert worst_error(model, planted_wrong_scale(model), model(None, size=30)) > 1e-4


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 4096])
def test_chunks_change_nothing_but_memory(chunk_size):
    model = make_oracle()
    x = model(None, size=13)
    assert worst_error(model, exact_guide(model), x, chunk_size=chunk_size) < 1e-8


def layered_model(x):
    """Two latents, of other names, and pixels in a plate of their own."""
    with pyro.plate("rows", len(x), dim=-2):
        top = pyro.sample("top", dist.Normal(0.0, 1.0))
        bottom = pyro.sample("bottom", dist.Normal(0.5 * top, 0.8))
        with pyro.plate("pixels", 4, dim=-1):
            pyro.sample("pixel", dist.Normal(bottom, 0.5), obs=x)


def layered_guide(x):
    """The exact posterior of the layered model, from its joint Gaussian."""
    mean, variance = _bottom_posterior(x)
    with pyro.plate("rows", len(x), dim=-2):
        bottom = pyro.sample("bottom", dist.Normal(mean.unsqueeze(-1), math.sqrt(variance)))
        slope = 0.5 / (0.5**2 + 0.8**2)
        pyro.sample("top", dist.Normal(slope * bottom, math.sqrt(1 - 0.5 * slope)))


def _bottom_posterior(x):
    prior_variance = 0.5**2 + 0.8**2
    variance = 1 / (1 / prior_variance + 4 / 0.5**2)
    return variance * x.sum(-1) / 0.5**2, variance


def layered_evidence(x):
    covariance = (0.5**2 + 0.8**2) * torch.ones(4, 4) + 0.5**2 * torch.eye(4)
    return dist.MultivariateNormal(torch.zeros(4).double(), covariance.double()).log_prob(x)


def test_plain_functions_with_any_names_layers_and_plates():
    x = torch.randn(6, 4).double()
    log_w = log_weights(layered_model, layered_guide, x, 5, chunk_size=10)
    assert (log_w - layered_evidence(x)).abs().max() < 1e-6


@pytest.mark.parametrize("num_data", [1, 4, 5])
def test_a_plate_of_the_same_size_by_chance_is_told_apart(num_data):
    x = torch.randn(num_data, 4).double()
    log_w = log_weights(layered_model, layered_guide, x, 3)
    assert (log_w - layered_evidence(x)).abs().max() < 1e-6


def test_scales_are_taken_out_and_masks_kept():
    model = make_oracle()
    x = model(None, size=8)
    scaled = poutine.scale(model, 7.0)
    assert (log_weights(scaled, exact_guide(model), x) - model.log_evidence(x)).abs().max() < 1e-8

    def subsampled(x):
        with pyro.plate("data", 1000, subsample=x):
            z = pyro.sample("z", model.prior())
            pyro.sample("x", model.likelihood(z), obs=x)

    log_w = log_weights(subsampled, exact_guide(model), x)
    assert (log_w - model.log_evidence(x)).abs().max() < 1e-8

    keep = torch.arange(8) < 4
    terms = log_prob_terms(poutine.mask(model, keep), exact_guide(model), x)
    assert terms.log_p_x[:, :4].all()
    assert not terms.log_p_x[:, 4:].any()


def test_particles_and_data_are_told_apart_when_equal_in_number():
    model = make_oracle()
    x = model(None, size=10)  # B = S = D = 10
    log_w = log_weights(model, exact_guide(model), x, 10)
    assert (log_w - model.log_evidence(x)).abs().max() < 1e-8


def test_model_and_guide_may_name_the_plate_differently():
    model = make_oracle()

    def renamed(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("w", model.prior())
            pyro.sample("y", model.likelihood(z), obs=x)

    guide = MeanField(3, 10, hidden_dims=(), site="w").double()
    same = MeanField(3, 10, hidden_dims=()).double()
    same.load_state_dict(guide.state_dict())
    x = model(None, size=4)
    pyro.set_rng_seed(0)
    first = log_weights(renamed, guide, x, 5)
    pyro.set_rng_seed(0)
    assert torch.equal(log_weights(model, same, x, 5), first)


def test_terms_add_up_and_are_the_sites():
    model = make_oracle()
    x, guide = model(None, size=4), MeanField(3, 10, hidden_dims=()).double()
    pyro.set_rng_seed(3)
    terms = log_prob_terms(model, guide, x)
    pyro.set_rng_seed(3)
    z = guide.posterior(x).sample()
    assert torch.allclose(terms.log_q_z, guide.posterior(x).log_prob(z))
    assert torch.allclose(terms.log_p_z, model.prior().log_prob(z))
    assert torch.allclose(terms.log_p_x, model.likelihood(z).log_prob(x))
    assert torch.equal(terms.log_w, terms.log_p_x + terms.log_p_z - terms.log_q_z)


@pytest.mark.parametrize("kind", [MeanField, FullRank, Planar])
def test_weights_average_to_the_evidence(kind):
    """E[w / p(x)] = 1: |z| < 5 at 200,000 draws for each of 3 data.

    The twin drops log q's scale by 5%, as a forgotten factor would: |z| > 5.
    """
    model = make_oracle(10, 2)
    x = model(None, size=3)
    guide = kind(2, 10, hidden_dims=()).double()
    with torch.no_grad():  # close to the posterior, and wider: bounded weights
        exact = model.posterior(x)
        for parameter in guide.parameters():
            parameter.mul_(0.0)
        start = guide.encoder[-1].bias[:2]
        start.copy_(exact.loc.mean(0))
        if kind is Planar:
            bias = guide.encoder[-1].bias
            generator = torch.Generator().manual_seed(0)
            bias[4:] = 0.3 * torch.randn(len(bias) - 4, generator=generator, dtype=torch.float64)
    log_w = log_weights(model, guide, x, 200_000)
    ratios = (log_w - model.log_evidence(x)).exp()
    z_scores = (ratios.mean(0) - 1) / ratios.std(0) * math.sqrt(len(ratios))
    assert z_scores.abs().max() < 5
    planted = 1.05 * ratios
    z_scores = (planted.mean(0) - 1) / planted.std(0) * math.sqrt(len(ratios))
    assert z_scores.abs().max() > 5


def test_autoguides_of_pyro_work():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=x)

    x = torch.randn(5, 2)
    assert log_weights(model, AutoNormal(model), x, 3).shape == (3, 5)
    with pytest.raises(ValueError, match="point mass"):
        log_weights(model, AutoDelta(model), x, 3)


def constant_guide(name="z", plate="data"):
    def guide(x):
        with pyro.plate(plate, len(x)):
            pyro.sample(name, dist.Normal(torch.zeros(3), 1.0).to_event(1))

    return guide


def unplated_model(x):
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))
    pyro.sample("x", dist.Normal(z.sum(), 1.0).expand([len(x), 10]).to_event(2), obs=x)


def unplated_guide(x):
    pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(2))


def shared_latent_model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0).expand([10]).to_event(1), obs=x)


def shared_latent_guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))


X = torch.zeros(4, 10)


def test_without_a_plate_over_all_sites_there_is_one_weight_for_the_data():
    for model, guide in (
        (unplated_model, unplated_guide),  # z.sum() would be over particles too
        (shared_latent_model, shared_latent_guide),  # expand([10]) drops their dim
    ):
        with pytest.warns(UserWarning, match="not broadcast"):
            assert log_weights(model, guide, X, 3).shape == (3, 1)


BAD = {
    "point mass": (lambda: log_weights(VAE(10, 3), Delta(3, 10), X), "^guide site 'z' is a point"),
    "no prior either": (
        lambda: log_weights(Autoencoder(10, 3), Delta(3, 10), X),
        "^the model has no prior on 'z'.*choose a model with a prior, such as VAE",
    ),
    "grey pixels": (
        lambda: log_weights(VAE(10, 3), MeanField(3, 10), X + 0.5),
        r"Bernoulli expects values 0 and 1, got values such as 0\.5: binarize",
    ),
    "late grey pixel": (
        lambda: log_weights(VAE(10, 3), MeanField(3, 10), _last_pixel(0.25), chunk_size=2),
        r"got values such as 0\.25",
    ),
    "NaN": (lambda: log_weights(VAE(10, 3), MeanField(3, 10), X * math.nan), "4 of 4 data"),
    "integers": (lambda: log_weights(VAE(10, 3), MeanField(3, 10), X.long()), r"use x\.float"),
    "shape": (lambda: log_weights(VAE(10, 3), MeanField(3, 10), X[:, 1:]), r"shape \(B, 10\)"),
    "empty": (lambda: log_weights(VAE(10, 3), MeanField(3, 10), X[:0]), "at least one datum"),
    "no particles": (
        lambda: log_weights(VAE(10, 3), MeanField(3, 10), X, 0),
        "num_particles of at least 1",
    ),
    "missing site": (
        lambda: log_weights(VAE(10, 3), constant_guide("w"), X),
        r"does not sample the model's latent sites \['z'\]",
    ),
    "extra site": (
        lambda: log_weights(lambda x: constant_guide("z")(x), lambda x: _two_sites(x), X),
        r"samples \['w'\], which are no latent sites",
    ),
}


def _last_pixel(value):
    x = X.clone()
    x[-1, -1] = value
    return x


def _two_sites(x):
    constant_guide("z")(x)
    constant_guide("w", "more")(x)


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_dropout_and_validation_are_as_they_were_afterwards():
    guide = MeanField(3, 10)
    log_weights(VAE(10, 3), guide, X)
    assert guide.training
    guide.encoder[0].eval()
    log_weights(VAE(10, 3), guide, X)
    assert guide.training
    assert not guide.encoder[0].training
    with pytest.raises(ValueError, match="scale"):  # Pyro validates again
        dist.Normal(0.0, -1.0)
