"""Models: the contract that all of them keep, and densities against formulas and scikit-learn."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions.transforms import biject_to
from sklearn.decomposition import PCA, FactorAnalysis

from evidence import models
from evidence.experiments.setup.catalogue import Spec, build_guide, build_model
from evidence.inference import log_weights
from evidence.models import (
    VAE,
    AbstractModel,
    Autoencoder,
    ConditionalVAE,
    EightSchools,
    HierarchicalVAE,
    LinearGaussian,
)
from evidence.models.chain import Chain
from tests.box_rule import box_rule
from tests.conftest import make_oracle

# As on the command line, with the size of the data.
MODELS = {
    "VAE(latent_dim=3, hidden_dims=[8])": 12,
    "VAE(latent_dim=3, hidden_dims=[8], likelihood=gaussian, prior=mixture(num_components=4))": 12,
    "VAE(latent_dim=3, hidden_dims=[8], likelihood='continuous-bernoulli', prior=vampprior)": 12,
    "VAE(latent_dim=3, hidden_dims=[8], likelihood=discretized-logistic(num_levels=5))": 12,
    "VAE(latent_dim=3, hidden_dims=[8], prior=flow)": 12,
    "VAE(latent_dim=3, hidden_dims=[8], channels=[4, 2], activation=tanh)": 25,
    "HierarchicalVAE(latent_dims=[3, 2], hidden_dims=[8], layer_hidden_dims=[5])": 12,
    "HierarchicalVAE(latent_dims=[4, 3, 2], hidden_dims=[8], likelihood=gaussian)": 12,
    "ConditionalVAE(latent_dim=3, num_classes=4, hidden_dims=[8])": 12,
    "ConditionalVAE(latent_dim=3, num_classes=2, hidden_dims=[8], likelihood=gaussian)": 12,
    "LinearGaussian(latent_dim=3)": 12,
    "LinearGaussian(latent_dim=3, noise=diagonal)": 12,
    "BayesianLinearRegression(latent_dim=3)": 12,
    "BayesianLinearRegression(latent_dim=1, design=[[1], [2], [0.5]])": 3,
    "BayesianLogisticRegression(latent_dim=3)": 12,
    "EightSchools": 8,
    "EightSchools(centred=False)": 8,
    "Energy2D(energy=U3)": 1,
    "GaussianMixture2D": 2,
}
# Nothing can be simulated without a prior.
WITHOUT_PRIOR = {"Autoencoder"}


def make(text: str) -> AbstractModel:
    """The model of a spec in double precision, with parameters away from where they start."""
    model, _ = build_model(Spec.parse(text), data_dim=MODELS[text])
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def simulate(model: AbstractModel, size: int) -> torch.Tensor:
    """A batch; moderate effects for the schools, whose prior has no variance."""
    if isinstance(model, EightSchools):
        return 10 * torch.randn(size, 8).double()
    return model(None, size=size).detach()


def draw(model: AbstractModel, *shape: int) -> torch.Tensor:
    """z in the support of every site: images of normal numbers."""
    parts = [biject_to(support)(torch.randn(*shape, dim).double())
             for dim, support in model.latents.values()]  # fmt: skip
    return torch.cat(parts, -1)


def given(model: AbstractModel, z: torch.Tensor):
    """The Pyro program with its latent sites set to the parts of z."""
    sizes = [latent.dim for latent in model.latents.values()]
    values = dict(zip(model.latents, z.split(sizes, -1), strict=True))
    return poutine.condition(model, data=values)


@pytest.fixture(params=MODELS, ids=lambda text: text.replace(" ", ""))
def model(request):
    return make(request.param)


def test_every_model_is_under_contract():
    assert {Spec.parse(text).name for text in MODELS} | WITHOUT_PRIOR == set(models.__all__)


def test_simulates_batches_at_the_sites_that_it_names(model):
    trace = poutine.trace(model).get_trace(None, size=7)
    assert trace.nodes["x"]["value"].shape == (7, model.data_dim)
    assert [name for name in trace.stochastic_nodes if name != "data"] == [*model.latents, "x"]
    for name, (dim, support) in model.latents.items():
        assert trace.nodes[name]["value"].shape == (7, dim)
        assert support.event_dim == 1
        assert support.check(trace.nodes[name]["value"]).all()
    assert sum(latent.dim for latent in model.latents.values()) == model.latent_dim


def test_log_joint_is_the_programs(model):
    """For z at will, inside a plate of particles too; not for the z of another datum."""
    x, z = simulate(model, 7), draw(model, 5, 7)
    with pyro.plate("particles", 5, dim=-2):
        trace = poutine.trace(given(model, z)).get_trace(x)
    trace.compute_log_prob()
    log_probs = [trace.nodes[name]["log_prob"] for name in [*model.latents, "x"]]
    assert all(log_prob.shape == (5, 7) for log_prob in log_probs)
    log_joint = model.log_joint(x, z)
    assert log_joint.shape == (5, 7)
    assert torch.allclose(sum(log_probs), log_joint, rtol=1e-12, atol=1e-9)
    assert torch.allclose(model.log_joint(x, z[3]), log_joint[3], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(model.log_joint(x, z.flip(1)), log_joint, rtol=1e-6, atol=1e-6)


def test_row_i_depends_on_datum_i_only(model):
    x, z = simulate(model, 7), draw(model, 7)
    log_joint = model.log_joint(x, z)
    for row in (0, 6):
        one = model.log_joint(x[row : row + 1], z[row : row + 1])
        assert torch.allclose(one, log_joint[row], rtol=1e-9, atol=1e-9)
    assert model.likelihood(z).batch_shape == (7,)
    assert model.likelihood(z).event_shape == (model.data_dim,)


def test_the_prior_is_over_all_latents_in_their_support(model):
    prior = model.prior()
    assert (prior.batch_shape, prior.event_shape) == ((), (model.latent_dim,))
    for shape in ((), (4,), (4, 3)):
        z = prior.sample(torch.Size(shape))
        assert z.shape == (*shape, model.latent_dim)
        assert prior.log_prob(z).shape == shape
        assert prior.log_prob(z).isfinite().all()
    assert not z.requires_grad
    assert prior.expand([3]).sample().shape == (3, model.latent_dim)


def test_gradients_reach_every_parameter_and_z(model):
    x, z = simulate(model, 7), draw(model, 7).requires_grad_()
    model.log_joint(x, z).sum().backward()
    for name, tensor in (("z", z), *model.named_parameters()):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def test_the_state_is_all_there_is(model):
    x, z = simulate(model, 7), draw(model, 7)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn_like(parameter))
    if [*model.parameters()]:
        assert not torch.equal(twin.log_joint(x, z), model.log_joint(x, z))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.log_joint(x, z), model.log_joint(x, z))


def test_any_guide_gives_weights(model):
    """Through the packing of sites and the constraints on them."""
    x = simulate(model, 4)
    guide, _ = build_guide(Spec.parse("MeanField(hidden_dims=[])"), model, x)
    guide = guide.double()
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.mul_(0.1)
    assert log_weights(model, guide, x, 3).isfinite().all()


def test_gaussian_vae_scale_stays_above_its_floor():
    model = VAE(12, 3, hidden_dims=(8,), likelihood="gaussian(scale_floor=0.05)")
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


def test_hierarchical_vae_is_the_papers_two_layer_model():
    """x-200-200-100, 100-100-100-50: Burda et al. 2016, section 5."""
    model = HierarchicalVAE(784)
    assert list(model.latents) == ["z2", "z1"]
    assert [latent.dim for latent in model.latents.values()] == [50, 100]
    sizes = [
        [layer.out_features for layer in net if hasattr(layer, "out_features")]
        for net in (model.layers["z1"], model.decoder)
    ]
    assert sizes == [[100, 100, 200], [200, 200, 784]]
    assert {type(layer).__name__ for layer in model.decoder} == {"Linear", "Tanh"}


def test_a_layer_is_drawn_given_the_one_above():
    """log p(z1 | z2) from the layer's own network, and with the sites exchanged, another number."""
    model = make("HierarchicalVAE(latent_dims=[3, 2], hidden_dims=[8], layer_hidden_dims=[5])")
    z = model.prior().sample((9,))
    z2, z1 = z.split([2, 3], -1)
    loc, log_scale = model.layers["z1"](z2).chunk(2, -1)
    expected = dist.Normal(loc, log_scale.exp()).log_prob(z1).sum(-1)
    expected = expected + dist.Normal(0.0, 1.0).log_prob(z2).sum(-1)
    assert torch.allclose(model.prior().log_prob(z), expected, atol=1e-9)
    exchanged = torch.cat([z1, z2], -1)
    assert not torch.allclose(model.prior().log_prob(exchanged), expected, atol=1e-3)
    assert torch.allclose(model.likelihood(z).mean, model.decoder(z1).sigmoid(), atol=1e-9)


def test_the_layers_integrate_to_one():
    model = HierarchicalVAE(4, latent_dims=(1, 1), layer_hidden_dims=(5,)).double()
    with torch.no_grad():
        model.layers["z1"][-1].weight *= 0.3  # scales that the nodes resolve
    nodes, log_weights_ = box_rule(-16.0, 16.0, 2)
    mass = (model.prior().log_prob(nodes) + log_weights_).logsumexp(0)
    assert abs(mass.item()) < 1e-9


def test_a_chain_with_an_unconditional_factor_draws_as_many_of_it():
    """The planted error: one tau for all draws, of a factor that looks at no value before it."""
    z = EightSchools(8).prior().sample((500,))
    assert len(z[:, 1].unique()) == 500
    support = EightSchools(8).prior().support
    assert support.check(z).all()
    assert not support.check(-z.abs()).any()
    assert (biject_to(support)(torch.randn(6, 10))[:, 1] > 0).all()


def test_a_chain_names_the_latents_it_misses():
    with pytest.raises(ValueError, match=r"latents \['a', 'b'\], got \['a'\]"):
        Chain({"a": 1, "b": 1}, {"a": lambda _: dist.Normal(torch.zeros(1), 1.0).to_event(1)})


CONDITIONAL = "ConditionalVAE(latent_dim=3, num_classes=4, hidden_dims=[8])"


def test_images_given_a_label_add_up_to_one():
    """Over all 2⁸ images for every label; over the labels too it is C, for none is explained."""
    model = make(CONDITIONAL)
    images = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 8)
    z = torch.randn(3).double()
    masses = []
    for label in torch.eye(4).double():
        x = torch.cat([images, label.expand(len(images), 4)], -1)
        log_p = model.likelihood(z).log_prob(x)
        assert torch.allclose(log_p, model.decode(z, label).log_prob(images), atol=1e-12)
        masses.append(log_p.logsumexp(0))
    assert torch.stack(masses).abs().max() < 1e-10
    # the planted error: the label that is scored with is another
    assert not torch.allclose(log_p, model.decode(z, torch.eye(4)[0]).log_prob(images), atol=1e-3)


def test_images_of_given_labels():
    """The means of 20,000 images per label are the decoder's, |z| < 5; another label's are not."""
    model, n = make(CONDITIONAL), 20_000
    with torch.no_grad():
        model.decoder[0].weight[:, 3:] *= 5  # the label matters
    z = torch.randn(3).double()
    labels = torch.tensor([2, 0])
    x = model.likelihood(z.expand(n, 2, 3), labels.expand(n, 2)).sample()
    assert torch.equal(x[..., 8:].argmax(-1), labels.expand(n, 2))
    p = model.decode(z, model.one_hot(labels)).mean
    z_scores = (x[..., :8].mean(0) - p) / (p * (1 - p) / n).sqrt()
    assert z_scores.abs().max() < 5
    assert ((x[..., :8].mean(0) - p.flip(0)) / (p * (1 - p) / n).sqrt()).abs().max() > 5
    assert torch.allclose(model.likelihood(z.expand(2, 3), labels).mean[:, :8], p)
    each = model.decode(z, torch.eye(4)).mean.mean(0)
    assert torch.allclose(model.likelihood(z).mean, torch.cat([each, torch.full((4,), 0.25)]))
    batch = model(None, labels=torch.tensor([3, 3, 1]))
    assert batch.shape == (3, 12)
    assert batch[:, 8:].argmax(-1).tolist() == [3, 3, 1]


def test_a_datum_without_its_label_is_refused_in_one_line():
    model = make(CONDITIONAL)
    x = torch.zeros(2, 12).double()
    x[:, -1] = 1
    guide, _ = build_guide(Spec.parse("MeanField"), model, x)
    x[:, -1] = 0
    with pytest.raises(ValueError, match=r"8 pixels \(Boolean\(\)\) beside a one-hot label"):
        log_weights(model, guide.double(), x)


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
        (lambda: VAE(12, likelihood="gaussian(scale_floor=0.0)"), "expected scale_floor > 0"),
        (lambda: VAE(0), "at least 1"),
        (lambda: VAE(12, hidden_dims=(0,)), "layer sizes"),
        (lambda: HierarchicalVAE(12, latent_dims=(3,)), r"two or more layers .* got \[3\]"),
        (lambda: HierarchicalVAE(12, likelihood="gausian"), "did you mean 'gaussian'"),
        (lambda: ConditionalVAE(10), "num_classes=10 classes side by side, got data_dim=10"),
        (
            lambda: ConditionalVAE(12)(None, labels=torch.tensor([10])),
            r"labels in 0 … 9, got \[10\]",
        ),
        (lambda: ConditionalVAE(12)(None, size=3, labels=torch.tensor([1])), "1 labels and size=3"),
        (
            lambda: ConditionalVAE(12)(torch.zeros(1, 12), labels=torch.tensor([1])),
            "a batch x, which has its own",
        ),
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
