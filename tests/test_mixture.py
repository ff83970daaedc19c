"""Mixtures and low-rank Gaussians: densities, and gradients of draws against exact ones."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from evidence.guides import FullRank, LowRank, MeanField, Mixture
from evidence.guides.mixture import DiagonalMixture

DOUBLE = {"dtype": torch.float64}
NUM_DRAWS = 100_000


def randn(*shape, std=1.0):
    return std * torch.randn(shape, **DOUBLE)


def parameters_of(num_components, dim, batch=1):
    """Locations, scales from 0.4 to 1.6, and logits."""
    locs, logits = randn(batch, num_components, dim), randn(batch, num_components)
    return locs, 0.4 + 1.2 * torch.rand(batch, num_components, dim, **DOUBLE), logits


def mixture(locs, scales, logits):
    return DiagonalMixture(dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1))


def build(kind, latent_dim=3, /, **options):
    torch.manual_seed(0)
    return kind(latent_dim, 8, hidden_dims=(16,), **options).double()


# Densities and draws.


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_the_density_is_the_formula(dim):
    """Σ_c π_c Π_i N(z_i; μ_ci, σ_ci²), written out."""
    locs, scales, logits = parameters_of(3, dim, batch=4)
    z = randn(7, 4, dim)
    t = (z.unsqueeze(-2) - locs) / scales
    components = (torch.exp(-t.square() / 2) / (scales * math.sqrt(2 * math.pi))).prod(-1)
    expected = (logits.exp() / logits.exp().sum(-1, keepdim=True) * components).sum(-1).log()
    assert torch.allclose(mixture(locs, scales, logits).log_prob(z), expected, rtol=0, atol=1e-10)


def test_the_density_integrates_to_one():
    locs, scales, logits = parameters_of(4, 2)
    axis = torch.linspace(-12, 12, 400, **DOUBLE)
    points = torch.cartesian_prod(axis, axis).unsqueeze(1)
    total = mixture(locs, scales, logits).log_prob(points).exp().sum() * (axis[1] - axis[0]) ** 2
    assert abs(total - 1) < 1e-6


@pytest.mark.parametrize("sample_shape", [(), (0,), (4,), (2, 3)])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_shapes_of_draws(sample_shape, dim):
    locs, scales, logits = parameters_of(3, dim, batch=5)
    z = mixture(locs.requires_grad_(), scales, logits).rsample(sample_shape)
    assert z.shape == (*sample_shape, 5, dim)
    assert z.requires_grad
    assert not mixture(locs, scales, logits).sample(sample_shape).requires_grad


def worst_z_of_moments(posterior, z):
    """Of means, and of every product of two latents."""
    worst = 0.0
    second = posterior.variance + posterior.mean.square()
    for values, exact in ((z, posterior.mean), (z.square(), second)):
        score = (values.mean(0) - exact) / values.std(0) * math.sqrt(len(values))
        worst = max(worst, score.abs().max())
    return worst


def test_draws_have_the_moments_of_the_mixture():
    """Each row of a batch by itself; Pyro's peer mixes rows up."""
    locs, scales, logits = parameters_of(3, 3, batch=4)
    posterior = mixture(locs, scales, logits)
    assert worst_z_of_moments(posterior, posterior.rsample((NUM_DRAWS,))) < 5
    shares = logits.softmax(-1).unsqueeze(-1)
    assert torch.allclose(posterior.mean, (shares * locs).sum(-2))
    other = mixture(locs.flip(0), scales, logits)
    assert worst_z_of_moments(posterior, other.rsample((NUM_DRAWS,))) > 5


def test_draws_follow_all_of_the_density():
    """The share of draws in each cell of a grid is the cell's mass, in one dimension."""
    locs, scales, logits = parameters_of(3, 1)
    z = mixture(locs, scales, logits).sample((NUM_DRAWS,)).flatten()
    edges = torch.linspace(-3, 3, 25, **DOUBLE)
    t = (edges[:, None] - locs[0, :, 0]) / scales[0, :, 0]
    cdf = (logits[0].softmax(-1) * torch.special.ndtr(t)).sum(-1)
    shares, mass = torch.histogram(z, edges).hist / NUM_DRAWS, cdf.diff()
    score = (shares - mass) / (mass * (1 - mass) / NUM_DRAWS).sqrt()
    assert score.abs().max() < 5


# Gradients of draws.

# f(z) and E f(z) under one component, for the first and the last latent.
POLYNOMIALS = {
    "z": (lambda z: z[..., 0], lambda m, s: m[..., 0]),
    "z²": (lambda z: z[..., 0] ** 2, lambda m, s: m[..., 0] ** 2 + s[..., 0] ** 2),
    "z³": (
        lambda z: z[..., -1] ** 3,
        lambda m, s: m[..., -1] ** 3 + 3 * m[..., -1] * s[..., -1] ** 2,
    ),
}
PRODUCTS = {
    "z w": (lambda z: z[..., 0] * z[..., -1], lambda m, s: m[..., 0] * m[..., -1]),
    "z² w": (
        lambda z: z[..., 0] ** 2 * z[..., -1],
        lambda m, s: (m[..., 0] ** 2 + s[..., 0] ** 2) * m[..., -1],
    ),
}


def worst_z(make, dim, name):
    """Largest |z| of the mean gradient of f(draw) beside the exact gradient of E f."""
    f, expectation = {**POLYNOMIALS, **PRODUCTS}[name]
    exact_inputs = [p[0].requires_grad_() for p in parameters_of(3, dim)]
    inputs = [p.detach().expand(NUM_DRAWS, *p.shape).clone() for p in exact_inputs]
    z = make(*[p.requires_grad_() for p in inputs]).rsample()
    gradients = torch.autograd.grad(f(z).sum(), inputs, materialize_grads=True)
    locs, scales, logits = exact_inputs
    exact = torch.autograd.grad(
        (logits.softmax(-1) * expectation(locs, scales)).sum(),
        exact_inputs,
        materialize_grads=True,
    )
    return max(
        ((g.mean(0) - e).abs() / (g.std(0) / math.sqrt(NUM_DRAWS) + 1e-9)).max()
        for g, e in zip(gradients, exact, strict=True)
    )


@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_gradients_of_draws(dim, name):
    """To locations, scales and logits; 1e5 draws see a bias of a percent or so."""
    assert worst_z(mixture, dim, name) < 5


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("dim", [2, 5])
def test_gradients_of_products(dim, name):
    """These see how later latents follow earlier ones."""
    assert worst_z(mixture, dim, name) < 5


class ComponentWithoutGradient(DiagonalMixture):
    """The usual mistake: z = μ_c + σ_c ε for a drawn c, as if it did not depend on the logits."""

    def rsample(self, sample_shape=()):
        normals = self.component_distribution.base_dist
        component = self.mixture_distribution.sample(sample_shape)
        index = component[..., None, None].expand(*component.shape, 1, normals.loc.shape[-1])
        loc, scale = (
            values.expand(*component.shape, *values.shape[-2:]).gather(-2, index).squeeze(-2)
            for values in (normals.loc, normals.scale)
        )
        return loc + scale * torch.randn_like(loc)


class MarginalCdfs(DiagonalMixture):
    """Latents by themselves: what a later one owes to the component of earlier ones is lost."""

    def _conditional_cdfs(self, z):
        cdfs, slopes = super()._conditional_cdfs(z)
        return cdfs, torch.diag_embed(slopes.diagonal(dim1=-2, dim2=-1))


def planted(kind):
    return lambda locs, scales, logits: kind(
        dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1)
    )


@pytest.mark.parametrize(
    ("make", "dim", "name"),
    [
        (planted(ComponentWithoutGradient), 1, "z²"),
        (planted(ComponentWithoutGradient), 3, "z w"),
        (planted(MarginalCdfs), 2, "z w"),
        (dist.MixtureOfDiagNormals, 1, "z³"),
        (dist.MixtureOfDiagNormals, 2, "z²"),
    ],
)
def test_wrong_gradients_are_found(make, dim, name):
    """Pyro's among them: its gradients to the logits are wrong."""
    assert worst_z(make, dim, name) > 8


def test_pyros_mixture_draws_from_the_wrong_rows():
    locs = torch.tensor([0.0, 100.0, 200.0])[:, None, None].expand(3, 2, 2)
    theirs = dist.MixtureOfDiagNormals(locs, torch.ones(3, 2, 2), torch.zeros(3, 2))
    ours = mixture(locs, torch.ones(3, 2, 2), torch.zeros(3, 2))
    assert (theirs.sample((2,)) - locs[:, 0]).abs().max() > 50
    assert (ours.sample((2,)) - locs[:, 0]).abs().max() < 10


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_draw_moves_with_its_parameters_at_equal_cdfs(dim):
    """dz/dλ beside the z of moved parameters that has the same F_i(z_i | z_<i), by bisection."""
    start, direction = parameters_of(3, dim, batch=50), parameters_of(3, dim, batch=50)

    def moved(step):
        return [p + step * d for p, d in zip(start, direction, strict=True)]

    step = torch.zeros((), **DOUBLE)
    torch.manual_seed(3)
    z = mixture(*start).sample()
    levels = exact_cdfs(z, *start)
    _, derivative = torch.autograd.functional.jvp(
        lambda step: attached(z, mixture(*moved(step))), step, torch.ones((), **DOUBLE)
    )
    numeric = (quantiles(levels, *moved(1e-5)) - quantiles(levels, *moved(-1e-5))) / 2e-5
    well = (levels > 1e-3) & (levels < 1 - 1e-3)
    assert (derivative - numeric).abs()[well.all(-1)].max() < 1e-5


def attached(z, posterior):
    """`z` as if it were the posterior's draw."""
    posterior.sample = lambda _: z
    return posterior.rsample()


def exact_cdfs(z, locs, scales, logits):
    """F_i(z_i | z_<i), one latent after the other."""
    normals, log_w, levels = dist.Normal(locs, scales), logits, []
    log_p, cdf = normals.log_prob(z.unsqueeze(-2)), normals.cdf(z.unsqueeze(-2))
    for i in range(z.shape[-1]):
        levels.append((log_w.softmax(-1) * cdf[..., i]).sum(-1))
        log_w = log_w + log_p[..., i]
    return torch.stack(levels, -1)


def quantiles(levels, *parameters):
    """The z that has these conditional levels."""
    z = torch.zeros_like(levels)
    for i in range(levels.shape[-1]):
        low, high = torch.full_like(levels[:, i], -30), torch.full_like(levels[:, i], 30)
        for _ in range(70):
            z[:, i] = (low + high) / 2
            is_above = exact_cdfs(z, *parameters)[:, i] > levels[:, i]
            low, high = torch.where(is_above, low, z[:, i]), torch.where(is_above, z[:, i], high)
    return z


def test_slopes_are_those_of_the_conditional_cdfs():
    parameters = parameters_of(4, 5, batch=20)
    posterior, z = mixture(*parameters), randn(20, 5)
    _, slopes = posterior._conditional_cdfs(z)
    exact = torch.autograd.functional.jacobian(lambda z: exact_cdfs(z, *parameters).sum(0), z)
    assert torch.allclose(slopes, exact.transpose(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_gradients_far_out_keep_their_digits(side):
    """In single precision, eight scales from all components."""
    inputs = [torch.tensor([[[0.0], [0.5]]]), torch.ones(1, 2, 1), torch.tensor([[0.0, 0.3]])]
    found = []
    for dtype in (torch.float32, torch.float64):
        parameters = [p.to(dtype).requires_grad_() for p in inputs]
        z = attached(torch.tensor([[0.25 + 8 * side]], dtype=dtype), mixture(*parameters))
        found.append([g.double() for g in torch.autograd.grad(z.sum(), parameters)])
    for single, double in zip(*found, strict=True):
        assert torch.allclose(single, double, rtol=1e-4, atol=1e-6)


def test_gradients_of_many_latents_are_finite():
    """50 latents in single precision, with components far apart."""
    locs = (10 * torch.randn(128, 8, 50)).requires_grad_()
    scales = torch.randn(128, 8, 50).exp().requires_grad_()
    logits = torch.randn(128, 8).requires_grad_()
    z = mixture(locs, scales, logits).rsample((4,))
    z.square().sum().backward()
    for parameter in (locs, scales, logits):
        assert parameter.grad.isfinite().all()


# The guides.


def test_components_start_apart_around_the_location():
    guide, x = build(Mixture, 5, num_components=4), torch.rand(20, 8, **DOUBLE)
    posterior, loc = guide.posterior(x), guide.encode(x)[0]
    locs = posterior.component_distribution.base_dist.loc
    distances = (locs[:, None] - locs[:, :, None]).norm(dim=-1)
    assert distances[:, *torch.tril_indices(4, 4, -1)].min() > 0.3
    assert (posterior.mean - loc).abs().max() < 0.4
    assert posterior.variance.min() > 0.5
    assert posterior.variance.max() < 3
    assert torch.equal(guide.posterior_mean(x), posterior.mean)


def test_a_mixture_of_one_is_a_gaussian():
    guide, x = build(Mixture, num_components=1), torch.rand(5, 8, **DOUBLE)
    loc, offset, log_scale, _ = guide.encode(x)
    z = randn(4, 5, 3)
    expected = dist.Normal(loc + offset, log_scale.exp()).to_event(1).log_prob(z)
    assert torch.allclose(guide.posterior(x).log_prob(z), expected, rtol=0, atol=1e-10)


def two_modes(z):
    """Equal shares of N((−1.5, 0.75), ¼I) and N((1.5, −0.75), ¼I)."""
    centers = torch.tensor([[-1.5, 0.75], [1.5, -0.75]])
    log_p = dist.Normal(centers, 0.5).to_event(1).log_prob(z.unsqueeze(-2))
    return torch.logsumexp(log_p, -1) - math.log(2)


def fitted_kl(guide, log_p, steps=400):
    """KL(q ‖ p) after a short training, in nats."""
    guide.float()
    torch.manual_seed(0)
    x, adam = torch.zeros(256, 8), torch.optim.Adam(guide.parameters(), lr=0.02)
    decay = torch.optim.lr_scheduler.ExponentialLR(adam, 0.01 ** (1 / steps))
    for _ in range(steps):
        posterior = guide.posterior(x)
        z = posterior.rsample()
        loss = (posterior.log_prob(z) - log_p(z)).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        decay.step()
    with torch.no_grad():
        posterior = guide.posterior(x[:1])
        z = posterior.sample((20_000,))
        return (posterior.log_prob(z) - log_p(z)).mean().item()


def test_a_mixture_finds_both_modes():
    """A Gaussian has to choose: log 2 = 0.69 nats."""
    assert fitted_kl(build(Mixture, 2, num_components=4), two_modes) < 0.05
    assert fitted_kl(build(MeanField, 2), two_modes) > 0.6


def correlated(z):
    """N(0, I + wwᵀ) with w = (2, −2, 2)."""
    w = torch.tensor([[2.0], [-2.0], [2.0]])
    return dist.LowRankMultivariateNormal(torch.zeros(3), w, torch.ones(3)).log_prob(z)


def test_low_rank_learns_a_factor():
    """Which a diagonal misses by ½ (Σ log Λ_ii − log det Λ), for Λ = I − wwᵀ/13: 0.72 nats."""
    diagonal = 0.5 * (3 * math.log(9 / 13) + math.log(13))
    assert fitted_kl(build(LowRank, rank=1), correlated) < 0.02
    assert abs(fitted_kl(build(MeanField), correlated) - diagonal) < 0.05


@pytest.mark.parametrize(("dim", "rank"), [(1, 1), (1, 4), (3, 1), (3, 2), (5, 8)])
def test_low_rank_is_a_gaussian_with_that_covariance(dim, rank):
    guide, x = build(LowRank, dim, rank=rank), torch.rand(5, 8, **DOUBLE)
    loc, log_scale, factor = guide.encode(x)
    w = factor.view(5, dim, rank)
    covariance = w @ w.mT + torch.diag_embed((2 * log_scale).exp())
    z = randn(4, 5, dim)
    expected = dist.MultivariateNormal(loc, covariance).log_prob(z)
    assert torch.allclose(guide.posterior(x).log_prob(z), expected, rtol=0, atol=1e-9)
    assert torch.equal(guide.posterior(x).mean, loc)


def test_low_rank_is_between_its_neighbours():
    sizes = [sum(build(kind, 20).output_dims) for kind in (MeanField, LowRank, FullRank)]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("kind", [Mixture, LowRank])
def test_gradients_of_scores(kind):
    """∂ log q / ∂(z, weights) at a z that was not drawn, by finite differences."""
    guide, x = build(kind, 2), torch.rand(2, 8, **DOUBLE)
    z, weight = randn(2, 2).requires_grad_(), guide.encoder[-1].weight

    def score(z, weight):
        outputs = nn.functional.linear(guide.encoder[:-1](x), weight, guide.encoder[-1].bias)
        return guide.given(outputs).posterior(x).log_prob(z)

    assert torch.autograd.gradcheck(score, (z, weight))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build(Mixture, num_components=0), "expected num_components of at least 1, got 0"),
        (lambda: build(LowRank, rank=0), "expected rank of at least 1, got 0"),
    ],
)
def test_bad_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
