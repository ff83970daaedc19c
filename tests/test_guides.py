"""The contract that every guide keeps, a student's unregistered one included."""

import sys
import textwrap

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import guides
from experiments import catalogue
from experiments.catalogue import Spec
from guides import AbstractGuide, Delta, FullRank, MeanField, Planar
from models import VAE, LinearGaussian

GUIDES = {name: getattr(guides, name) for name in guides.__all__}
DENSITIES = {name: kind for name, kind in GUIDES.items() if kind is not Delta}


def make(kind, dtype=torch.float32, **options):
    pyro.set_rng_seed(0)
    return kind(3, 8, hidden_dims=(16,), **options).to(dtype)


@pytest.mark.parametrize("kind", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [1, 5])
def test_shapes_and_types(kind, dtype, batch):
    guide, x = make(kind, dtype), torch.rand(batch, 8, dtype=dtype)
    posterior = guide.posterior(x)
    assert posterior.batch_shape == (batch,)
    assert posterior.event_shape == (3,)
    assert guide(x).shape == (batch, 3)
    assert guide(x).dtype == dtype
    assert guide.posterior_mean(x).shape == (batch, 3)


@pytest.mark.parametrize("kind", GUIDES.values(), ids=GUIDES)
def test_samples_the_models_site_inside_the_data_plate(kind):
    guide = make(kind, site="w")
    trace = poutine.trace(guide).get_trace(torch.rand(5, 8))
    (site,) = [s for s in trace.nodes.values() if s["name"] == "w"]
    assert [(f.name, f.dim, f.size) for f in site["cond_indep_stack"]] == [("data", -1, 5)]


@pytest.mark.parametrize("kind", GUIDES.values(), ids=GUIDES)
def test_row_i_depends_on_datum_i_only(kind):
    guide, x = make(kind, torch.float64), torch.rand(5, 8, dtype=torch.float64)
    changed = x.clone()
    changed[2] += 1.0

    def draw(x):
        pyro.set_rng_seed(1)
        return guide.posterior(x).rsample()

    same = (draw(x) == draw(changed)).all(-1)
    assert same.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("kind", GUIDES.values(), ids=GUIDES)
def test_gradients_reach_every_parameter(kind):
    guide, x = make(kind), torch.rand(5, 8)
    posterior = guide.posterior(x)
    z = posterior.rsample()
    (z.pow(3).sum() + posterior.log_prob(z).sum()).backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("kind", GUIDES.values(), ids=GUIDES)
def test_state_dict_carries_everything(kind):
    guide, other, x = make(kind), kind(3, 8, hidden_dims=(16,)), torch.rand(5, 8)
    other.load_state_dict(guide.state_dict())
    pyro.set_rng_seed(1)
    first = guide(x)
    pyro.set_rng_seed(1)
    assert torch.equal(other(x), first)


@pytest.mark.parametrize("kind", DENSITIES.values(), ids=DENSITIES)
def test_density_is_the_jacobian_of_the_draw(kind):
    """log q(z) = log N(ε) − log|det ∂z/∂ε|, with the Jacobian by automatic differentiation."""
    guide = make(kind, torch.float64)
    with torch.no_grad():
        guide.encoder[-1].bias.normal_(std=2.0)  # large weights, far from the identity
    for number in range(20):
        x = torch.rand(1, 8, dtype=torch.float64)
        noise = torch.randn(3, dtype=torch.float64)

        def draw(noise, x=x):
            return _with_noise(guide.posterior(x), noise)

        posterior = guide.posterior(x)
        z = _with_noise(posterior, noise)
        jacobian = torch.autograd.functional.jacobian(draw, noise)
        base = dist.Normal(0.0, 1.0).log_prob(noise).sum()
        expected = base - torch.linalg.slogdet(jacobian).logabsdet
        got = posterior.log_prob(z.unsqueeze(0)) if kind is not Planar else None
        if kind is Planar:  # scores only the tensor it just made
            pushed = _planar_draw(posterior, noise)
            got = posterior.log_prob(pushed)
        assert abs(got.item() - expected.item()) < 1e-8, number


def _with_noise(posterior, noise):
    """The draw that standard normal noise `[Z]` makes: `[Z]`."""
    if isinstance(posterior, dist.MultivariateNormal):
        return posterior.loc[0] + posterior.scale_tril[0] @ noise
    if isinstance(posterior, dist.TransformedDistribution):
        return _planar_draw(posterior, noise)[0]
    return posterior.base_dist.loc[0] + posterior.base_dist.scale[0] * noise


def _planar_draw(posterior, noise):
    base = posterior.base_dist
    while not isinstance(base, dist.Normal):
        base = base.base_dist
    z = base.loc + base.scale * noise
    for layer in posterior.transforms:
        z = layer(z)
    return z


def test_planar_layers_follow_the_paper():
    """f(z) = z + û tanh(wᵀz + b), û = u + (softplus(wᵀu) − 1 − wᵀu) w/‖w‖²."""
    guide, x = make(Planar, torch.float64, num_flows=2), torch.rand(4, 8, dtype=torch.float64)
    loc, log_scale, flat = guide.encode(x)
    z = loc + 0.3 * log_scale.exp()
    expected = z
    for layer in flat.chunk(2, -1):
        b, u, w = layer.split((1, 3, 3), -1)
        wu = (w * u).sum(-1, keepdim=True)
        u_hat = u + (wu.exp().log1p() - 1 - wu) * w / w.pow(2).sum(-1, keepdim=True)
        expected = expected + u_hat * torch.tanh((w * expected).sum(-1, keepdim=True) + b)
    for layer in guide.posterior(x).transforms:
        z = layer(z)
    assert torch.allclose(z, expected, atol=1e-12)


def test_posterior_mean_of_a_flow_is_its_average_draw():
    guide, x = make(Planar, torch.float64), torch.rand(2, 8, dtype=torch.float64)
    with torch.no_grad():
        guide.encoder[-1].bias.normal_(std=2.0)
    draws = guide.posterior(x).sample(torch.Size([40_000]))
    mean = guide.posterior_mean(x, num_samples=40_000)
    se = (2 * draws.var(0) / 40_000).sqrt()
    assert ((mean - draws.mean(0)).abs() < 5 * se).all()
    pushed_mean = guide.posterior(x)
    base = guide.encode(x)[0]
    for layer in pushed_mean.transforms:  # the image of the mean is not the mean of the image
        base = layer(base)
    assert ((base - draws.mean(0)).abs() > 5 * se).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(MeanField)(torch.zeros(5, 9)), r"expected x of shape \(B, 8\), got \(5, 9\)"),
        (lambda: make(MeanField)(torch.zeros(5, 2, 4)), r"got \(5, 2, 4\)"),
        (lambda: make(Planar, num_flows=0), "expected num_flows of at least 1"),
        (lambda: make(FullRank, activation="rleu"), "did you mean 'relu'"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


STUDENT_GUIDE = textwrap.dedent("""
    import pyro.distributions as dist
    from guides import AbstractGuide

    class Laplace(AbstractGuide):
        '''Independent Laplace posteriors.'''

        def __init__(self, latent_dim: int, data_dim: int, *, hidden_dims: list[int]) -> None:
            sizes = (latent_dim, latent_dim)
            super().__init__(latent_dim, data_dim, output_dims=sizes, hidden_dims=hidden_dims)

        def posterior(self, x):
            loc, log_scale = self.encode(x)
            return dist.Laplace(loc, log_scale.exp()).to_event(1)
""")


def test_a_new_guide_is_found_by_its_file(tmp_path, monkeypatch):
    (tmp_path / "laplace.py").write_text(STUDENT_GUIDE)
    monkeypatch.setattr(guides, "__path__", [*guides.__path__, str(tmp_path)])
    guide, spec = catalogue.build_guide(Spec.parse("Laplace"), VAE(8, 3, hidden_dims=(16, 4)))
    assert isinstance(guide, AbstractGuide)
    assert str(spec) == "Laplace(hidden_dims=[4, 16])"
    sys.modules.pop("guides.laplace")


def test_a_new_guide_is_found_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_guides.py").write_text(STUDENT_GUIDE)
    monkeypatch.syspath_prepend(tmp_path)
    assert catalogue.find_guide("my_guides.Laplace").__name__ == "Laplace"
    with pytest.raises(ValueError, match="did you mean 'Laplace'"):
        catalogue.find_guide("my_guides.Laplac")
    with pytest.raises(ValueError, match="no module not_mine"):
        catalogue.find_guide("not_mine.Laplace")


def test_encoders_mirror_the_decoder():
    model = VAE(8, 3, hidden_dims=(16, 4), activation="tanh")
    _, spec = catalogue.build_guide(Spec.parse("Planar(num_flows=2)"), model)
    assert spec.options == {
        "num_flows": 2,
        "hidden_dims": [4, 16],
        "activation": "tanh",
        "site": "z",
    }
    _, spec = catalogue.build_guide(Spec.parse("MeanField"), LinearGaussian(8, 3))
    assert spec.options["hidden_dims"] == []


@pytest.mark.parametrize("text", ["Planar(", "Planar(3)", "1", "Planar(num_flows=f(2))", ""])
def test_unreadable_specs_are_named(text):
    with pytest.raises(ValueError, match=r"expected Name or Name\(option=value"):
        Spec.parse(text)
