"""The contract that every guide keeps, a student's unregistered one included.

Guides are found as the command line finds them, by importing the package's modules. A check takes a
function that builds the guide, so that the planted errors at the end can be put through it too.
"""

import contextlib
import importlib
import inspect
import math
import pkgutil
import sys
import textwrap
import typing
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from evidence import guides
from evidence.experiments.setup import catalogue
from evidence.experiments.setup.catalogue import Spec
from evidence.guides import (
    AbstractGuide,
    AbstractPosterior,
    Delta,
    FullRank,
    MeanField,
    Planar,
    Sylvester,
)
from evidence.guides.model_guide import ModelGuide
from evidence.guides.transforms import inversion
from evidence.guides.transforms.planar import PlanarLayers
from evidence.guides.transforms.sylvester import SylvesterLayers
from evidence.guides.two_level import TwoLevel
from evidence.models import VAE, LinearGaussian
from tests.conftest import make_oracle

DATA_DIM = 8
X = torch.rand(5, DATA_DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Build = Callable[..., AbstractPosterior]  # build(latent_dim=3, dtype=torch.float64)


# Every guide there is, built for a small problem.


def all_guides():
    return {
        name: kind
        for module in pkgutil.iter_modules(guides.__path__, "evidence.guides.")
        for name, kind in vars(importlib.import_module(module.name)).items()
        if isinstance(kind, type)
        and issubclass(kind, AbstractPosterior)
        and not inspect.isabstract(kind)
        and kind not in (ModelGuide, TwoLevel)  # see test_for_model.py
    }


def plain(kind, latent_dim, dtype, /, **options):
    return kind(latent_dim, DATA_DIM, hidden_dims=(16,), **options).to(dtype)


def layered(latent_dim):
    sizes = (latent_dim // 2, latent_dim - latent_dim // 2)
    return {f"z{2 - i}": (size, constraints.real_vector) for i, size in enumerate(sizes)}


def network_flow(kind, latent_dim, dtype, /, **options):
    """With networks that are small, for speed."""
    return plain(kind, latent_dim, dtype, layer_hidden_dims=(8,), context_dim=4, **options)


# Guides that are not made of sizes alone, by the name of their class.
SPECIAL: dict[str, Callable[..., AbstractPosterior]] = {
    **dict.fromkeys(("IAF", "MAF", "NeuralSpline", "RealNVP"), network_flow),
    "Hierarchical": lambda kind, latent_dim, dtype, /, **options: plain(
        kind, latent_dim, dtype, latents=layered(latent_dim), layer_hidden_dims=(8,), **options
    ),
    "Refined": lambda kind, latent_dim, dtype, /, **options: kind(
        plain(FullRank, latent_dim, dtype),
        make_oracle(DATA_DIM, latent_dim).to(dtype),
        num_steps=3,
        **options,
    ),
    "Unamortized": lambda kind, latent_dim, dtype, /, **options: kind(
        plain(FullRank, latent_dim, dtype), X.to(dtype), **options
    ),
}
MORE_OPTIONS = {"Planar": [{"num_flows": 1}], "Sylvester": [{"num_units": 1}]}


def builder(kind, options):
    make = SPECIAL.get(kind.__name__, plain)

    def build(latent_dim=3, dtype=torch.float64, seed=0):
        pyro.set_rng_seed(seed)
        return make(kind, latent_dim, dtype, **options)

    return build


def variants(kind):
    """An option at a time: every value of those that are a choice, by their type hints."""
    hints = typing.get_type_hints(kind.__init__)
    choices = {
        n: typing.get_args(h) for n, h in hints.items() if typing.get_origin(h) is typing.Literal
    }
    options = [{name: value} for name, values in choices.items() for value in values]
    return (options or [{}]) + MORE_OPTIONS.get(kind.__name__, [])


BUILDS = {
    f"{name}{options or ''}": builder(kind, options)
    for name, kind in all_guides().items()
    for options in variants(kind)
}
DENSITIES = {name: build for name, build in BUILDS.items() if name != "Delta"}


# The checks.


def check_shapes_and_types(build):
    for dtype in (torch.float32, torch.float64):
        for batch in (1, 5):
            guide, x = build(dtype=dtype), X[:batch].to(dtype)
            posterior = guide.posterior(x)
            assert posterior.batch_shape == (batch,)
            assert posterior.event_shape == (3,)
            for z in (guide(x), guide.posterior_mean(x), posterior.sample()):
                assert z.shape == (batch, 3)
                assert z.dtype == dtype
            assert posterior.log_prob(posterior.sample()).dtype == dtype


def check_one_latent_is_enough(build):
    posterior = build(latent_dim=1).posterior(X)
    z = posterior.rsample((4,))
    assert z.shape == (4, 5, 1)
    assert torch.allclose(posterior.log_prob(z), posterior.log_prob(z.clone()), rtol=0, atol=1e-8)


def check_particle_dims(build):
    """Any number of dimensions left of the batch, and each particle by itself.

    Torch itself cannot score an empty tensor, not even by a Gaussian; it can be drawn.
    """
    posterior = at(build(), draws_of(build(), 5, 0.5))
    assert posterior.rsample((0,)).shape == (0, 5, 3)
    for shape in ((), (1,), (4,), (2, 3)):
        z = posterior.rsample(shape)
        assert z.shape == (*shape, 5, 3)
        for value in (z, z.clone()):
            assert posterior.log_prob(value).shape == (*shape, 5)
            assert posterior.log_prob(value).isfinite().all()
    z = posterior.rsample((4,))
    one_by_one = torch.stack([posterior.log_prob(particle) for particle in z])
    assert torch.allclose(posterior.log_prob(z), one_by_one, rtol=0, atol=1e-10)


def check_sites(build):
    """All latents are drawn inside the data plate, and make up the z that comes back."""
    guide = build()
    trace = poutine.trace(guide).get_trace(X)
    sites = {n: trace.nodes[n] for n in trace.stochastic_nodes if n != "data"}
    for site in sites.values():
        assert [(f.name, f.dim, f.size) for f in site["cond_indep_stack"]] == [("data", -1, 5)]
    for name, value in guide.site_values(trace.nodes["_RETURN"]["value"]).items():
        assert torch.equal(trace.nodes[name]["value"], value)


def check_rows(build):
    """Row i, of the draws and of log q, depends on x[i] only."""
    guide, changed = build(), X.clone()
    changed[2] = X[4]

    def draw(x):
        pyro.set_rng_seed(1)
        return guide.posterior(x).rsample()

    z = draw(X)
    assert row_differs(z, draw(changed)) == [False, False, True, False, False]
    if not isinstance(guide, Delta):
        first, second = (guide.posterior(x).log_prob(z.clone()) for x in (X, changed))
        assert row_differs(first[:, None], second[:, None]) == [False, False, True, False, False]


def check_batches(build):
    """q(z | x) is a function of x: the same in any order of rows, alone, and in a larger batch."""
    guide = build()
    batches = {
        "in another order": [torch.tensor([3, 0, 4, 2, 1])],
        "alone": torch.arange(5).split(1),
        "in parts": torch.arange(5).split(2),
        "beside copies": [torch.arange(15) % 5],
    }
    local, z = guide.local_parameters(X), guide.posterior(X).sample((3,))
    for name, parts in batches.items():
        for rows in parts:
            found = guide.local_parameters(X[rows])
            assert torch.allclose(found, local[rows], rtol=0, atol=1e-8), name
            if not isinstance(guide, Delta):
                found = guide.posterior(X[rows]).log_prob(z[:, rows])
                expected = guide.posterior(X).log_prob(z.clone())[:, rows]
                assert torch.allclose(found, expected, rtol=0, atol=1e-7), name


def row_differs(first, second):
    return ((first - second).abs() > 1e-12).any(-1).tolist()


def check_gradients_reach_every_parameter(build):
    guide = build(dtype=torch.float32)
    posterior = guide.posterior(X.float())
    z = posterior.rsample()
    (z.pow(3).sum() + posterior.log_prob(z).sum()).backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def check_blank_datum(build):
    """At x = 0 a new encoder's outputs are all zero; no gradient breaks there."""
    guide = build()
    x = X if type(guide).__name__ == "Unamortized" else torch.zeros_like(X)
    posterior = guide.posterior(x)
    z = posterior.rsample()
    (z.pow(3).sum() + posterior.log_prob(z).sum() + posterior.log_prob(z.clone()).sum()).backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is None or parameter.grad.abs().max() < 1e4, name


def check_state_dict(build):
    guide, other = build(), build(seed=1)
    other.load_state_dict(guide.state_dict())
    pyro.set_rng_seed(1)
    first = guide(X)
    pyro.set_rng_seed(1)
    assert torch.equal(other(X), first)


def check_local_parameters(build):
    """A guide is what its local parameters make of it."""
    guide = build()
    same = guide.given(guide.local_parameters(X))
    pyro.set_rng_seed(1)
    z = guide.posterior(X).rsample()
    pyro.set_rng_seed(1)
    assert torch.allclose(same.posterior(X).rsample(), z, rtol=0, atol=1e-12)
    if not isinstance(guide, Delta):
        expected = guide.posterior(X).log_prob(z.clone())
        assert torch.allclose(same.posterior(X).log_prob(z.clone()), expected, rtol=0, atol=1e-12)


def check_any_z_is_scored(build):
    """log q of a draw is log q of the same numbers from elsewhere, also with large weights."""
    for dtype, std, tolerance in (
        (torch.float64, 0.5, 1e-8),
        (torch.float64, 1.0, 1e-8),
        (torch.float32, 0.5, 1e-2),
    ):
        guide = build(dtype=dtype)
        posterior = at(guide, draws_of(guide, 200, std))
        with torch.no_grad():
            z = posterior.rsample((4,))
            error = (posterior.log_prob(z) - posterior.log_prob(z.clone())).abs()
        assert error.max() < tolerance, (dtype, std, error.max())


def check_jacobian(build, num_draws=1000, num_points=10):
    """log q(z) = log N(ε) − log|det ∂z/∂ε|, with the Jacobian by automatic differentiation.

    For guides that turn standard normal ε of z's size into z, at large weights, for z that are
    drawn and z that come from elsewhere. Left out are the places where the smallest singular value
    or the determinant is below 1e-4, and double precision does not hold 1e-8: of networks with
    large weights that is much of the space, for splines nearly all. Beyond these weights it is not
    enough: at a gain of 1.5 MAF returns from a point of 30,000 with an error of 1.2e-8, as its
    layers stretch what the next ones shrink.
    """
    deep = has_global_weights(build())
    std = 0.7 if deep else 2.0  # where a network makes a log-scale, less is large already
    shares = []
    for seed, gain in enumerate((0.5, 1.0, 1.25) if deep else (0.0,)):
        guide = build()
        randomize_global_weights(guide, seed, gain)
        local = draws_of(guide, num_draws, std)
        noise = torch.randn(num_points, num_draws, 3, dtype=torch.float64).requires_grad_()
        posterior = at(guide, local)
        z = draw_with(posterior, noise)
        if z is None:
            pytest.skip("z is more than standard normals of its size: quadrature checks it")
        jacobian = jacobian_of(z, noise)
        ladj = torch.linalg.slogdet(jacobian).logabsdet
        regular = torch.linalg.svdvals(jacobian)[..., -1] > 1e-4
        regular &= ladj > math.log(1e-4)
        shares.append(regular.double().mean().item())
        expected = dist.Normal(0.0, 1.0).log_prob(noise).sum(-1) - ladj
        with torch.no_grad():
            own, foreign = posterior.log_prob(z), posterior.log_prob(z.clone())
        assert worst(own - expected, regular) < 1e-8
        assert worst(foreign - expected, regular) < 1e-8
        if hasattr(posterior, "transforms"):
            assert worst(round_trip_error(posterior, noise), regular) < 1e-8
    assert shares[0] > 0.8
    assert not deep or sum(shares[1:]) > 0.1  # of larger weights there is something left to check


@torch.no_grad()
def round_trip_error(posterior, noise):
    """From the base draw through the layers and, from a copy, back again: `[...]`."""
    start = draw_with(posterior.base_dist, noise)
    z = start
    for transform in posterior.transforms:
        z = transform(z)
    z = z.clone()
    for transform in reversed(posterior.transforms):
        z = transform.inv(z)
    return (z - start).abs().amax(-1)


def check_integral(build):
    """The density over the plane integrates to one.

    Moderate weights keep it from spikes that a grid would miss; networks between latents make some.
    """
    guide = build(latent_dim=2)
    randomize_global_weights(guide, 0, gain=0.3)
    for local in draws_of(guide, 2, 0.25 if has_global_weights(guide) else 0.5).split(1):
        with torch.no_grad():
            posterior = at(guide, local)
            points, area = plane_around(posterior)
            chunks = [posterior.log_prob(chunk) for chunk in points.split(25_000)]
        integral = torch.cat(chunks).exp().sum() * area
        assert abs(integral - 1) < 1e-4, integral


def plane_around(posterior, steps=700):
    """A grid that holds nearly all of the mass, `[points, 1, 2]`, and the area of a cell."""
    z = posterior.sample((4000,)).squeeze(1)
    low, high = z.amin(0) - 3 * z.std(0), z.amax(0) + 3 * z.std(0)
    axes = [torch.linspace(*ends, steps, dtype=z.dtype) for ends in zip(low, high, strict=True)]
    area = ((high - low) / (steps - 1)).prod()
    return torch.cartesian_prod(*axes).unsqueeze(1), area


def check_gradients_at_any_z(build):
    """Of log q at a z from elsewhere, to z, to λ and to the global weights: finite differences."""
    guide = build()
    randomize_global_weights(guide, 0, gain=0.5)  # finite differences err where it is steep
    local = draws_of(guide, 4, 0.5)
    z = at(guide, local).sample((3,)).clone()
    weights = torch.randn(3, 4, dtype=torch.float64)
    inputs = [z, local, *guide.given(local).parameters()]

    def objective():
        return (weights * at(guide, local).log_prob(z.clone())).sum()

    for tensor in inputs:
        tensor.requires_grad_(True)
    gradients = torch.autograd.grad(objective(), inputs, materialize_grads=True)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        direction = torch.randn_like(tensor)
        direction /= direction.norm()
        numeric = central_difference(objective, tensor, direction)
        exact = (gradient * direction).sum()
        assert abs(numeric - exact) < 1e-6 * (1 + abs(exact)), (tuple(tensor.shape), numeric, exact)


@torch.no_grad()
def central_difference(function, tensor, direction, step=1e-5):
    """Of fourth order: the error is step⁴."""
    total = 0.0
    for multiple, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
        tensor.add_(multiple * step * direction)
        total += weight * function()
        tensor.sub_(multiple * step * direction)
    return total / (12 * step)


def check_scores_of_own_draws(build):
    """∇_λ log q(z; λ) at a z drawn without gradients is that at the same numbers from elsewhere."""
    guide = build()
    local = draws_of(guide, 4, 0.5).requires_grad_()
    posterior = at(guide, local)
    z = posterior.sample((3,))
    (own,) = torch.autograd.grad(posterior.log_prob(z).sum(), local)
    (foreign,) = torch.autograd.grad(at(guide, local).log_prob(z.clone()).sum(), local)
    assert torch.allclose(own, foreign, rtol=0, atol=1e-8)


def check_reparameterization(build, num_draws=20_000):
    """∇_λ E_q[f(z)]: the mean of gradients through the draws beside quadrature of ∫ q f dz.

    |z| < 5 for each entry of λ; the SE is that of the mean of the draws' gradients.
    """
    guide = build(latent_dim=2)
    start = draws_of(guide, 1, 0.3)
    if not at(guide, start).has_rsample:
        pytest.skip("its draws carry no gradients")

    def f(z):
        return z.sin().sum(-1) + z.prod(-1) + 0.5 * z[..., 0].square()

    local = start.expand(num_draws, -1).clone().requires_grad_()
    f(at(guide, local).rsample()).sum().backward()
    mean, se = local.grad.mean(0), local.grad.std(0) / math.sqrt(num_draws)
    exact = gradient_by_quadrature(f, guide, start.clone().requires_grad_())
    assert ((mean - exact).abs() < 5 * se + 1e-5).all(), (mean, exact, se)


def gradient_by_quadrature(f, guide, local):
    """∇_λ ∫ q(z; λ) f(z) dz over the plane, for λ `[1, P]`: `[P]`."""
    points, area = plane_around(at(guide, local), steps=400)
    for chunk in points.split(25_000):
        density = at(guide, local).log_prob(chunk).exp()
        ((density * f(chunk)).sum() * area).backward()
    return local.grad[0]


FOR_ALL = [
    check_shapes_and_types,
    check_sites,
    check_rows,
    check_batches,
    check_gradients_reach_every_parameter,
    check_state_dict,
    check_local_parameters,
]
FOR_DENSITIES = [
    check_particle_dims,
    check_blank_datum,
    check_any_z_is_scored,
    check_jacobian,
    check_integral,
    check_gradients_at_any_z,
    check_scores_of_own_draws,
    check_reparameterization,
]


@pytest.mark.parametrize("check", FOR_ALL)
@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_contract(build, check):
    check(build)


@pytest.mark.parametrize("check", FOR_DENSITIES)
@pytest.mark.parametrize("build", DENSITIES.values(), ids=DENSITIES)
def test_contract_of_a_density(build, check):
    check(build)


NEEDS_TWO_LATENTS = ("Hierarchical",)  # one for each layer


@pytest.mark.parametrize(
    "build", [b for name, b in DENSITIES.items() if not name.startswith(NEEDS_TWO_LATENTS)]
)
def test_one_latent_is_enough(build):
    check_one_latent_is_enough(build)


# What the checks are made of.


def at(guide, local_parameters):
    """The posterior at given local parameters `[N, P]`; x does not matter."""
    x = local_parameters.new_zeros(len(local_parameters), DATA_DIM)
    return guide.given(local_parameters).posterior(x)


def draws_of(guide, number, std):
    """Local parameters from N(0, std²), `[number, P]`."""
    x = X.to(next(guide.parameters()).dtype)
    like = guide.local_parameters(x)
    pyro.set_rng_seed(2)
    return std * torch.randn(number, like.shape[-1], dtype=like.dtype)


def has_global_weights(guide):
    return any(True for _ in guide.given(guide.local_parameters(X)).parameters())


@torch.no_grad()
def randomize_global_weights(guide, seed, gain):
    """Add N(0, gain² / fan-in) to every weight, N(0, gain² / 10) to every bias.

    Weights start with a gain of about one. Flows trained on the energies in the plane have 0.9 in
    the median and 1.8 at the most, as the square root of fan-in times the mean square.
    """
    pyro.set_rng_seed(seed)
    for parameter in guide.given(guide.local_parameters(X)).parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 10
        parameter.add_(gain / math.sqrt(fan_in) * torch.randn_like(parameter))


def jacobian_of(z, noise):
    """∂z_i/∂ε_j of every point: `[..., Z, Z]`."""
    rows = [
        torch.autograd.grad(z[..., i].sum(), noise, retain_graph=True)[0]
        for i in range(z.shape[-1])
    ]
    return torch.stack(rows, -2)


def worst(error, where):
    return (error.abs() * where).max()


def draw_with(posterior, noise) -> Tensor | None:
    """The draw that standard normal `noise`, `[..., Z]`, makes; None if it is made of other things.

    Torch's Gaussians all take their noise from one function, which is replaced here. A draw that
    needs more of it, or moves the random state, is made of other things.
    """
    left = [noise]

    def give(shape, dtype, device):
        piece, left[0] = left[0][..., : shape[-1]], left[0][..., shape[-1] :]
        if piece.shape != shape:
            raise LookupError
        return piece

    state = torch.get_rng_state()
    modules = ("normal", "multivariate_normal", "lowrank_multivariate_normal")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(LookupError):
        for module in modules:
            patch.setattr(f"torch.distributions.{module}._standard_normal", give)
        z = posterior.rsample(noise.shape[:-2])
        if left[0].shape[-1] == 0 and torch.equal(torch.get_rng_state(), state):
            return z
    return None


# The planted errors: each must fail its check, and the guide that it is made of passes it.


def broken(kind, **options):
    return builder(kind, options)


class Squeezed(MeanField):
    """Loses the batch dimension of a single datum."""

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        return dist.Normal(loc.squeeze(0), log_scale.exp().squeeze(0)).to_event(1)


class WithoutEventDim(MeanField):
    """Takes a single latent for a number."""

    def posterior(self, x):
        loc, log_scale = (output.squeeze(-1) for output in self.encode(x))
        return dist.Normal(loc, log_scale.exp()).to_event(1)


class Single(MeanField):
    """Computes in single precision."""

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        return dist.Normal(loc.float(), log_scale.float().exp()).to_event(1)


class MeanOverParticles(Planar):
    """One log-determinant for all particles."""

    def layers(self, parameters):
        return Changed(super().layers(parameters), lambda ladj: 0 * ladj + ladj.mean())


class Changed(PlanarLayers):
    """Planar layers whose log-determinant is tampered with."""

    def __init__(self, layers, change):
        self.__dict__ |= layers.__dict__
        self.change = change

    def push(self, x):
        y, ladj = super().push(x)
        return y, self.change(ladj)

    def pull(self, y):
        x, ladj = super().pull(y)
        return x, self.change(ladj)


class WithoutLogDet(Planar):
    def layers(self, parameters):
        return Changed(super().layers(parameters), torch.zeros_like)


class OffByAThousandth(Planar):
    """The density is 1.001 times what it should be."""

    def layers(self, parameters):
        return Changed(super().layers(parameters), lambda ladj: ladj - math.log(1.001))


class OutsideThePlate(MeanField):
    def forward(self, x):
        self.register()
        return pyro.sample(self.site, self.posterior(x).to_event(1))


class OtherValue(MeanField):
    """Hands back another z than it sampled."""

    def sample_sites(self, posterior):
        return super().sample_sites(posterior) + 1


class CentredOverTheBatch(MeanField):
    """Subtracts the mean over data, as BatchNorm does."""

    def local_parameters(self, x):
        outputs = super().local_parameters(x)
        return outputs - outputs.mean(0)


class NoiseByRow(MeanField):
    """Adds the noise of a fixed seed, another in every row."""

    def local_parameters(self, x):
        outputs = super().local_parameters(x)
        generator = torch.Generator().manual_seed(0)
        return outputs + torch.randn(outputs.shape, generator=generator, dtype=x.dtype)


class DrawsInItsPosterior(MeanField):
    """Has another location at every call."""

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        return dist.Normal(loc + torch.rand_like(loc), log_scale.exp()).to_event(1)


class WithoutScaleGradient(MeanField):
    """Its scales are a parameter that no gradient reaches."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.log_scale = torch.nn.Parameter(torch.zeros(self.latent_dim))

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        scale = log_scale.exp() * self.log_scale.detach().exp()
        return dist.Normal(loc, scale).to_event(1)


class WithForgottenState(MeanField):
    """Draws a shift at its making that is no part of its state."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.shift = torch.randn(self.latent_dim, dtype=torch.float64)

    def posterior(self, x):
        loc, log_scale = self.encode(x)
        return dist.Normal(loc + self.shift, log_scale.exp()).to_event(1)


class OtherLocalParameters(MeanField):
    """Its local parameters are not those of its posterior."""

    def posterior(self, x):
        loc, log_scale = self.encoder(x).mul(2).split(self.output_dims, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def given(self, local_parameters):
        return super().given(local_parameters / 3)


class SingularAtZero(Planar):
    """Divides by the norm of an output that starts at zero."""

    def posterior(self, x):
        loc, log_scale, flat = self.encode(x)
        relative = log_scale / (flat.norm(dim=-1, keepdim=True) + 1e-9)
        return dist.Normal(loc, relative.exp()).to_event(1)


class _Detached(PlanarLayers):
    """The inverse with the root as a constant."""

    def pull(self, y):
        with torch.no_grad():
            x = super().pull(y)[0]
        return x, self.push(x)[1]


class DetachedInverse(Planar):
    def layers(self, parameters):
        size = self.latent_dim
        return _Detached(*parameters.split((1, size, size), -1))


class _AsInPyro(SylvesterLayers):
    """Pyro's formula: it multiplies rows from the right by what stands for columns."""

    def push(self, x):
        ladj = 0.0
        for inward, outward, _, slope, bias in self._layers:
            t = torch.tanh((x.unsqueeze(-2) @ inward).squeeze(-2) + bias)
            x = x + (t.unsqueeze(-2) @ outward).squeeze(-2)
            ladj = ladj + inversion.rise(slope, t).log().sum(-1)
        return x, ladj


class SylvesterAsInPyro(Sylvester):
    def layers(self, parameters):
        layers = super().layers(parameters)
        layers.__class__ = _AsInPyro
        return layers


class _StaleCache(PlanarLayers):
    """The cache of torch and Pyro, which remembers draws without their gradients."""

    def _forget_if_without_gradients(self):
        pass


class StaleCache(Planar):
    def layers(self, parameters):
        size = self.latent_dim
        return _StaleCache(*parameters.split((1, size, size), -1))


class _DetachedDraw(PlanarLayers):
    """Draws without the gradients of the layers."""

    def push(self, x):
        y, ladj = super().push(x)
        return x + (y - x).detach(), ladj


class DetachedDraw(Planar):
    def layers(self, parameters):
        size = self.latent_dim
        return _DetachedDraw(*parameters.split((1, size, size), -1))


PLANTED = [
    (check_shapes_and_types, Squeezed, MeanField),
    (check_shapes_and_types, Single, MeanField),
    (check_one_latent_is_enough, WithoutEventDim, MeanField),
    (check_particle_dims, MeanOverParticles, Planar),
    (check_sites, OutsideThePlate, MeanField),
    (check_sites, OtherValue, MeanField),
    (check_rows, CentredOverTheBatch, MeanField),
    (check_batches, CentredOverTheBatch, MeanField),
    (check_batches, NoiseByRow, MeanField),
    (check_batches, DrawsInItsPosterior, MeanField),
    (check_gradients_reach_every_parameter, WithoutScaleGradient, MeanField),
    (check_blank_datum, SingularAtZero, Planar),
    (check_state_dict, WithForgottenState, MeanField),
    (check_local_parameters, OtherLocalParameters, MeanField),
    (check_any_z_is_scored, SylvesterAsInPyro, Sylvester),
    (check_jacobian, WithoutLogDet, Planar),
    (check_jacobian, OffByAThousandth, Planar),
    (check_jacobian, SylvesterAsInPyro, Sylvester),
    (check_integral, WithoutLogDet, Planar),
    (check_integral, OffByAThousandth, Planar),
    (check_gradients_at_any_z, DetachedInverse, Planar),
    (check_scores_of_own_draws, StaleCache, Planar),
    (check_reparameterization, DetachedDraw, Planar),
    (check_reparameterization, WithoutLogDet, Planar),
]


@pytest.mark.parametrize(("check", "wrong", "right"), PLANTED)
def test_a_planted_error_is_found(check, wrong, right):
    check(broken(right))
    with pytest.raises(AssertionError):
        check(broken(wrong))


@pytest.mark.parametrize("check", [check_any_z_is_scored, check_jacobian])
@pytest.mark.parametrize("kind", [Planar, Sylvester])
def test_an_inverse_that_stops_early_is_found(kind, check, monkeypatch):
    newton = inversion.newton
    monkeypatch.setattr(inversion, "newton", lambda *problem: newton(*problem, max_steps=3))
    with pytest.raises(AssertionError):
        check(broken(kind))


# Guides one by one.


def make(kind, dtype=torch.float32, /, **options):
    pyro.set_rng_seed(0)
    return plain(kind, 3, dtype, **options)


def test_the_latent_site_has_the_name_that_is_given():
    trace = poutine.trace(make(Planar, site="w")).get_trace(X.float())
    assert "w" in trace.stochastic_nodes


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
        (lambda: make(Planar, num_flows=0), "expected num_flows of at least 1, got 0"),
        (lambda: make(FullRank, activation="rleu"), "did you mean 'relu'"),
        (lambda: make(Sylvester, kind="housholder"), "did you mean 'householder'"),
        (lambda: make(Sylvester, num_units=4), "expected num_units from 1 to 3 latents, got 4"),
        (lambda: make(Sylvester, num_units=0), "expected num_units from 1 to 3 latents, got 0"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


STUDENT_GUIDE = textwrap.dedent("""
    import pyro.distributions as dist
    from evidence.guides import AbstractGuide

    class Laplace(AbstractGuide):
        '''Independent Laplace posteriors.'''

        def __init__(self, latent_dim: int, data_dim: int, *, hidden_dims: list[int]) -> None:
            sizes = (latent_dim, latent_dim)
            super().__init__(latent_dim, data_dim, output_dims=sizes, hidden_dims=hidden_dims)

        def posterior(self, x):
            loc, log_scale = self.encode(x)
            return dist.Laplace(loc, log_scale.exp()).to_event(1)
""")


@pytest.fixture
def student_guide(tmp_path, monkeypatch):
    (tmp_path / "laplace.py").write_text(STUDENT_GUIDE)
    monkeypatch.setattr(guides, "__path__", [*guides.__path__, str(tmp_path)])
    yield
    sys.modules.pop("evidence.guides.laplace", None)


@pytest.mark.usefixtures("student_guide")
def test_a_new_guide_is_found_by_its_file():
    model = VAE(8, 3, hidden_dims=(16, 4))
    guide, spec = catalogue.build_guide(Spec.parse("Laplace"), model, X.round())
    assert isinstance(guide, AbstractGuide)
    assert str(spec) == "Laplace(hidden_dims=[4, 16])"


@pytest.mark.usefixtures("student_guide")
def test_a_new_guide_is_under_contract_by_its_file():
    (build,) = [builder(kind, {}) for name, kind in all_guides().items() if name == "Laplace"]
    for check in [*FOR_ALL, *FOR_DENSITIES]:
        if check is not check_jacobian:  # it is not made of normals
            check(build)


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
    _, spec = catalogue.build_guide(Spec.parse("Planar(num_flows=2)"), model, X.round())
    assert spec.options == {
        "num_flows": 2,
        "hidden_dims": [4, 16],
        "activation": "tanh",
        "channels": [],
        "site": "z",
    }
    _, spec = catalogue.build_guide(Spec.parse("MeanField"), LinearGaussian(8, 3), X)
    assert spec.options["hidden_dims"] == []


@pytest.mark.parametrize("text", ["Planar(", "Planar(3)", "1", "Planar(num_flows=f(2))", ""])
def test_unreadable_specs_are_named(text):
    with pytest.raises(ValueError, match=r"expected Name or Name\(option=value"):
        Spec.parse(text)
