"""The layers of flows: their papers' formulas, their determinants, and their numeric inverses."""

import math

import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from pyro.distributions.transforms import Sylvester as PyroSylvester
from torch.autograd.gradcheck import GradcheckError

from evidence.guides.transforms import inversion
from evidence.guides.transforms.householder import Reflections, unit_vectors
from evidence.guides.transforms.inversion import newton, rise, unbend
from evidence.guides.transforms.planar import LEAST_LENGTH, PlanarLayers, invertible
from evidence.guides.transforms.radial import RadialLayers
from evidence.guides.transforms.sylvester import (
    SylvesterLayers,
    orthonormal_by_qr,
    orthonormal_by_reflections,
    with_the_last_column,
)

DOUBLE = {"dtype": torch.float64}
EPS = torch.finfo(torch.float64).eps


def randn(*shape, std=1.0):
    return std * torch.randn(shape, **DOUBLE)


def planar(batch, num_layers, dim, std, **_):
    sizes = (batch, num_layers)
    parameters = [randn(*sizes, size, std=std) for size in (1, dim, dim)]
    return PlanarLayers(*parameters), parameters


def radial(batch, num_layers, dim, std, **_):
    parameters = [randn(batch, num_layers, size, std=std) for size in (dim, 1, 1)]
    return RadialLayers(*parameters), parameters


def reflections(batch, num_layers, dim, std, **_):
    parameters = [unit_vectors(randn(batch, num_layers, dim, std=std))]
    return Reflections(*parameters), parameters


def sylvester(batch, num_layers, dim, std, basis=orthonormal_by_qr, units=None):
    units = units or min(dim, 8)
    square = (batch, num_layers, units, units)
    triangles = [
        randn(*square, std=std).triu(1) + torch.diag_embed(randn(*square[:-1], std=std).tanh())
        for _ in range(2)
    ]
    raw = randn(batch, num_layers, dim, units, std=std)
    parameters = [basis(raw), *triangles, randn(batch, num_layers, units, std=std)]
    return SylvesterLayers(*parameters), parameters


def sylvester_by_reflections(*sizes):
    return sylvester(*sizes, basis=orthonormal_by_reflections)


FLOWS = [planar, radial, reflections, sylvester, sylvester_by_reflections]


def apply(matrix, vector):
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


# The formulas as they stand in the papers, one layer at a time.


def test_planar_layers_follow_the_paper():
    """f(z) = z + û tanh(wᵀz + b), but for û, which is (u + (elu(a) − a) n w/‖w‖²)/n."""
    layers, (bias, u, w) = planar(4, 3, 5, 1.0)
    z = expected = randn(7, 4, 5)
    for k in range(3):
        norm2 = w[:, k].pow(2).sum(-1, keepdim=True)
        n = (norm2 + LEAST_LENGTH**2).sqrt()
        a = (w[:, k] * u[:, k]).sum(-1, keepdim=True) / n
        u_hat = (u[:, k] + (F.elu(a) - a) * n * w[:, k] / norm2) / n
        bend = torch.tanh((w[:, k] * expected).sum(-1, keepdim=True) + bias[:, k])
        expected = expected + u_hat * bend
    assert torch.allclose(layers(z), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2, 50])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_planar_layers_have_no_pole(dim, dtype):
    """û is at most 2u/ε long and has bounded gradients, however short w is; the paper's is not."""
    u = torch.randn(1000, dim, dtype=dtype).requires_grad_()
    for size in (0.0, 1e-30, 1e-15, 1e-6, 1e-3, 1.0):
        w = (size * torch.randn(1000, dim, dtype=dtype)).requires_grad_()
        u_hat, slope = invertible(u, w)
        assert (u_hat.norm(dim=-1) < 2.001 / LEAST_LENGTH * u.norm(dim=-1)).all()
        assert (slope > 0).all()
        assert torch.allclose(1 + (w * u_hat).sum(-1, keepdim=True), slope, atol=1e-4)
        gradients = torch.autograd.grad(u_hat.sum() + slope.sum(), (u, w))
        largest = 3 * u.abs().sum(-1).max() / LEAST_LENGTH**2
        assert max(gradient.abs().max() for gradient in gradients) < largest
        if 0 < size < 1e-4 and size**2 > torch.finfo(dtype).tiny:
            w_u = (w * u).sum(-1, keepdim=True)
            papers = u + (F.softplus(w_u) - 1 - w_u) * w / w.square().sum(-1, keepdim=True)
            assert papers.norm(dim=-1).max() > 20 * u.norm(dim=-1).max()


def test_planar_layers_of_one_latent_pass_smoothly_through_zero():
    """As w changes its sign nothing jumps, and gradients are those of finite differences."""
    u = torch.tensor([[1.5]], **DOUBLE)
    for w in (-1e-9, 0.0, 1e-9):
        weight = torch.tensor([[w]], **DOUBLE).requires_grad_()
        u_hat, slope = invertible(u, weight)
        assert u_hat.item() == pytest.approx(1.5 / LEAST_LENGTH, abs=1e-6)
        (gradient,) = torch.autograd.grad(slope.sum(), weight)
        assert gradient.item() == pytest.approx(1.5 / LEAST_LENGTH, abs=1e-5)


def test_radial_layers_follow_the_paper():
    """f(z) = z + β h(α, r)(z − z₀), h = 1/(α + r), β = −α + softplus(β′)."""
    layers, (center, raw_alpha, raw_beta) = radial(4, 3, 5, 1.0)
    z = expected = randn(7, 4, 5)
    for k in range(3):
        alpha, offset = raw_alpha[:, k].exp().log1p(), expected - center[:, k]
        beta = -alpha + raw_beta[:, k].exp().log1p()
        expected = expected + beta / (alpha + offset.norm(dim=-1, keepdim=True)) * offset
    assert torch.allclose(layers(z), expected, rtol=0, atol=1e-12)


def test_sylvester_layers_follow_the_paper():
    """f(z) = z + Q R tanh(R̃ Qᵀz + b), R and R̃ upper triangular."""
    layers, (q, r, r_tilde, bias) = sylvester(4, 3, 5, 1.0)
    z = expected = randn(7, 4, 5)
    for k in range(3):
        inside = apply(r_tilde[:, k], apply(q[:, k].mT, expected)) + bias[:, k]
        expected = expected + apply(q[:, k], apply(r[:, k], inside.tanh()))
    assert torch.allclose(layers(z), expected, rtol=0, atol=1e-12)


def test_a_sylvester_layer_of_one_unit_is_planar():
    """Q = w/‖w‖, R̃ = ‖w‖, R = wᵀû/‖w‖, with û along w."""
    w, along = randn(4, 1, 5), randn(4, 1, 1)
    bias, norm = randn(4, 1, 1), w.norm(dim=-1, keepdim=True)
    u = along * w
    u_hat, _ = invertible(u, w)
    r = (w * u_hat).sum(-1, keepdim=True) / norm
    single = SylvesterLayers((w / norm).unsqueeze(-1), r.unsqueeze(-1), norm.unsqueeze(-1), bias)
    z = randn(7, 4, 5)
    for got, expected in zip(single.push(z), PlanarLayers(bias, u, w).push(z), strict=True):
        assert torch.allclose(got, expected, rtol=0, atol=1e-12)


def test_reflections_follow_the_paper():
    """z_k = (I − 2 v vᵀ/‖v‖²) z_{k−1}; a diagonal Gaussian gets the covariance H diag σ² Hᵀ."""
    raw = randn(4, 3, 5) + F.one_hot(torch.arange(3), 5)
    flow = Reflections(unit_vectors(raw - F.one_hot(torch.arange(3), 5)))
    whole = torch.eye(5, **DOUBLE).expand(4, 5, 5)
    for v in raw.unbind(-2):
        outer = v.unsqueeze(-1) * v.unsqueeze(-2) / v.pow(2).sum(-1)[:, None, None]
        whole = (torch.eye(5, **DOUBLE) - 2 * outer) @ whole
    loc, scale = randn(4, 5), randn(4, 5).exp()
    gaussian = dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), [flow])
    covariance = whole @ torch.diag_embed(scale.square()) @ whole.mT
    expected = dist.MultivariateNormal(apply(whole, loc), covariance)
    z = randn(7, 4, 5)
    assert torch.allclose(gaussian.log_prob(z), expected.log_prob(z), rtol=0, atol=1e-9)


@pytest.mark.parametrize("basis", [orthonormal_by_qr, orthonormal_by_reflections])
@pytest.mark.parametrize("std", [0.0, 1e-3, 1.0, 1e3])
def test_bases_are_orthonormal(basis, std):
    q = basis(randn(200, 9, 5, std=std))
    assert (q.mT @ q - torch.eye(5, **DOUBLE)).abs().max() < 1e-12


def test_a_basis_moves_smoothly():
    """Through a zero on the diagonal; the plain QR decomposition turns a column round there."""
    eye = torch.eye(4, 2, **DOUBLE)
    raw = randn(4, 2)
    before, after = raw.clone(), raw.clone()
    before[0, 0], after[0, 0] = -1 - 1e-9, -1 + 1e-9
    assert (orthonormal_by_qr(before) - orthonormal_by_qr(after)).abs().max() < 1e-7
    plain = [torch.linalg.qr(eye + m).Q for m in (before, after)]
    assert (plain[0] - plain[1]).abs().max() > 0.1


def test_the_last_column_of_a_square_basis_follows_the_others():
    raw = randn(20, 4, 3).requires_grad_()
    basis = with_the_last_column(orthonormal_by_qr(raw))
    assert (basis.mT @ basis - torch.eye(4, **DOUBLE)).abs().max() < 1e-12
    assert torch.allclose(torch.linalg.det(basis), torch.ones(20, **DOUBLE))
    assert torch.autograd.gradcheck(lambda r: with_the_last_column(orthonormal_by_qr(r)), raw)
    assert with_the_last_column(randn(2, 1, 0)).tolist() == [[[1.0]], [[1.0]]]


def test_a_square_basis_does_not_jump_where_qr_jumps():
    """Two columns that are nearly parallel, on either side of determinant zero."""
    parallel = torch.tensor([[1.0, 1.0], [1.0, 1.0]], **DOUBLE)
    nudge = torch.tensor([[0.0, 0.0], [0.0, 1e-9]], **DOUBLE)
    before, after = (parallel + sign * nudge - torch.eye(2, **DOUBLE) for sign in (-1, 1))
    assert (orthonormal_by_qr(before) - orthonormal_by_qr(after)).abs().max() > 1
    first = [with_the_last_column(orthonormal_by_qr(raw[:, :1])) for raw in (before, after)]
    assert (first[0] - first[1]).abs().max() < 1e-7


def test_a_basis_of_reflections_is_their_product():
    raw = randn(6, 5, 3)
    product = torch.eye(5, **DOUBLE).expand(6, 5, 5)
    for v in unit_vectors(raw.mT).unbind(-2):
        outer = v.unsqueeze(-1) * v.unsqueeze(-2)
        product = product @ (torch.eye(5, **DOUBLE) - 2 * outer)
    assert torch.allclose(orthonormal_by_reflections(raw), product[..., :3], rtol=0, atol=1e-12)


# Determinants and inverses at large weights.


def probe(flow, x):
    """Image, claimed ladj, and the Jacobian by automatic differentiation, at `x` `[..., B, Z]`."""
    x = x.clone().requires_grad_()
    y, ladj = flow.push(x)
    rows = [
        torch.autograd.grad(y[..., i].sum(), x, retain_graph=True)[0] for i in range(x.shape[-1])
    ]
    return y.detach(), ladj.detach(), torch.stack(rows, -2)


def errors(flow, x):
    """Worst errors of ladj, inverse, and ladj from the inverse, where double precision allows.

    A singular value below 1e-4 leaves less than 1e-8 to be had; the share of the others is checked.
    """
    y, ladj, jacobian = probe(flow, x)
    regular = torch.linalg.svdvals(jacobian)[..., -1] > 1e-4
    assert regular.double().mean() > 0.9
    exact = torch.linalg.slogdet(jacobian).logabsdet
    with torch.no_grad():
        back, ladj_back = flow.pull(y)
    return {
        "ladj": (ladj - exact).abs()[regular].max(),
        "inverse": (back - x).abs().amax(-1)[regular].max(),
        "ladj at the inverse": (ladj_back - exact).abs()[regular].max(),
    }


@pytest.mark.parametrize("make", FLOWS)
@pytest.mark.parametrize("dim", [1, 2, 3, 20])
@pytest.mark.parametrize("std", [0.1, 2.0, 3.0])
def test_determinants_and_inverses(make, dim, std):
    """Eight layers, 1,000 draws of the parameters, at 10 points each."""
    flow, _ = make(1000, 8, dim, std)
    for name, error in errors(flow, randn(10, 1000, dim, std=2.0)).items():
        assert error < 1e-8, name


@pytest.mark.parametrize("make", [planar, sylvester])
def test_an_inverse_that_stops_early_is_found(make, monkeypatch):
    flow, _ = make(1000, 8, 3, 2.0)
    x = randn(10, 1000, 3)
    monkeypatch.setattr(inversion, "newton", lambda *problem: newton(*problem, max_steps=3))
    found = errors(flow, x)
    assert found["ladj"] < 1e-8
    assert found["inverse"] > 1e-8


@pytest.mark.parametrize(("bound", "is_right"), [(0.01, True), (1.0, False)])
def test_pyros_sylvester_is_why_there_is_one_here(bound, is_right):
    """Its log-determinant is right at the small weights that it starts with, and only there."""
    theirs, z = PyroSylvester(3, 2).double(), randn(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.uniform_(-bound, bound)
        theirs.u_unnormed.uniform_(-1, 1)
    jacobian = torch.autograd.functional.jacobian(theirs._call, z)
    claimed = theirs.log_abs_det_jacobian(z, theirs(z))
    error = (claimed - torch.linalg.slogdet(jacobian).logabsdet).abs()
    assert bool(error < 1e-4) == is_right, error


@pytest.mark.parametrize("make", FLOWS)
def test_single_precision(make):
    flow, parameters = make(100, 8, 5, 0.5)
    single = type(flow)(*(p.float() for p in parameters))
    x = randn(10, 100, 5)
    y, ladj = single.push(x.float())
    assert torch.allclose(ladj.double(), flow.push(x)[1], rtol=0, atol=1e-3)
    assert torch.allclose(single.pull(y)[0], x.float(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("make", FLOWS)
@pytest.mark.parametrize("particles", [(), (0,), (4,), (2, 3)])
def test_particle_dims(make, particles):
    flow, _ = make(5, 3, 4, 1.0)
    x = randn(*particles, 5, 4)
    for values, ladj in (flow.push(x), flow.pull(x)):
        assert values.shape == x.shape
        assert ladj.shape == x.shape[:-1]
    assert torch.allclose(flow.pull(flow.push(x)[0])[0], x, rtol=0, atol=1e-9)


# The cache.


@pytest.mark.parametrize("make", FLOWS)
def test_draws_are_scored_without_the_inverse(make, monkeypatch):
    flow, _ = make(5, 3, 4, 1.0)
    base = dist.Normal(torch.zeros(5, 4, **DOUBLE), 1.0).to_event(1)
    posterior = dist.TransformedDistribution(base, [flow])
    z = posterior.rsample()
    expected = posterior.log_prob(z.clone())

    def refuse(_):
        raise AssertionError

    z = posterior.rsample()
    monkeypatch.setattr(flow, "pull", refuse)
    assert posterior.log_prob(z).isfinite().all()
    with pytest.raises(AssertionError):
        posterior.log_prob(z.clone())
    assert expected.shape == (5,)


def test_a_ladj_belongs_to_its_points():
    """Asked about other points than the last ones, it is computed for those."""
    flow, _ = planar(5, 3, 4, 1.0)
    first, second = randn(5, 4), randn(5, 4)
    y_first, expected = flow(first), flow.push(first)[1]
    flow(second)
    assert torch.equal(flow.log_abs_det_jacobian(first, y_first), expected)


# The numeric inverse.

SLOPES = [1e-300, 1e-12, 1e-4, 0.3, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0, 50.0, 1e6]
TARGETS = [0.0, 1e-300, 1e-12, 1e-3, 0.5, 1.0, 7.0, 49.9, 1e3, 1e6, 1e12]


def all_problems():
    slope, target = torch.meshgrid(
        torch.tensor(SLOPES, **DOUBLE), torch.tensor(TARGETS, **DOUBLE), indexing="ij"
    )
    random = randn(20_000).mul(3).exp(), randn(20_000).mul(5)
    slope, target = (
        torch.cat([slope.flatten()] * 2 + [random[0]]),
        torch.cat([target.flatten(), -target.flatten(), random[1]]),
    )
    return slope, target


def test_roots_are_exact():
    """The residual is rounding error, and so is the distance from where bisection ends."""
    slope, target = all_problems()
    v, steps = newton(slope, target)
    assert steps < inversion.MAX_STEPS
    assert residual(slope, target, v) < 4 * EPS
    assert torch.equal(newton(slope, -target)[0], -v)
    exact = bisect(slope, target)
    conditioning = rise(slope, exact.tanh())
    size = exact.abs() + (slope - 1).abs() * exact.tanh().abs() + target.abs()
    assert ((v - exact).abs() * conditioning <= 8 * EPS * size + 1e-300).all()


def test_roots_that_stop_early_are_found():
    slope, target = all_problems()
    assert residual(slope, target, newton(slope, target, max_steps=3)[0]) > 1e-3


def residual(slope, target, v):
    """Relative to the terms that are added up."""
    bend = (slope - 1) * v.tanh()
    size = v.abs() + bend.abs() + target.abs()
    return ((v + bend - target).abs() / size.clamp_min(1e-300)).max()


def bisect(slope, target):
    reach = target.abs() + (slope - 1).abs()
    low, high = -reach, reach.clone()
    for _ in range(1200):  # from 1e12 down to 1e-300
        middle = (low + high) / 2
        above = middle + (slope - 1) * middle.tanh() > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_ends(bad):
    slope = torch.tensor([0.5, 2.0, 0.5], **DOUBLE)
    v, steps = newton(slope, torch.tensor([bad, bad, 1.0], **DOUBLE))
    assert steps < inversion.MAX_STEPS
    assert not v[:2].isfinite().any()
    assert v[2].isfinite()
    assert newton(torch.full((1,), bad, **DOUBLE), torch.ones(1, **DOUBLE))[1] < inversion.MAX_STEPS


@pytest.mark.parametrize("make", [planar, sylvester, radial])
def test_a_point_that_is_not_finite_spoils_no_other(make):
    flow, _ = make(3, 2, 4, 1.0)
    y = randn(3, 4)
    spoilt = y.clone()
    spoilt[1, 0] = math.nan
    x, ladj = flow.pull(spoilt)
    expected, _ = flow.pull(y)
    assert torch.allclose(x[[0, 2]], expected[[0, 2]], rtol=0, atol=1e-12)
    assert ladj[1].isnan()


def problems_with_gradients():
    slope = (randn(6).exp() + 0.05).requires_grad_()
    return slope, randn(6, std=2.0).requires_grad_()


def test_roots_have_exact_derivatives():
    """First and second, against finite differences."""
    inputs = problems_with_gradients()
    assert torch.autograd.gradcheck(unbend, inputs)
    assert torch.autograd.gradgradcheck(unbend, inputs)


def one_step_from_the_root(slope, target):
    """The usual trick: exact first derivatives, but wrong second ones."""
    v = newton(slope.detach(), target.detach())[0]
    error = v + (slope - 1) * v.tanh() - target
    return v - error / rise(slope, v.tanh()).detach()


def test_a_single_differentiable_step_has_wrong_second_derivatives():
    inputs = problems_with_gradients()
    assert torch.autograd.gradcheck(one_step_from_the_root, inputs)
    with pytest.raises(GradcheckError):
        torch.autograd.gradgradcheck(one_step_from_the_root, inputs)


def test_roots_broadcast():
    slope = (randn(5, 1).exp()).requires_grad_()
    v = unbend(slope, randn(3, 5, 2))
    assert v.shape == (3, 5, 2)
    v.sum().backward()
    assert slope.grad.shape == (5, 1)


@pytest.mark.parametrize("make", FLOWS)
def test_inverses_have_the_derivatives_of_the_forward_map(make):
    """∂x/∂y is the inverse of ∂y/∂x, and so to second order: by gradgradcheck of the inverse."""
    flow, _ = make(1, 2, 3, 0.7)
    x = randn(1, 3)
    y, _, jacobian = probe(flow, x)
    inverse = torch.autograd.functional.jacobian(lambda y: flow.pull(y)[0][0], y).squeeze(1)
    assert torch.allclose(inverse @ jacobian[0], torch.eye(3, **DOUBLE), rtol=0, atol=1e-8)
    y.requires_grad_()
    assert torch.autograd.gradcheck(flow.pull, (y,))
    assert torch.autograd.gradgradcheck(flow.pull, (y,), atol=1e-4)


@pytest.mark.parametrize(("kind", "sizes"), [(PlanarLayers, (1, 3, 3)), (RadialLayers, (3, 1, 1))])
def test_inverses_have_derivatives_to_their_parameters(kind, sizes):
    parameters = [randn(2, 2, size).requires_grad_() for size in sizes]
    y = randn(2, 3)
    assert torch.autograd.gradcheck(lambda *p: kind(*p).pull(y), parameters)


def test_sylvesters_inverse_has_derivatives_to_its_parameters():
    raw, square, bias = randn(2, 2, 4, 3), randn(2, 2, 3, 3), randn(2, 2, 3)
    y = randn(2, 4)

    def pull(raw, square, bias):
        triangle = square.triu(1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1).tanh())
        return SylvesterLayers(orthonormal_by_qr(raw), triangle, triangle, bias).pull(y)

    assert torch.autograd.gradcheck(pull, [p.requires_grad_() for p in (raw, square, bias)])


# Corners.


def test_a_planar_layer_without_direction_is_a_shift():
    """At w = 0: f(z) = z + u tanh(b)/ε, determinant 1, finite gradients."""
    bias, u, w = randn(2, 1, 1), randn(2, 1, 3), torch.zeros(2, 1, 3, **DOUBLE, requires_grad=True)
    flow, x = PlanarLayers(bias, u, w), randn(2, 3)
    y, ladj = flow.push(x)
    assert torch.allclose(y, x + u[:, 0] * bias[:, 0].tanh() / LEAST_LENGTH)
    assert torch.equal(ladj, torch.zeros(2, **DOUBLE))
    y.sum().backward()
    assert w.grad.isfinite().all()


def test_planar_layers_keep_a_positive_determinant():
    """However far wᵀu is below −1, and in single precision."""
    u, w = torch.full((1, 1, 3), -5.0), torch.full((1, 1, 3), 5.0)  # wᵀu = −75
    x = torch.randn(1000, 1, 3)
    assert PlanarLayers(torch.zeros(1, 1, 1), u, w).push(x)[1].isfinite().all()


def test_sylvester_layers_keep_a_positive_determinant():
    """With saturated diagonals, R_ii R̃_ii = −1."""
    eye = torch.eye(3).expand(1, 1, 3, 3)
    flow = SylvesterLayers(eye, eye, -eye, torch.zeros(1, 1, 3))
    assert flow.push(torch.randn(1000, 1, 3))[1].isfinite().all()


def test_a_radial_layer_at_its_centre():
    """The centre stays; there the determinant is (s/α)^Z, and gradients are finite."""
    center = randn(2, 1, 3).requires_grad_()
    raw_alpha, raw_beta = randn(2, 1, 1), randn(2, 1, 1)
    flow = RadialLayers(center, raw_alpha, raw_beta)
    x = center.detach()[:, 0].clone().requires_grad_()
    expected = 3 * (F.softplus(raw_beta) / F.softplus(raw_alpha)).log().flatten()
    for values, ladj in (flow.push(x), flow.pull(x)):
        assert torch.allclose(values, x)
        assert torch.allclose(ladj, expected)
        for gradient in torch.autograd.grad(
            values.sum() + ladj.sum(), (x, center), retain_graph=True
        ):
            assert gradient.isfinite().all()


def test_a_radial_inverse_has_its_slope_where_both_roots_are_of_one_size():
    """At ‖y − c‖ = α + β the two roots differ in sign alone."""
    center, raw = torch.zeros(1, 1, 2, **DOUBLE), torch.full((1, 1, 1), 0.5, **DOUBLE)
    flow = RadialLayers(center, raw - 1, raw)
    y = torch.tensor([[F.softplus(raw).item(), 0.0]], **DOUBLE).requires_grad_()
    assert y.norm() == flow.alpha_beta.squeeze()
    assert torch.autograd.gradcheck(lambda y: flow.pull(y), y)


def test_unit_vectors_exist_at_zero():
    raw = torch.zeros(2, 5, 3, **DOUBLE, requires_grad=True)
    vectors = unit_vectors(raw)
    assert torch.equal(vectors[0].argmax(-1), torch.tensor([0, 1, 2, 0, 1]))
    vectors.sum().backward()
    assert raw.grad.isfinite().all()
