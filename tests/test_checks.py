"""The checks of the course: right answers pass however written, wrong ones are named."""

import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from evidence.notebooks import checks
from evidence.notebooks.checks.exercise import Exercise
from evidence.notebooks.checks.planar_flows import _corrected, _through

NAMES = [name for name in checks.__all__ if isinstance(getattr(checks, name), Exercise)]
PROGRAMS = ("regression", "student_t")  # what they return is no tensor
SEEDS = range(20)


def in_a_loop(function):
    """One datum at a time, whatever dimensions stand in front."""

    def answer(*args):
        args = torch.broadcast_tensors(*args)
        rows = zip(*(arg.reshape(-1, arg.shape[-1]) for arg in args), strict=True)
        out = torch.stack([function(*row) for row in rows])
        return out.reshape(args[0].shape[:-1] + out.shape[1:])

    return answer


def regression(x, y):
    a, b = (pyro.sample(name, dist.Normal(0, 10)) for name in ("intercept", "slope"))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a + b * x, sigma), obs=y)


def regression_at_once(x, y):
    sigma = pyro.sample("sigma", dist.HalfCauchy(torch.tensor(5.0)))
    b = pyro.sample("slope", dist.Normal(0.0, 10.0))
    a = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    design = torch.stack([torch.ones_like(x), x], 1)
    with pyro.plate("rows", x.shape[0]):
        pyro.sample("obs", dist.Normal(design @ torch.stack([a, b]).to(x), sigma), obs=y)


def regression_by_factor(x, y):
    a = pyro.sample("intercept", dist.Normal(0.0, 10.0))
    b = pyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
    for i in pyro.plate("data", len(y)):
        pyro.sample(f"y_{i}", dist.Normal(a + b * x[i], sigma), obs=y[i])


def bound_by_density(z0, mu, logsigma, layers, log_likelihood):
    z, log_q = z0, MultivariateNormal(mu, scale_tril=torch.diag_embed(logsigma.exp())).log_prob(z0)
    for b, u_hat, w in layers:
        inner = torch.einsum("...z,...z->...", w, z)[..., None] + b
        slope = torch.einsum("...z,...z->...", u_hat, w)
        log_q = log_q - torch.log1p(slope / inner[..., 0].cosh() ** 2)
        z = z + u_hat * inner.tanh()
    prior = -(z**2).sum(-1) / 2 - z.shape[-1] / 2 * math.log(2 * math.pi)
    return prior + log_likelihood(z) - log_q


def bound_in_steps(z0, mu, logsigma, layers, log_likelihood):
    z_k, log_det = _through(z0, layers)
    zero, one = torch.zeros_like(mu), torch.ones_like(mu)
    log_q0 = Normal(mu, logsigma.exp()).log_prob(z0)
    return log_likelihood(z_k) + (Normal(zero, one).log_prob(z_k) - log_q0).sum(-1) + log_det


def level_in_a_loop(density, share):
    mass, total = 0.0, density.sum().item()
    for height in sorted(density.tolist(), reverse=True):
        mass += height
        if mass >= share * total:
            return torch.tensor(height, dtype=density.dtype)


def level_by_threshold(density, share):
    total = density.sum()
    held = [h for h in density if density[density >= h].sum() >= share * total]
    return max(held)


def ess_by_squares(log_w):
    w = (log_w - log_w.max(0).values).exp()
    return w.sum(0) ** 2 / (w**2).sum(0)


def ess_in_logs(log_w):
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def stable_mean(log_w):
    top = log_w.max(0).values
    return (log_w - top).exp().mean(0).log() + top


def kl_as_mean(log_a, log_b):
    """Of log-densities up to constants, KL(a ‖ b)."""
    p = log_a.softmax(0)
    return (p * (log_a.log_softmax(0) - log_b.log_softmax(0))).sum()


def segment_by_loop(start, end, num_points):
    return torch.stack([start + i / (num_points - 1) * (end - start) for i in range(num_points)])


def pca_by_covariance(x, x_train, num_components):
    mean = x_train.mean(0, keepdim=True)
    away = x_train - mean
    vectors = torch.linalg.eigh(away.T @ away).eigenvectors[:, -num_components:]
    return mean + (x - mean) @ vectors @ vectors.T


def pca_by_left_vectors(x, x_train, num_components):
    mean = x_train.mean(0)
    u, s, _ = torch.linalg.svd((x_train - mean).T, full_matrices=False)
    del s
    basis = u[:, :num_components]
    return (basis @ (basis.T @ (x - mean).T)).T + mean


def planar_by_einsum(z, b, u_hat, w):
    inner = torch.einsum("...z,...z->...", w, z).unsqueeze(-1) + b
    slope = 1 / inner.cosh() ** 2
    return z + u_hat * inner.tanh(), torch.log1p((u_hat * w * slope).sum(-1))


def planar_by_autograd(z, b, u_hat, w):
    def f(z, b, u_hat, w):
        return z + u_hat * torch.tanh(w @ z + b)

    rows = [tensor.reshape(-1, tensor.shape[-1]) for tensor in (z, b, u_hat, w)]
    jacobian = torch.func.vmap(torch.func.jacrev(f))(*rows)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    return torch.func.vmap(f)(*rows).reshape(z.shape), log_det.reshape(z.shape[:-1])


def covariance_by_loop(codes):
    mean = codes.sum(0) / len(codes)
    total = sum(torch.outer(code - mean, code - mean) for code in codes)
    return mean, total / (len(codes) - 1)


def weight_by_loop(betas, log_f0, log_f1):
    total = torch.zeros_like(log_f0[0])
    for t in range(1, len(betas)):
        before = (1 - betas[t - 1]) * log_f0[t - 1] + betas[t - 1] * log_f1[t - 1]
        after = (1 - betas[t]) * log_f0[t - 1] + betas[t] * log_f1[t - 1]
        total = total + after - before
    return total


def covered_by_sorting(draws, truth, mass):
    low, high = torch.quantile(draws, torch.tensor([(1 - mass) / 2, (1 + mass) / 2]).to(draws), 0)
    return ((truth >= low) & (truth <= high)).to(draws.dtype).mean()


def covered_in_a_loop(draws, truth, mass):
    tail = (1 - mass) / 2
    inside = [
        bool(torch.quantile(d, tail) <= t <= torch.quantile(d, 1 - tail))
        for d, t in zip(draws.T, truth, strict=True)
    ]
    return torch.tensor(sum(inside) / len(inside), dtype=draws.dtype)


# Each right answer in two more ways than that of the check itself.
OTHER_WAYS = {
    "loss": (
        lambda x, x_hat: -Normal(x_hat, torch.ones_like(x)).log_prob(x).sum(-1),
        in_a_loop(lambda x, y: 0.5 * (x - y) @ (x - y) + len(x) * math.log(math.sqrt(2 * math.pi))),
    ),
    "pca_reconstruction": (pca_by_covariance, pca_by_left_vectors),
    "fitted_gaussian": (lambda codes: (codes.mean(0), torch.cov(codes.T)), covariance_by_loop),
    "segment": (
        segment_by_loop,
        lambda a, b, n: torch.lerp(a, b, torch.linspace(0, 1, n, dtype=a.dtype)[:, None]),
    ),
    "log_likelihood": (
        lambda x, mu, s: (
            -((x - mu) ** 2) / (2 * torch.exp(2 * s)) - s - 0.5 * math.log(2 * math.pi)
        ).sum(dim=-1),
        lambda x, mu, s: MultivariateNormal(mu, scale_tril=torch.diag_embed(s.exp())).log_prob(x),
    ),
    "KL_divergence": (
        lambda mu, s: 0.5 * (s.exp().pow(2) + mu.pow(2) - 1 - s.exp().pow(2).log()).sum(-1),
        lambda mu, s: kl_divergence(
            MultivariateNormal(mu, scale_tril=torch.diag_embed(s.exp())),
            MultivariateNormal(torch.zeros_like(mu), torch.eye(mu.shape[-1]).to(mu)),
        ),
    ),
    "negative_elbo": (
        lambda log_p, kl: -(log_p - kl).mean(),
        lambda log_p, kl: (kl.sum() - log_p.sum()) / len(kl),
    ),
    "corrected": (
        lambda u, w: (
            u
            + ((1 + (w * u).sum(-1).exp()).log() - 1 - (w * u).sum(-1))[..., None]
            * w
            / w.norm(dim=-1, keepdim=True) ** 2
        ),
        in_a_loop(lambda u, w: u + (F.softplus(w @ u) - 1 - w @ u) * w / (w @ w)),
    ),
    "planar": (planar_by_einsum, planar_by_autograd),
    "bound": (bound_by_density, bound_in_steps),
    "reverse_kl": (
        lambda log_p, log_q, area: kl_as_mean(log_q, log_p),
        lambda log_p, log_q, area: (
            (log_q.exp() * area * (log_q - log_p)).sum() + (log_p.exp().sum() * area).log()
        ),
    ),
    "forward_kl": (
        lambda log_p, log_q, area: kl_as_mean(log_p, log_q),
        lambda log_p, log_q, area: (
            (log_p.softmax(0) * (log_p - log_q)).sum() - (log_p.exp() * area).sum().log()
        ),
    ),
    "mass_level": (level_in_a_loop, level_by_threshold),
    "student_t": (
        lambda loc, s: dist.StudentT(4.0, loc, s.exp()).to_event(1),
        lambda loc, s: dist.Independent(dist.StudentT(torch.tensor(4.0), loc, torch.exp(s)), 1),
    ),
    "log_mean_exp": (
        lambda log_w: log_w.logsumexp(dim=0) - math.log(log_w.shape[0]),
        stable_mean,
    ),
    "effective_sample_size": (ess_by_squares, ess_in_logs),
    "mc_se": (
        lambda log_w: (1 / ess_by_squares(log_w) - 1 / len(log_w)) ** 0.5,
        lambda log_w: (torch.softmax(log_w, 0) - 1 / len(log_w)).square().sum(0).sqrt(),
    ),
    "data_se": (
        lambda log_px: log_px.std() / len(log_px) ** 0.5,
        lambda log_px: (
            (log_px - log_px.mean()).square().sum() / (len(log_px) - 1) / len(log_px)
        ).sqrt(),
    ),
    "tempered": (
        lambda beta, f0, f1: f0 + beta * (f1 - f0),
        lambda beta, f0, f1: torch.lerp(f0, f1, beta),
    ),
    "chain_log_weight": (
        weight_by_loop,
        lambda betas, f0, f1: torch.einsum("t,tc->c", betas[1:] - betas[:-1], (f1 - f0)[:-1]),
    ),
    "upper_bound": (
        lambda log_w: math.log(len(log_w)) - torch.logsumexp(-log_w, 0),
        lambda log_w: -stable_mean(-log_w),
    ),
    "regression": (regression, regression_at_once, regression_by_factor),
    "log_bayes_factor": (
        lambda p1, s1, p2, s2: (p1 - p2, torch.hypot(s1, s2)),
        lambda p1, s1, p2, s2: (-(p2 - p1), (s1 * s1 + s2 * s2) ** 0.5),
    ),
    "model_probabilities": (
        lambda log_p, prior: torch.softmax(log_p + torch.log(prior), dim=0),
        lambda log_p, prior: (
            (log_p - log_p.max()).exp() * prior / ((log_p - log_p.max()).exp() * prior).sum()
        ),
    ),
    "log_bf_of_a_mean": (
        lambda m, n, tau: (
            n * m**2 / 2 * (n * tau**2 / (1 + n * tau**2)) - torch.log1p(n * tau**2) / 2
        ),
        lambda m, n, tau: m**2 / 2 * (n - 1 / (1 / n + tau**2)) - 0.5 * (1 + n * tau**2).log(),
    ),
    "rank": (
        lambda draws, truth: torch.searchsorted(
            draws.T.sort(-1).values.contiguous(), truth[:, None]
        )[:, 0],
        lambda draws, truth: torch.tensor(
            [sum(bool(d < t) for d in column) for column, t in zip(draws.T, truth, strict=True)]
        ),
    ),
    "coverage": (covered_by_sorting, covered_in_a_loop),
    "gap_parts": (
        lambda log_px, best, elbo: (log_px.mean() - best.mean(), best.mean() - elbo.mean()),
        lambda log_px, best, elbo: [(log_px - best).mean(), -(elbo - best).mean()],
    ),
}


def message(check, answer, seed=0):
    with pytest.raises(checks.WrongAnswerError) as caught:
        check(answer, seed=seed)
    text = str(caught.value)
    assert "\n" not in text
    return text


def own_answer(name):
    """What the check takes for right, where that is an answer a student could give."""
    return () if name in PROGRAMS else (getattr(checks, name).right,)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_passes_however_it_is_written(name, capsys):
    ways = (*own_answer(name), *OTHER_WAYS[name])
    assert len(ways) >= (2 if name == "student_t" else 3)
    for answer in ways:
        getattr(checks, name)(answer)
    assert capsys.readouterr().out.count("✓") == len(ways)


@pytest.mark.parametrize("name", NAMES)
def test_a_right_answer_passes_with_every_seed(name):
    for seed in SEEDS:
        for answer in (*own_answer(name), *OTHER_WAYS[name]):
            getattr(checks, name)(answer, seed=seed)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in PROGRAMS])
def test_every_mistake_is_named(name):
    check = getattr(checks, name)
    assert len(check.mistakes) >= 4
    for expected, wrong in check.mistakes.items():
        for seed in (0, 7):
            assert message(check, wrong, seed) == f"{name}: {expected}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in PROGRAMS])
def test_every_mistake_is_named_with_every_seed(name):
    check = getattr(checks, name)
    for expected, wrong in check.mistakes.items():
        for seed in SEEDS:
            assert message(check, wrong, seed) == f"{name}: {expected}"


def test_mistakes_in_a_program_are_named():
    def program(scale=10.0, sd=lambda s: s, name="slope", obs=True, dim=1):
        def model(x, y):
            a = pyro.sample("intercept", dist.Normal(0.0, scale))
            b = pyro.sample(name, dist.Normal(0.0, scale))
            sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
            if dim == 0:
                pyro.sample("y", dist.Normal(a + b * x, sd(sigma)).to_event(1), obs=y)
                return
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(a + b * x, sd(sigma)), obs=y if obs else None)

        return model

    def latents_per_datum(x, y):
        with pyro.plate("data", len(y)):
            regression_inside(x, y)

    def regression_inside(x, y):
        a, b = (pyro.sample(name, dist.Normal(0, 10.0)) for name in ("intercept", "slope"))
        sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
        pyro.sample("y", dist.Normal(a + b * x, sigma), obs=y)

    wrong = {
        "priors of intercept and slope are N(0, 1)": program(1.0),
        "the scale √10": program(math.sqrt(10)),
        "standard deviation sigma²": program(sd=lambda s: s**2),
        "standard deviation √sigma": program(sd=lambda s: s**0.5),
        "no latent 'slope'": program(name="b"),
        "no observed site": program(obs=False),
        "outside of any plate": program(dim=0),
        "a latent is inside the plate": latents_per_datum,
    }
    for expected, model in wrong.items():
        assert expected in message(checks.regression, model)


def test_mistakes_in_a_posterior_are_named():
    wrong = {
        "their product is .to_event(1)": lambda loc, s: dist.StudentT(4.0, loc, s.exp()),
        "the scale is log_scale.exp()": (
            lambda loc, s: dist.StudentT(4.0, loc, s.abs()).to_event(1)
        ),
        "this is a normal distribution": lambda loc, s: dist.Normal(loc, s.exp()).to_event(1),
        "the location is missing": (
            lambda loc, s: dist.StudentT(4.0, torch.zeros_like(loc), s.exp()).to_event(1)
        ),
        "not a draw of it": lambda loc, s: dist.StudentT(4.0, loc, s.exp()).to_event(1).sample(),
    }
    for expected, answer in wrong.items():
        assert expected in message(checks.student_t, answer)


def test_draws_are_checked_within_their_standard_errors(capsys):
    for seed in SEEDS:
        checks.reparameterize(lambda mu, s: mu + s.exp() * torch.randn_like(mu), seed=seed)
    checks.reparameterize(lambda mu, s: dist.Normal(mu, s.exp()).rsample())
    checks.reparameterize(lambda mu, s: torch.addcmul(mu, s.exp(), torch.randn(mu.shape).to(mu)))
    assert "20,000 draws" in capsys.readouterr().out


def test_wrong_draws_are_named():
    noise = torch.randn_like
    wrong = {
        "the argument is log σ, not log σ²": lambda mu, s: mu + (s / 2).exp() * noise(mu),
        "the variance in place of": lambda mu, s: mu + (2 * s).exp() * noise(mu),
        "logsigma is taken for σ": lambda mu, s: mu + s * noise(mu),
        "no noise": lambda mu, s: mu.clone(),
        "by randn": lambda mu, s: mu + s.exp() * torch.rand_like(mu),
        "the mean is missing": lambda mu, s: s.exp() * noise(mu),
        "not multiplied by σ": lambda mu, s: mu + noise(mu),
        "one noise for all data": (lambda mu, s: mu + s.exp() * torch.randn(mu.shape[-1]).to(mu)),
        "latents share their noise": (
            lambda mu, s: mu + s.exp() * torch.randn(*mu.shape[:-1], 1).to(mu)
        ),
        "the noise is not normal": (
            lambda mu, s: mu + s.exp() * (torch.rand_like(mu) - 0.5) * math.sqrt(12)
        ),
        "with respect to mu": lambda mu, s: mu.detach() + s.exp() * noise(mu),
        "with respect to logsigma": lambda mu, s: mu + s.exp().detach() * noise(mu),
        "has no gradient": lambda mu, s: dist.Normal(mu, s.exp()).sample(),
        "set no seed inside": (lambda mu, s: (torch.manual_seed(0), mu + s.exp() * noise(mu))[1]),
        "as mu": lambda mu, s: (mu + s.exp() * noise(mu)).sum(-1),
    }
    for expected, answer in wrong.items():
        for seed in (0, 3):
            assert expected in message(checks.reparameterize, answer, seed)


def squared_in_place(mu, logsigma):
    mu.square_()
    return ((2 * logsigma).exp() + mu - 1 - 2 * logsigma).sum(-1) / 2


def detached(mu, logsigma):
    return checks.KL_divergence.right(mu.detach(), logsigma.detach())


def through_numpy(mu, logsigma):
    return torch.from_numpy(np.asarray(checks.KL_divergence.right(mu, logsigma).numpy()))


def half_detached(mu, logsigma):
    return checks.KL_divergence.right(mu, logsigma.detach())


def blank(mu, logsigma):
    raise NotImplementedError("sum over the last dimension")


def blank_of_nbgrader(mu, logsigma):
    raise NotImplementedError


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (squared_in_place, "changes its argument mu in place"),
        (detached, "no gradient with respect to"),
        (
            through_numpy,
            "gradients fail, by a way through NumPy or a change in place: RuntimeError",
        ),
        (half_detached, "no gradient with respect to logsigma"),
        (blank, "still blank. Hint: sum over the last dimension"),
        (blank_of_nbgrader, "still blank. The hint is above it"),
        (lambda mu, s: list(checks.KL_divergence.right(mu, s)), "; torch.stack makes it of tensor"),
        (lambda mu, s: checks.KL_divergence.right(mu, s).numpy(), "leave out item(), float(), len"),
        (lambda mu, logsigma: None, "returns nothing"),
        (
            lambda mu, logsigma: mu @ logsigma,
            "RuntimeError: mat1 and mat2 shapes cannot be multiplied",
        ),
        (lambda mu: mu, "expected KL_divergence(mu, logsigma): other arguments are taken"),
        (lambda mu, logsigma: torch.ones(len(mu)), "expected "),
        (
            lambda mu, logsigma: 1.0,
            "got float: this is differentiated, and only tensors have gradients",
        ),
        (torch.tensor(1.0), "expected the function KL_divergence, got Tensor"),
    ],
)
def test_what_is_wrong_with_any_function_is_said(answer, expected):
    assert expected in message(checks.KL_divergence, answer)


def test_a_hidden_float32_is_told_from_a_wrong_value():
    """A wrong value agrees not even in float32; the advice, followed, makes the answer pass."""

    def segment(start, end, num_points, dtype=None, slip=0.0):
        shares = torch.linspace(0, 1, num_points, dtype=dtype or start.dtype)[:, None]
        return start + shares * (end - start) + slip

    hidden = message(checks.segment, partial(segment, dtype=torch.float32))
    assert "give tensors that you make the dtype of the arguments" in hidden
    assert "add no small constants" in message(checks.segment, partial(segment, slip=1e-6))
    assert "dtype" not in message(checks.segment, partial(segment, slip=0.1))
    checks.segment(segment)


def test_a_constant_or_another_exercise_never_passes():
    """No answer passes by accident: each right one is wrong everywhere else."""
    for name in NAMES:
        check = getattr(checks, name)
        for other in ("KL_divergence", "negative_elbo", "data_se", "upper_bound"):
            if other != name:
                message(check, getattr(checks, other).right)


def test_a_gradient_that_stops_at_a_layer_is_noticed():
    def bound(z0, mu, logsigma, layers, log_likelihood):
        return checks.bound.right(z0, mu.detach(), logsigma, layers, log_likelihood)

    assert "gradient with respect to mu" in message(checks.bound, bound)


def test_corrected_is_what_makes_a_layer_invertible():
    u, w = torch.randn(2, 100, 3, dtype=torch.float64)
    assert ((w * _corrected(u, w)).sum(-1) > -1).all()


def test_checks_leave_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    checks.reparameterize(lambda mu, s: mu + s.exp() * torch.randn_like(mu))
    checks.KL_divergence(checks.KL_divergence.right)
    assert torch.equal(torch.randn(3), expected)


def test_a_notebook_shows_one_line():
    error = checks.WrongAnswerError("KL_divergence: the sign is flipped")
    assert error._render_traceback_() == ["✗ KL_divergence: the sign is flipped"]
