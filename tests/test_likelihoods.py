"""Distributions of pixels: normalized, exact in the tails, and drawn from as they are scored."""

import math

import mpmath
import pytest
import torch
import torch.nn.functional as F

from evidence.inference.programs.checks import check_support
from evidence.models import VAE
from evidence.models.likelihoods import (
    Bernoulli,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Normal,
    PixelLikelihood,
)
from tests.box_rule import box_rule

LOGITS = torch.tensor([-700.0, -80.0, -3.0, -0.7, -0.5, -1e-4, 0.0, 1e-9, 0.59, 0.61, 5.0, 200.0])


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


def continuous_bernoulli_mass(log_prob):
    """∫ p over [0, 1] for every logit, by quadrature with panels that the steepest one needs."""
    nodes, log_weights = box_rule(0.0, 1.0, num_panels=400)
    return (log_prob(nodes).exp() * log_weights.exp().unsqueeze(1)).sum(0)


def test_continuous_bernoulli_integrates_to_one():
    logits = LOGITS.double()
    mass = continuous_bernoulli_mass(ContinuousBernoulli(logits).log_prob)
    assert (mass - 1).abs().max() < 1e-12
    # the planted error: the Bernoulli's formula, which has no normalizer on the interval
    without = continuous_bernoulli_mass(
        lambda x: x * F.logsigmoid(logits) + (1 - x) * F.logsigmoid(-logits)
    )
    assert (without - 1).abs().min() > 1e-4


def test_continuous_bernoulli_mean_is_the_integral_and_the_slope_of_the_normalizer():
    logits = LOGITS.double().requires_grad_()
    pixels = ContinuousBernoulli(logits)
    nodes, log_weights = box_rule(0.0, 1.0, num_panels=400)
    weights = pixels.log_prob(nodes).exp() * log_weights.exp().unsqueeze(1)
    assert ((nodes * weights).sum(0) - pixels.mean).abs().max() < 1e-12
    # d log p(x)/dη = x − E[x]
    slope = torch.autograd.grad(pixels.log_prob(torch.tensor(0.25).double()).sum(), logits)[0]
    assert (0.25 - slope - pixels.mean).abs().max() < 1e-12


def test_continuous_bernoulli_is_torchs_where_that_is_exact():
    """Away from both of its approximations; at large logits torch's clamping is 1% off."""
    logits = torch.tensor([-12.0, -2.0, -0.3, 0.3, 1.0, 9.0]).double()
    x = torch.rand(50, 6).double()
    ours = ContinuousBernoulli(logits)
    theirs = torch.distributions.ContinuousBernoulli(logits=logits)
    assert torch.allclose(ours.log_prob(x), theirs.log_prob(x), atol=1e-9)
    assert torch.allclose(ours.mean, theirs.mean, atol=1e-9)


def test_continuous_bernoulli_is_exact_in_single_precision():
    """Values and gradients to rounding, through the middle and at the ends."""
    steps = torch.logspace(-8, 2.3, 400)
    logits = torch.cat([-steps, steps, torch.linspace(-3, 3, 2000)])
    for x in (0.0, 0.3, 1.0):
        value = torch.tensor(x)
        results = []
        for dtype in (torch.float32, torch.float64):
            eta = logits.to(dtype).requires_grad_()
            log_p = ContinuousBernoulli(eta).log_prob(value.to(dtype))
            results.append((log_p.double(), torch.autograd.grad(log_p.sum(), eta)[0].double()))
        (log_p, slope), (exact_log_p, exact_slope) = results
        assert ((log_p - exact_log_p).abs() / (1 + logits.abs())).max() < 2e-7
        assert (slope - exact_slope).abs().max() < 1e-6


@pytest.mark.parametrize("logit", [-300.0, -2.0, -1e-4, 0.0, 0.5, 40.0])
def test_continuous_bernoulli_draws_follow_its_distribution_function(logit):
    """The mean of F(x) is ½ ± 1/√(12 n): |z| < 5; draws at another logit give more."""
    n = 20_000
    logits = torch.full((n,), logit).double()
    x = ContinuousBernoulli(logits).sample()
    assert ((x >= 0) & (x <= 1)).all()

    def z_score(eta):
        u = x if eta == 0 else torch.expm1(eta * x) / math.expm1(eta)
        return abs(u.mean().item() - 0.5) * math.sqrt(12 * n)

    assert z_score(logit) < 5
    assert z_score(logit + max(1.0, 0.2 * abs(logit))) > 5


MIDDLE = [-3.0, -0.3, -0.021, -0.019, -1e-3, -1e-9, 0.0, 1e-9, 1e-3, 0.019, 0.021, 0.3, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eta", MIDDLE)
def test_continuous_bernoulli_draws_have_the_slope_of_differences(eta, dtype):
    """dx/dη at fixed noise, beside differences of log(1 + u(e^η − 1))/η in 50 digits."""
    u = torch.linspace(0.01, 0.99, 25).to(dtype)
    logits = torch.full_like(u, eta).requires_grad_()
    x = ContinuousBernoulli(logits).icdf(u)
    (slope,) = torch.autograd.grad(x.sum(), logits)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    expected = torch.tensor([icdf_in_digits(eta, p) for p in u.tolist()], dtype=torch.float64)
    assert (x.double() - expected[:, 0]).abs().max() < tolerance
    assert (slope.double() - expected[:, 1]).abs().max() < tolerance
    # the planted error: a gradient of zero, as |η| has in its middle
    assert expected[:, 1].max() > 100 * tolerance


def icdf_in_digits(eta, p):
    """The inverse distribution function and its slope in η, by central differences."""
    with mpmath.workdps(50):
        h, eta = mpmath.mpf(10) ** -12, mpmath.mpf(eta)

        def x(t):
            return mpmath.log(1 + p * (mpmath.exp(t) - 1)) / t if t else mpmath.mpf(p)

        return float(x(eta)), float((x(eta + h) - x(eta - h)) / (2 * h))


@pytest.mark.parametrize("eta", [0.0, 1e-4, -2.0, 5.0])
def test_continuous_bernoulli_draws_carry_the_gradient_of_the_mean(eta):
    """The mean of dx/dη over 20,000 draws is dE[x]/dη, |z| < 5, and not zero."""
    logits = torch.full((20_000,), eta).double().requires_grad_()
    (slopes,) = torch.autograd.grad(ContinuousBernoulli(logits).rsample().sum(), logits)
    single = torch.tensor(eta, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad(ContinuousBernoulli(single).mean, single)
    se = slopes.std() / math.sqrt(20_000)
    assert abs(slopes.mean() - expected) < 5 * se
    assert expected > 50 * se


def test_continuous_bernoulli_is_smooth_through_its_middle():
    """Values and slopes of log p, the mean and the draws, beside 50 digits, at |η| down to 0."""
    eta = torch.tensor(MIDDLE, dtype=torch.float64).requires_grad_()
    pixels = ContinuousBernoulli(eta)
    for value, formula in (
        (
            pixels.log_prob(torch.tensor(0.2, dtype=torch.float64)),
            lambda t: 0.2 * t - normalizer(t),
        ),
        (pixels.mean, lambda t: mpmath.diff(normalizer, t, h=mpmath.mpf(10) ** -12)),
    ):
        (slope,) = torch.autograd.grad(value.sum(), eta)
        with mpmath.workdps(50):
            h = mpmath.mpf(10) ** -10
            exact = [(formula(t), (formula(t + h) - formula(t - h)) / (2 * h)) for t in MIDDLE]
        assert value.tolist() == pytest.approx([float(v) for v, _ in exact], abs=1e-9)
        assert slope.tolist() == pytest.approx([float(s) for _, s in exact], abs=1e-7)


def normalizer(t):
    """log((e^η − 1)/η)."""
    return mpmath.log(mpmath.expm1(t) / t) if t else mpmath.mpf(0)


def levels(num_levels):
    return torch.arange(num_levels, dtype=torch.float64) / (num_levels - 1)


def level_grid(num_levels, **options):
    """Log-probabilities of all levels `[L, 7]`, for locations in and out of the interval."""
    loc = torch.tensor([-3.0, 0.0, 0.001, 0.4, 0.5, 1.0, 20.0], **options)
    log_scale = torch.tensor([0.5, -7.0, -5.0, -3.0, -9.0, 0.0, -2.0], **options)
    pixels = DiscretizedLogistic(loc, log_scale, num_levels)
    return pixels, pixels.log_prob(levels(num_levels).to(loc).unsqueeze(1))


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_levels_sum_to_one(num_levels):
    pixels, log_p = level_grid(num_levels, dtype=torch.float64)
    assert log_p.isfinite().all()
    assert log_p.logsumexp(0).abs().max() < 1e-12
    # the planted error: the end levels without the tails
    h, scale = pixels.half_step, pixels.log_scale.exp()
    x = levels(num_levels).unsqueeze(1) - pixels.loc
    no_tails = (((x + h) / scale).sigmoid() - ((x - h) / scale).sigmoid()).sum(0)
    assert (no_tails - 1).abs().max() > 0.1


def test_level_probabilities_are_differences_of_the_distribution_function():
    pixels, log_p = level_grid(17, dtype=torch.float64)
    h, scale = pixels.half_step, pixels.log_scale.exp()
    inner = levels(17)[1:-1].unsqueeze(1) - pixels.loc
    naive = ((inner + h) / scale).sigmoid() - ((inner - h) / scale).sigmoid()
    assert torch.allclose(log_p[1:-1].exp(), naive, atol=1e-14)
    mean = (log_p.exp() * levels(17).unsqueeze(1)).sum(0)
    assert torch.allclose(pixels.mean, mean, atol=1e-12)


def test_levels_are_exact_far_in_the_tail_and_in_single_precision():
    """At 4,000 scales from μ the naive difference is 0 and its logarithm −inf."""
    pixels, single = level_grid(256, dtype=torch.float32)
    exact = DiscretizedLogistic(pixels.loc.double(), pixels.log_scale.double(), 256).log_prob(
        levels(256).unsqueeze(1)
    )
    assert exact.min() < -4000
    assert ((single - exact).abs() / (1 + exact.abs())).max() < 1e-4
    assert single.logsumexp(0).abs().max() < 1e-6
    loc = torch.zeros(1, requires_grad=True)
    log_p = DiscretizedLogistic(loc, torch.full((1,), -8.0), 256).log_prob(torch.tensor(0.8))
    assert torch.autograd.grad(log_p.sum(), loc)[0].item() == pytest.approx(math.exp(8), rel=1e-3)


def test_drawn_levels_have_their_probabilities():
    """Frequencies of all 5 levels at 40,000 draws, |z| < 5; those of a shifted μ differ."""
    pixels = DiscretizedLogistic(torch.tensor(0.3).double(), torch.tensor(-1.5).double(), 5)
    x = pixels.sample((40_000,))
    assert pixels.support.check(x).all()
    frequency = (x.unsqueeze(1) == levels(5)).double().mean(0)
    for shift, fits in ((0.0, True), (0.05, False)):
        other = DiscretizedLogistic(pixels.loc + shift, pixels.log_scale, 5)
        p = other.log_prob(levels(5)).exp()
        z_scores = (frequency - p) / (p * (1 - p) / 40_000).sqrt()
        assert (z_scores.abs().max() < 5) == fits


def test_two_levels_are_bits():
    """With L = 2, log-odds are (μ − ½)/s."""
    loc = torch.linspace(-3, 3, 7).double()
    pixels = DiscretizedLogistic(loc, torch.zeros(7).double(), 2)
    for bit in (0.0, 1.0):
        value = torch.full((7,), bit).double()
        expected = Bernoulli(logits=loc - 0.5).log_prob(value)
        assert torch.allclose(pixels.log_prob(value), expected, atol=1e-12)


def test_data_off_the_levels_are_refused_in_one_line():
    from pyro import poutine  # noqa: PLC0415

    model = VAE(4, 2, likelihood="discretized-logistic(num_levels=17)")
    good = torch.randint(17, (3, 4)) / 16
    run = poutine.trace(model).get_trace
    check_support(run(good), lambda: run(good))
    with pytest.raises(
        ValueError, match=r"DiscretizedLogistic expects one of the 17 grey levels k/16"
    ):
        check_support(run(good * 0.97 + 0.01), lambda: run(good))
    assert (
        DiscretizedLogistic(torch.zeros(1), torch.zeros(1), 256)
        .support.check(torch.arange(256).float().div_(255))
        .all()
    )


@pytest.mark.parametrize(
    ("name", "pixels", "outputs"),
    [
        ("bernoulli", "binary", 1),
        ("continuous-bernoulli", "unit", 1),
        ("discretized-logistic(num_levels=5)", "levels", 2),
        ("gaussian", "real", 2),
    ],
)
def test_every_likelihood_says_what_it_scores_and_expands(name, pixels, outputs):
    likelihood = PixelLikelihood(name)
    assert (likelihood.pixels, likelihood.outputs_per_pixel) == (pixels, outputs)
    assert VAE(4, 2, likelihood=name).pixels == pixels
    raw = torch.randn(3, outputs * 4).double()
    one = likelihood(raw)
    many = one.expand((6, 3))
    x = many.sample()
    assert x.shape == (6, 3, 4)
    assert likelihood.support.check(x).all()
    assert torch.allclose(many.log_prob(x), one.log_prob(x), atol=1e-12)
    assert torch.allclose(many.mean[2], one.mean)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: VAE(4, likelihood="discretized-logistic"), "num_levels of at least 2, got None"),
        (lambda: VAE(4, likelihood="bernoulli(scale_floor=0.1)"), "expected none: leave it out"),
        (lambda: VAE(4, likelihood="gaussian(num_levels=5)"), "expected one of scale_floor"),
        (lambda: VAE(4, likelihood="gaussian(scale_floor=-1)"), "scale_floor > 0, got -1"),
        (
            lambda: VAE(4, likelihood="discretized-logistic(num_levels=1)"),
            "num_levels of at least 2, got 1",
        ),
        (lambda: VAE(4, likelihood="discretised-logistic"), "did you mean 'discretized-logistic'"),
        (lambda: DiscretizedLogistic(torch.zeros(1), torch.zeros(1), 1), "at least 2, got 1"),
        (
            lambda: ContinuousBernoulli(torch.zeros(2), validate_args=True).log_prob(
                torch.tensor([0.5, 1.5])
            ),
            "within the support",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
