"""Flows of networks: masks, determinants, inverses, splines, and Pyro's transforms beside them."""

import copy
import math

import pyro.distributions as dist
import pyro.distributions.transforms as peers
import pytest
import torch
import torch.nn.functional as F
from pyro.distributions.transforms.spline import _monotonic_rational_spline
from pyro.nn import ConditionalAutoRegressiveNN
from torch import nn

from evidence.guides import (
    IAF,
    MAF,
    MeanField,
    NeuralSpline,
    RealNVP,
    network_flow,
)
from evidence.guides.transforms.affine import Affine
from evidence.guides.transforms.autoregressive import Autoregressive
from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.chain import Chain, Reversed, alternating
from evidence.guides.transforms.coupling import Coupling, coupling_network
from evidence.guides.transforms.elementwise import BoundedAffine
from evidence.guides.transforms.made import Made
from evidence.guides.transforms.spline import RationalQuadratic, _invert

DOUBLE = {"dtype": torch.float64}
CONTEXT_DIM, HIDDEN = 4, (16, 16)
FLOWS = {
    "IAF": (IAF, {}),
    "MAF": (MAF, {}),
    "RealNVP": (RealNVP, {}),
    "NeuralSpline": (NeuralSpline, {}),
    "NeuralSpline, coupling": (NeuralSpline, {"kind": "coupling"}),
}


def randn(*shape, std=1.0):
    return std * torch.randn(shape, **DOUBLE)


@torch.no_grad()
def randomize(network, std):
    """Weights that multiply the size of what passes through a layer by about `std`."""
    for parameter in network.parameters():
        fan_in = parameter.shape[-1] if parameter.ndim > 1 else 1
        parameter.normal_(std=std / math.sqrt(fan_in))
    return network


def made(dim, element, std, hidden_dims=HIDDEN):
    return randomize(Made(dim, CONTEXT_DIM, hidden_dims, element.num_parameters).double(), std)


def autoregressive(element, given):
    def make(dim, std, context):
        return Autoregressive(made(dim, element, std).given(context), element, given=given)

    return make


def coupling(element):
    def make(dim, std, context):
        network = coupling_network(dim, CONTEXT_DIM, HIDDEN, element).double()
        return Coupling(randomize(network, std), context, element)

    return make


def chain(dim, std, context):
    """One layer of each kind, not all in the same order."""
    kinds = [autoregressive(SPLINE, "x"), coupling(AFFINE), autoregressive(AFFINE, "y")]
    parts = alternating([make(dim, std / 2, context) for make in kinds])
    return Chain([*parts, Affine(randn(dim), randn(dim, std=0.5))])


AFFINE, SPLINE = BoundedAffine(), RationalQuadratic()
LAYERS = {
    "affine, given x": autoregressive(AFFINE, "x"),
    "affine, given y": autoregressive(AFFINE, "y"),
    "spline, given x": autoregressive(SPLINE, "x"),
    "spline, given y": autoregressive(SPLINE, "y"),
    "affine coupling": coupling(AFFINE),
    "spline coupling": coupling(SPLINE),
    "chain": chain,
}
all_layers = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
all_flows = pytest.mark.parametrize(("kind", "options"), FLOWS.values(), ids=FLOWS)


# Determinants and inverses.


def jacobian_of(y, x):
    """∂y_i/∂x_j of every point, `[..., Z, Z]`."""
    rows = [
        torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(x.shape[-1])
    ]
    return torch.stack(rows, -2)


def errors(flow, x):
    """Worst errors of ladj and inverse where double precision allows 1e-8, and that share."""
    x = x.clone().requires_grad_()
    y, ladj = flow.push(x)
    jacobian = jacobian_of(y, x)
    exact = torch.linalg.slogdet(jacobian).logabsdet
    with torch.no_grad():
        back, ladj_back = flow.pull(y.clone())
    regular = (torch.linalg.svdvals(jacobian)[..., -1] > 1e-3) & (exact.abs() < 15)
    found = ((ladj - exact).abs(), (back - x).abs().amax(-1), (ladj_back - exact).abs())
    return [error[regular].max().item() for error in found], regular.double().mean()


@all_layers
@pytest.mark.parametrize("dim", [1, 2, 3, 8])
@pytest.mark.parametrize("std", [0.3, 1.0, 2.0])
def test_determinants_and_inverses(make, dim, std):
    """200 contexts with 10 points each; the largest weights saturate scales and slopes.

    There most splines are too steep for 1e-8, and are checked where they are not.
    """
    found, share = errors(make(dim, std, randn(200, CONTEXT_DIM)), randn(10, 200, dim, std=1.5))
    assert share > (0.5 if std < 2 else 0.0)
    assert max(found) < 1e-8, found


class WithoutLogDet(Autoregressive):
    def push(self, x):
        return super().push(x)[0], x.new_zeros(x.shape[:-1])


class SignOfTheOtherDirection(Autoregressive):
    def pull(self, y):
        x, ladj = super().pull(y)
        return x, -ladj


class StopsEarly(Autoregressive):
    """One pass fewer than there are inputs, as if the first needed none."""

    def pull(self, y):
        x = torch.zeros_like(y)
        for _ in range(y.shape[-1] - 1):
            x, ladj = self.element.pull(y, self.network(x))
        return x, -ladj.sum(-1)


class FlatTails(RationalQuadratic):
    """Constant outside of the box."""

    def _with_tails(self, start, end, ladj):
        return end, torch.where(start.abs() < self.tail_bound, ladj, 0.0)


class TailsOfAnotherBox(RationalQuadratic):
    """The identity begins too early."""

    def _with_tails(self, start, end, ladj):
        is_inside = start.abs() < 0.9 * self.tail_bound
        return torch.where(is_inside, end, start), torch.where(is_inside, ladj, 0.0)


class ClampedAffine(BoundedAffine):
    """As Pyro's: the clamp that the gradients do not see."""

    def _shift_and_log_scale(self, parameters):
        shift, raw = parameters.unbind(-1)
        return shift, raw + (raw.clamp(-1, 1) - raw).detach()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda network: WithoutLogDet(network, AFFINE, given="x"),
        lambda network: Reversed(WithoutLogDet(network, AFFINE, given="x")),
        lambda network: SignOfTheOtherDirection(network, AFFINE, given="x"),
        lambda network: StopsEarly(network, AFFINE, given="x"),
        lambda network: Autoregressive(network, ClampedAffine(), given="x"),
    ],
)
def test_planted_errors_are_found(wrong):
    """A wrong determinant, inverse or gradient fails one of the two checks."""
    network, context, x = made(3, AFFINE, 2.0), randn(200, CONTEXT_DIM), randn(10, 200, 3)

    def is_right(layer):
        found, _ = errors(layer(network.given(context)), x)
        return max(found) < 1e-8 and has_exact_gradients(network, layer, context, x)

    assert is_right(lambda network: Autoregressive(network, AFFINE, given="x"))
    assert not is_right(wrong)


def has_exact_gradients(network, layer, context, x):
    """Whether ∂ladj/∂weights is that of central differences."""
    weight = network.layers[-1].weight
    direction = torch.randn_like(weight)

    def total():
        return layer(network.given(context)).push(x)[1].sum()

    (gradient,) = torch.autograd.grad(total(), weight)
    with torch.no_grad():
        weight += 1e-5 * direction
        above = total()
        weight -= 2e-5 * direction
        below = total()
        weight += 1e-5 * direction
    exact = (gradient * direction).sum()
    return abs((above - below) / 2e-5 - exact) < 1e-4 * (1 + abs(exact))


@pytest.mark.parametrize("element", [FlatTails(), TailsOfAnotherBox()])
def test_wrong_tails_are_found(element):
    make = autoregressive(element, "x")
    found, share = errors(make(3, 1.0, randn(200, CONTEXT_DIM)), randn(10, 200, 3, std=5.0))
    assert share < 0.5 or max(found) > 1e-8


@all_layers
def test_gradients_in_both_directions(make):
    """To points and to contexts, through images and origins that were not drawn here."""
    points = randn(2, 3, std=0.7).requires_grad_()
    context = randn(2, CONTEXT_DIM).requires_grad_()

    def run(direction):
        def go(points, context):
            torch.manual_seed(0)
            return getattr(make(3, 0.7, context), direction)(points)

        return go

    for direction in ("push", "pull"):
        assert torch.autograd.gradcheck(run(direction), (points, context))


@all_layers
def test_gradients_to_all_weights_through_the_inverse(make):
    layer = make(3, 0.7, randn(2, CONTEXT_DIM))
    networks = [
        m for part in getattr(layer, "parts", [layer]) for m in [getattr(part, "part", part)]
    ]
    parameters = [
        p
        for n in networks
        if hasattr(n, "network")
        for p in getattr(n.network, "made", n.network).parameters()
    ]
    x, ladj = layer.pull(randn(2, 3))
    gradients = torch.autograd.grad(x.sum() + ladj.sum(), parameters)
    assert all(gradient.any() for gradient in gradients)


@all_layers
@pytest.mark.parametrize("particles", [(), (0,), (4,), (2, 3)])
@pytest.mark.parametrize("dim", [1, 4])
def test_particle_dims(make, particles, dim):
    layer, x = make(dim, 1.0, randn(5, CONTEXT_DIM)), randn(*particles, 5, dim)
    for values, ladj in (layer.push(x), layer.pull(x)):
        assert values.shape == x.shape
        assert ladj.shape == x.shape[:-1]
    if len(particles) == 1 and particles[0]:
        one_by_one = torch.stack([layer.pull(particle)[0] for particle in x])
        assert torch.allclose(one_by_one, layer.pull(x)[0], rtol=0, atol=1e-12)


@all_layers
def test_rows_depend_on_their_own_context(make):
    context, x = randn(5, CONTEXT_DIM), randn(5, 3)
    changed = context.clone()
    changed[2] += 1
    outputs = []
    for given in (context, changed):
        torch.manual_seed(0)
        layer = make(3, 1.0, given)
        outputs.append(torch.cat((layer.push(x)[0], layer.pull(x)[0]), -1))
    differs = (outputs[0] != outputs[1]).any(-1)
    assert differs.tolist() == [False, False, True, False, False]


@all_layers
def test_densities_integrate_to_one(make):
    """Of standard normals pushed through a layer, over the plane."""
    with torch.no_grad():
        layer = make(2, 0.3, randn(1, CONTEXT_DIM))
        base = dist.Normal(torch.zeros(1, 2, **DOUBLE), 1.0).to_event(1)
        posterior = dist.TransformedDistribution(base, [layer])
        assert abs(integral(posterior) - 1) < 1e-4
        layer.push = lambda x: (type(layer).push(layer, x)[0], x.new_zeros(x.shape[:-1]))
        layer.pull = lambda y: (type(layer).pull(layer, y)[0], y.new_zeros(y.shape[:-1]))
        assert abs(integral(posterior) - 1) > 1e-3


def integral(posterior, steps=600):
    z = posterior.sample((4000,)).squeeze(1)
    low, high = z.amin(0) - 3 * z.std(0), z.amax(0) + 3 * z.std(0)
    axes = [torch.linspace(*ends, steps, **DOUBLE) for ends in zip(low, high, strict=True)]
    points = torch.cartesian_prod(*axes).unsqueeze(1)
    densities = [posterior.log_prob(chunk).exp().sum() for chunk in points.split(40_000)]
    return sum(densities) * ((high - low) / (steps - 1)).prod()


# Masks.


@pytest.mark.parametrize("hidden_dims", [(16,), (32, 16), (2,), (3, 40, 5)])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_an_output_sees_the_inputs_before_it(hidden_dims, dim):
    """All of them where the layers are wide enough, and none of the others."""
    network = randomize(Made(dim, CONTEXT_DIM, hidden_dims, 3).double(), 1.0)
    assert_autoregressive(network, exactly=min(hidden_dims) >= dim)


def assert_autoregressive(network, exactly):
    x, context = randn(1, network.dim), randn(1, CONTEXT_DIM)
    to_x = torch.autograd.functional.jacobian(lambda x: network.given(context)(x)[0], x)[:, :, 0]
    to_context = torch.autograd.functional.jacobian(lambda c: network.given(c)(x)[0], context)
    sees = to_x.abs().sum(1) > 0  # [Z, Z]
    lower = torch.ones_like(sees).tril(-1)
    assert not (sees & ~lower).any()
    assert torch.equal(sees, lower) or not exactly
    assert (to_context != 0).any(-1).all()


def test_a_transposed_mask_is_found():
    network = randomize(Made(5, CONTEXT_DIM, (5,), 1).double(), 1.0)
    network.mask1 = network.mask1.mT
    with pytest.raises(AssertionError):
        assert_autoregressive(network, exactly=True)


@pytest.mark.parametrize("element", [AFFINE, SPLINE])
@pytest.mark.parametrize("given", ["x", "y"])
def test_jacobians_are_triangular(element, given):
    x = randn(20, 5).requires_grad_()
    y, _ = autoregressive(element, given)(5, 1.0, randn(20, CONTEXT_DIM)).push(x)
    jacobian = jacobian_of(y, x)
    assert not jacobian.triu(1).any()
    below = jacobian[:, *torch.tril_indices(5, 5, -1)]
    assert (below != 0).any(0).all()


@pytest.mark.parametrize("hidden_dims", [(16,), (32, 16), (2,), (3, 40, 5)])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_one_by_one_gives_the_outputs_of_one_pass(hidden_dims, dim):
    network = randomize(Made(dim, CONTEXT_DIM, hidden_dims, 3).double(), 1.0)
    conditioned, x = network.given(randn(6, CONTEXT_DIM)), randn(2, 6, dim)
    entries, outputs = x.flatten(0, -2).unbind(-1), []

    def solve(i, parameters):
        outputs.append(parameters)
        return entries[i]

    conditioned.one_by_one(x.shape, solve)
    found = torch.stack(outputs, -2).view(2, 6, dim, 3)
    assert torch.allclose(found, conditioned(x), rtol=0, atol=1e-12)


def test_a_coupling_layer_keeps_the_first_half():
    layer, x = coupling(AFFINE)(5, 1.0, randn(20, CONTEXT_DIM)), randn(20, 5).requires_grad_()
    y, _ = layer.push(x)
    assert torch.equal(y[:, :2], x[:, :2])
    jacobian = jacobian_of(y, x)
    assert (jacobian[:, 2:, :2] != 0).any(0).all()
    assert torch.equal(jacobian[:, 2:, 2:] != 0, torch.eye(3).bool().expand(20, 3, 3))


# Splines.


def test_zero_parameters_make_the_identity():
    x = torch.linspace(-4, 4, 101, **DOUBLE)
    for element in (AFFINE, SPLINE, RationalQuadratic(1, 2.0), RationalQuadratic(5, 7.0)):
        parameters = torch.zeros(101, element.num_parameters, **DOUBLE)
        for values, ladj in (element.push(x, parameters), element.pull(x, parameters)):
            assert torch.allclose(values, x, rtol=0, atol=1e-12)
            assert ladj.abs().max() < 1e-12


@pytest.mark.parametrize("std", [1.0, 3.0, 10.0])
def test_splines_are_smooth_at_the_ends_and_invert(std):
    element = RationalQuadratic(6, 2.0)
    parameters = randn(1000, 17, std=std)
    for edge in (-2.0, 2.0):
        at = torch.full((1000,), edge, **DOUBLE)
        for shift in (-1e-10, 0.0, 1e-10):
            for values, ladj in (
                element.push(at + shift, parameters),
                element.pull(at + shift, parameters),
            ):
                assert (values - at).abs().max() < 1e-8
                assert ladj.abs().max() < 1e-3
    knots = element._knots(parameters)
    assert (knots.diff(dim=-1)[:, :2] > 0).all()
    for at in knots[:, 0].unbind(-1):
        y, ladj = element.push(at, parameters)
        x, ladj_back = element.pull(y, parameters)
        assert (x - at).abs().max() < 1e-10
        slope_change = 1e5 * 1e-10
        assert (ladj + ladj_back).abs().max() < slope_change


def test_splines_pass_through_their_knots():
    """With the slopes that they are given there."""
    parameters = randn(1000, 23)
    positions, heights, slopes = SPLINE._knots(parameters).unbind(-2)
    y, ladj = SPLINE.push(positions, parameters.unsqueeze(-2).expand(1000, 9, 23))
    assert torch.allclose(y, heights, rtol=0, atol=1e-12)
    assert torch.allclose(ladj.exp(), slopes, rtol=1e-9, atol=1e-9)


def inversion_errors(element, parameters, x):
    """Of origins; of images, relative to rounding; and the log-slopes."""
    eps = torch.finfo(x.dtype).eps
    y, log_slope = element.push(x, parameters)
    back, log_slope_back = element.pull(y, parameters)
    again, _ = element.push(back, parameters)
    return (
        max((back - x).abs().max().item(), (log_slope + log_slope_back).abs().max().item()),
        (again - y).abs().max().item() / eps,
        log_slope.aminmax(),
    )


@pytest.mark.parametrize("std", [1.0, 3.0, 9.0, 1e3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.float64, 1e-10)])
def test_splines_invert_whatever_the_parameters(std, dtype, tolerance):
    """The image of the origin is right to a few roundings, and slopes are such that so is it.

    The planted error: without a bound the slopes are lost in rounding.
    """
    parameters, x = randn(100_000, 23, std=std).to(dtype), randn(100_000, std=2.0).to(dtype)
    error, rounding, (low, high) = inversion_errors(SPLINE, parameters, x)
    assert error < tolerance
    assert rounding < 100
    assert -6.5 < low < high < 4
    if std > 1:
        free, rounding, (low, _) = inversion_errors(RationalQuadratic(bound=1e6), parameters, x)
        assert free > 10 * tolerance
        assert rounding < 1000  # it is the slopes, not the formula
        assert low < -10


@pytest.mark.parametrize("kind", ["autoregressive", "coupling"])
def test_spline_flows_invert_at_tripled_weights(kind):
    """Weights of the size of trained ones, times three, through all layers; unbounded ones fail."""
    guide = build(NeuralSpline, {"kind": kind}, 4)
    randomize(guide.networks, 3 * 0.9)
    noise, x = randn(20, 50, 4), 3 * torch.rand(50, 8, **DOUBLE)
    for bound, is_right in ((guide.element.bound, True), (1e6, False)):
        guide.element.bound = bound
        with torch.no_grad():
            (flow,) = guide.posterior(x).transforms
            z, ladj = flow.push(noise)
            back, ladj_back = flow.pull(z.clone())
        error = max((back - noise).abs().max(), (ladj - ladj_back).abs().max())
        assert error < 1e-6 if is_right else error > 1e-3


def test_a_spline_inverse_has_its_slope_where_the_forms_of_the_root_meet():
    """In the middle of a bin with equal slopes at both ends."""
    inputs = [torch.tensor([v], **DOUBLE).requires_grad_() for v in (0.5, 0.5, 1.3, 1.3)]
    assert torch.autograd.gradcheck(_invert, inputs)


def test_bounded_scales():
    """The log-scale is s for small s, and never beyond the bound."""
    parameters = torch.stack((torch.zeros(5), torch.tensor([-1e4, -1e-3, 0.0, 1e-3, 1e4])), -1)
    _, log_scale = BoundedAffine(2.0).push(torch.ones(5), parameters)
    assert torch.allclose(log_scale, torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0]))


# Pyro's transforms with the same weights.


def pyros_network(network, permutation=None):
    """The same function as a network of Pyro's, whose outputs are sorted by parameter."""
    dim, hidden_dims = network.dim, [layer.out_features for layer in network.layers[:-1]]
    theirs = ConditionalAutoRegressiveNN(
        dim,
        CONTEXT_DIM,
        hidden_dims,
        param_dims=[1] * network.num_outputs,
        permutation=torch.arange(dim) if permutation is None else permutation,
        nonlinearity=nn.ELU(),
    ).double()
    masked = [
        layer.weight * network.get_buffer(f"mask{k}") for k, layer in enumerate(network.layers)
    ]
    order = torch.arange(dim * network.num_outputs).view(dim, -1).mT.flatten()
    weights = [torch.cat((network.context.weight, masked[0]), -1), *masked[1:-1], masked[-1][order]]
    biases = [layer.bias for layer in (network.context, *network.layers[1:-1])]
    biases.append(network.layers[-1].bias[order])
    with torch.no_grad():
        for layer, weight, bias in zip(theirs.layers, weights, biases, strict=True):
            layer.mask.fill_(1.0)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)
    return theirs


def test_affine_layers_beside_pyros():
    context, x, wide = randn(6, CONTEXT_DIM), randn(6, 4), BoundedAffine(1e6)
    network = made(4, wide, 0.7)
    ours = Autoregressive(network.given(context), wide, given="x")
    theirs = peers.ConditionalAffineAutoregressive(
        pyros_network(network), log_scale_min_clip=-1e6, log_scale_max_clip=1e6
    ).condition(context)
    y, ladj = ours.push(x)
    assert torch.allclose(y, theirs(x), rtol=0, atol=1e-9)
    assert torch.allclose(ladj, theirs.log_abs_det_jacobian(x, theirs(x)), rtol=0, atol=1e-9)
    assert torch.allclose(ours.pull(x)[0], theirs.inv(x.clone()), rtol=0, atol=1e-8)
    masked = Autoregressive(network.given(context), wide, given="y")
    assert not torch.allclose(masked.push(x)[0], theirs(x), rtol=0, atol=1e-3)


def test_coupling_layers_beside_pyros():
    context, x = randn(6, CONTEXT_DIM), randn(6, 5)
    ours = coupling(AFFINE)(5, 0.7, context)

    def hypernet(kept):
        shift, raw = ours._parameters(kept).unbind(-1)
        return shift, 3 * torch.tanh(raw / 3)

    theirs = peers.AffineCoupling(2, hypernet)
    y, ladj = ours.push(x)
    assert torch.allclose(y, theirs(x), rtol=0, atol=1e-12)
    assert torch.allclose(ladj, theirs.log_abs_det_jacobian(x, y), rtol=0, atol=1e-12)
    assert torch.allclose(ours.pull(x)[0], theirs.inv(x.clone()), rtol=0, atol=1e-10)


def pyros_spline(x, parameters, bound=5.0, **options):
    shares = parameters[..., :16].unflatten(-1, (2, 8)).softmax(-1)
    slopes = F.softplus(parameters[..., 16:] + math.log(math.expm1(1 - 1e-3)))
    return _monotonic_rational_spline(x, *shares.unbind(-2), slopes, bound=bound, **options)


def test_splines_beside_pyros():
    """Equal in all bins but the first and the last, where Pyro's slopes end at 0.999."""
    parameters, x = randn(5000, 1, 23), randn(5000, 1)
    free = RationalQuadratic(bound=1e6)
    ours, theirs = free.push(x, parameters), pyros_spline(x, parameters)
    knots = free._knots(parameters)[..., 0, :]
    inner = (x > knots[..., 1] + 1e-5) & (x < knots[..., -2])
    assert inner.sum() > 1000
    for our, their in zip(ours, theirs, strict=True):
        assert (our - their)[inner].abs().max() < 1e-9
    outer = (x < knots[..., 1]) & (x > -5)
    assert (ours[1] - theirs[1])[outer].abs().max() > 1e-5


def test_what_is_wrong_with_pyros_spline():
    """Its density jumps at the ends of the box, and steep bins break it."""
    parameters, edge = randn(100, 1, 23, std=0.3), torch.full((100, 1), 5.0, **DOUBLE)
    inside, outside = edge - 1e-6, edge + 1e-6
    assert (pyros_spline(inside, parameters)[1] - math.log(0.999)).abs().max() < 1e-5
    assert not pyros_spline(outside, parameters)[1].any()
    assert SPLINE.push(inside, parameters)[1].abs().max() < 1e-5
    steep, x = randn(20_000, 1, 23, std=6.0), randn(20_000, 1, std=2.0)
    narrow = RationalQuadratic(8, 3.0)
    y, _ = pyros_spline(x, steep, bound=3.0)
    with pytest.raises(AssertionError):
        pyros_spline(y, steep, bound=3.0, inverse=True)
    assert (narrow.pull(narrow.push(x, steep)[0], steep)[0] - x).abs().max() < 1e-8


def test_what_is_wrong_with_pyros_affine_layers():
    """Where they clamp, their gradients are not those of what they compute; a draw goes stale."""
    context, x = randn(50, CONTEXT_DIM), randn(50, 3)
    network = pyros_network(made(3, AFFINE, 5.0))
    bias = network.layers[-1].bias

    def total():
        layer = peers.ConditionalAffineAutoregressive(network).condition(context)
        return layer.log_abs_det_jacobian(x, layer(x)).sum()

    (gradient,) = torch.autograd.grad(total(), bias)
    direction = torch.tensor([0.0, 0, 0, 1, 1, 1], **DOUBLE)
    with torch.no_grad():
        before = total()
        bias += 1e-6 * direction
        numeric = (total() - before) / 1e-6
    assert abs(numeric - (gradient * direction).sum()) > 1
    layer = peers.ConditionalAffineAutoregressive(network).condition(context)
    with torch.no_grad():
        y = layer(x)
    assert not layer.log_abs_det_jacobian(x, y).requires_grad


# The guides.


def build(kind, options=None, latent_dim=3, /, **more):
    torch.manual_seed(0)
    return kind(latent_dim, 8, hidden_dims=(16,), **(options or {}), **more).double()


@all_flows
def test_flows_start_near_the_encoders_gaussian(kind, options):
    guide, x = build(kind, options, 10), torch.rand(5, 8, **DOUBLE)
    loc, log_scale, _ = guide.encode(x)
    with torch.no_grad():
        z = guide.posterior(x).sample((2000,))
        start = (z - loc) / log_scale.exp()
        log_q = guide.posterior(x).log_prob(z)
        gaussian = dist.Normal(loc, log_scale.exp()).to_event(1).log_prob(z)
    assert start.mean(0).abs().max() < 0.25
    assert (start.std(0) - 1).abs().max() < 0.25
    assert 0 < (log_q - gaussian).mean() < 0.3


@all_flows
def test_every_latent_bends_every_other(kind, options):
    guide = build(kind, options, 4, num_flows=3)
    randomize(guide.networks, 1.0)
    assert dense_jacobian(guide)


@pytest.mark.parametrize("kind", [IAF, MAF, NeuralSpline])
def test_a_forgotten_permutation_is_found(kind, monkeypatch):
    guide = build(kind, {}, 4, num_flows=3)
    randomize(guide.networks, 1.0)
    assert dense_jacobian(guide)
    monkeypatch.setattr(network_flow, "alternating", list)
    assert not dense_jacobian(guide)


def dense_jacobian(guide):
    x = torch.rand(200, 8, **DOUBLE)
    (flow,) = guide.posterior(x).transforms
    noise = randn(200, 4).requires_grad_()
    return (jacobian_of(flow.push(noise)[0], noise) != 0).any(0).all()


@all_flows
def test_one_latent(kind, options):
    guide, x = build(kind, options, 1), torch.rand(5, 8, **DOUBLE)
    randomize(guide.networks, 1.0)
    posterior = guide.posterior(x)
    z = posterior.rsample((4,))
    assert torch.allclose(posterior.log_prob(z), posterior.log_prob(z.clone()), rtol=0, atol=1e-8)
    posterior.log_prob(z.detach()).sum().backward()
    for name, parameter in guide.named_parameters():
        if ".layers.0." not in name:  # those see the inputs before: there are none
            assert parameter.grad is not None, name


@all_flows
def test_copies_and_states(kind, options):
    """Weights are in the state, masks follow from sizes; a copy in single precision agrees."""
    guide, x = build(kind, options), torch.rand(5, 8, **DOUBLE)
    randomize(guide.networks, 0.7)
    twin = copy.deepcopy(guide)
    z = guide.posterior(x).sample()
    log_q = guide.posterior(x).log_prob(z)
    assert torch.equal(twin.posterior(x).log_prob(z), log_q)
    single = copy.deepcopy(guide).float().posterior(x.float()).log_prob(z.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), log_q, rtol=0, atol=1e-2)
    randomize(twin.networks, 0.7)
    assert not torch.equal(twin.posterior(x).log_prob(z), log_q)
    twin.load_state_dict(guide.state_dict())
    assert torch.equal(twin.posterior(x).log_prob(z), log_q)
    state = guide.state_dict()
    assert set(state) == {name for name, _ in guide.named_parameters()}


@all_flows
def test_a_draw_without_gradients_is_scored_with_them(kind, options):
    guide, x = build(kind, options), torch.rand(5, 8, **DOUBLE)
    posterior = guide.posterior(x)
    z = posterior.sample()
    own = torch.autograd.grad(posterior.log_prob(z).sum(), [*guide.networks.parameters()])
    foreign = torch.autograd.grad(
        guide.posterior(x).log_prob(z.clone()).sum(), [*guide.networks.parameters()]
    )
    for first, second in zip(own, foreign, strict=True):
        assert torch.allclose(first, second, rtol=0, atol=1e-9)


def banana(z):
    """z_1 ~ N(0, 1), z_2 ~ N(z_1², ¼): normalized."""
    first, second = z.unbind(-1)
    unit = dist.Normal(0.0, 1.0)
    return unit.log_prob(first) + dist.Normal(first.square(), 0.5).log_prob(second)


def fitted_kl(guide, steps=500):
    """KL(q ‖ banana) after a short training, and its SE, in nats."""
    torch.manual_seed(0)
    x = torch.zeros(128, 8)
    adam = torch.optim.Adam(guide.parameters(), lr=0.03)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.01 ** (1 / steps))
    for _ in range(steps):
        posterior = guide.posterior(x)
        z = posterior.rsample()
        loss = (posterior.log_prob(z) - banana(z)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    with torch.no_grad():
        posterior = guide.posterior(torch.zeros(1, 8))
        z = posterior.sample((20_000,))
        gap = posterior.log_prob(z) - banana(z)
    return gap.mean().item(), gap.std().item() / math.sqrt(20_000)


@all_flows
def test_flows_learn_a_banana(kind, options):
    """At least half of the way from the best diagonal Gaussian, after seconds of training."""
    kl, se = fitted_kl(build(kind, options, 2, num_flows=2, layer_hidden_dims=(32, 32)).float())
    assert -5 * se < kl < 0.28


def test_a_gaussian_learns_no_banana():
    kl, _ = fitted_kl(build(MeanField, {}, 2).float())
    assert 0.5 < kl < 0.6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(IAF, num_flows=0), "expected num_flows of at least 1, got 0"),
        (lambda: build(MAF, context_dim=0), "expected context_dim of at least 1, got 0"),
        (
            lambda: build(MAF, layer_hidden_dims=()),
            r"one or more hidden layers .*got \[\]",
        ),
        (lambda: build(IAF, layer_hidden_dims=(8, 0)), r"of at least 1, got \[8, 0\]"),
        (lambda: build(RealNVP, layer_hidden_dims=(0,)), "expected layer sizes of at least 1"),
        (lambda: build(NeuralSpline, kind="copling"), "did you mean 'coupling'"),
        (lambda: build(NeuralSpline, num_bins=0), "expected num_bins from 1 to 999, got 0"),
        (lambda: build(NeuralSpline, tail_bound=0.0), "expected tail_bound > 0, got 0.0"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_layers_are_abstract_transforms():
    """So that a draw is remembered, and forgotten where gradients begin."""
    for make in LAYERS.values():
        assert isinstance(make(2, 1.0, randn(3, CONTEXT_DIM)), AbstractTransform)
