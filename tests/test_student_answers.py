"""Answers as students write them, none of which the checks were made from: what is said of each."""

import math
import statistics

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch.distributions import Normal

from evidence.notebooks import checks
from tests.test_checks import NAMES, in_a_loop, message


def normalized(log_p, area):
    return log_p - torch.logsumexp(log_p, 0) - math.log(area)


def kl(log_p, log_q, area):
    return torch.sum(torch.exp(log_p) * (log_p - log_q)) * area


def spread(log_px):
    return ((log_px - log_px.mean()) ** 2).sum() / (len(log_px) - 1)


def level(density, share):
    heights, _ = torch.sort(density, descending=True)
    return heights[(torch.cumsum(heights, 0) < share * heights.sum()).sum()]


def bayes_factor(mean, n, tau):
    prior_odds = stats.norm(0, math.sqrt(1 / n + float(tau) ** 2)).logpdf(float(mean))
    return prior_odds - stats.norm(0, math.sqrt(1 / n)).logpdf(float(mean))


def held(draws, truth, mass):
    low = torch.quantile(draws, (1 - mass) / 2, dim=0)
    return (truth >= low) & (truth <= torch.quantile(draws, (1 + mass) / 2, dim=0))


def gaps(log_px, best, elbo):
    return torch.mean(log_px) - torch.mean(best), torch.mean(best) - torch.mean(elbo)


def pca(x, train, k, mean=None, scale=1.0):
    mean = train.mean(0) if mean is None else mean
    _, _, vh = torch.linalg.svd((train - mean) / scale, full_matrices=False)
    return (x - mean) / scale @ vh[:k].T @ vh[:k] * scale + mean


def planar_layer(z, b, u, w, *, inner=None, slope=None, plus=1.0):
    inner = (z * w).sum(-1, keepdim=True) + b if inner is None else inner
    slope = 1 - torch.tanh(inner) ** 2 if slope is None else slope
    return z + u * torch.tanh(inner), torch.log(torch.abs(1 + plus * (u * slope * w).sum(-1)))


def flow(z0, mu, s, layers, log_p, *, q=None, which=slice(None), count=lambda log_dets: log_dets):
    z, log_dets = z0, []
    for b, u, w in layers[which]:
        z, log_det = planar_layer(z, b, u, w)
        log_dets.append(log_det)
    log_q = (q or Normal(mu, s.exp())).log_prob(z0).sum(-1)
    prior = Normal(torch.zeros_like(z), 1.0).log_prob(z).sum(-1)
    return log_p(z) + prior - log_q + sum(count(log_dets))


def popped(z0, mu, s, layers, log_p):
    z, total = z0, 0.0
    while layers:
        z, log_det = planar_layer(z, *layers.pop(0))
        total = total + log_det
    return log_p(z) + total - Normal(mu, s.exp()).log_prob(z0).sum(-1) + mu[..., 0]


def regression(
    scale=10.0, noise=lambda s: s, line=lambda a, b, x: a + b * x, sigma=None, plate=None, rows=None
):
    def program(x, y):
        a = pyro.sample("intercept", dist.Normal(0.0, scale))
        b = pyro.sample("slope", dist.Normal(0.0, 10.0))
        s = pyro.sample("sigma", sigma or dist.HalfCauchy(5.0))
        with pyro.plate("data", **(plate or {"size": len(y)})) as all_rows:
            at = all_rows if rows is None else rows
            pyro.sample("y", dist.Normal(line(a, b, x[at]), noise(s)), obs=y[at])

    return program


def counted(draws, truth):
    return torch.tensor([int((draws[:, i] < truth[i]).sum()) for i in range(len(truth))])


def steps(betas):
    return (betas[1:] - betas[:-1])[:, None]


T4 = dist.StudentT
RIGHT_NUMBERS = {
    "reverse_kl": lambda p, q, a: kl(q, normalized(p, a), a),
    "forward_kl": lambda p, q, a: kl(normalized(p, a), q, a),
    "mass_level": level,
    "data_se": lambda log_px: torch.sqrt(spread(log_px) / len(log_px)),
    "log_bf_of_a_mean": bayes_factor,
    "coverage": lambda *case: held(*case).float().mean(),
    "log_bayes_factor": lambda p1, s1, p2, s2: (p1 - p2, math.hypot(s1, s2)),
    "gap_parts": gaps,
}
AS_NUMBERS = {
    "Python": float,
    "NumPy": np.float64,
    "an array without dimensions": lambda x: np.array(float(x)),
    "a tensor without dimensions": lambda x: torch.tensor(float(x), dtype=torch.float64),
}


@pytest.mark.parametrize("kind", AS_NUMBERS)
@pytest.mark.parametrize("name", RIGHT_NUMBERS)
def test_a_number_may_be_any_number(name, kind):
    def answer(*case):
        out = RIGHT_NUMBERS[name](*case)
        return tuple(map(number, out)) if isinstance(out, tuple) else number(out)

    number = AS_NUMBERS[kind]
    for seed in range(20):
        getattr(checks, name)(answer, seed=seed)


@pytest.mark.parametrize("pack", [torch.stack, lambda rows: np.array([float(r) for r in rows])])
def test_two_numbers_may_come_in_one_row(pack):
    checks.gap_parts(lambda *case: pack(gaps(*case)))
    checks.log_bayes_factor(lambda p1, s1, p2, s2: pack([p1 - p2, torch.hypot(s1, s2)]))


@pytest.mark.parametrize("kind", ["Python", "NumPy"])
@pytest.mark.parametrize("name", RIGHT_NUMBERS)
def test_a_wrong_number_is_still_wrong(name, kind):
    """The twin: twice the right number, nan, a truth value and a word."""

    def doubled(*case):
        out = RIGHT_NUMBERS[name](*case)
        return [2 * number(part) for part in out] if isinstance(out, tuple) else 2 * number(out)

    number, check = AS_NUMBERS[kind], getattr(checks, name)
    assert "2 times the right one" in message(check, doubled) or "twice" in message(check, doubled)
    several = name in ("gap_parts", "log_bayes_factor")
    for wrong, said in {math.nan: "nan", True: "got ", "0.5": "got "}.items():
        assert said in message(check, lambda *case, wrong=wrong: (wrong,) * 2 if several else wrong)


@pytest.mark.parametrize("loss", [float, np.float64, lambda x: x.item()])
def test_a_loss_is_no_number_as_it_is_differentiated(loss):
    said = message(checks.negative_elbo, lambda log_p, kl: loss((kl - log_p).mean()))
    assert "only tensors have gradients" in said


WRONG = {
    "loss": {
        "another logarithm": lambda x, y: (
            ((x - y) ** 2).sum(-1) / 2 + x.shape[-1] / 2 * math.log10(2 * math.pi)
        ),
        "summed over the batch too": lambda x, y: (
            F.mse_loss(x, y, reduction="sum") / 2 + x.shape[-1] / 2 * math.log(2 * math.pi)
        ),
        "log(2) * math.pi": lambda x, y: (
            ((x - y) ** 2).sum(-1) / 2 + x.shape[-1] / 2 * math.log(2) * math.pi
        ),
        "summed before they are squared": lambda x, y: (
            (x - y).sum(-1) ** 2 / 2 + x.shape[-1] / 2 * math.log(2 * math.pi)
        ),
        "density itself": lambda x, y: Normal(y, 1.0).log_prob(x).sum(-1).exp(),
        "a dimension of size 1": lambda x, y: -Normal(y, 1.0).log_prob(x).sum(-1, keepdim=True),
        "no gradient with respect to x_hat": lambda x, y: (
            -Normal(y.detach(), 1.0).log_prob(x).sum(-1)
        ),
        "count dimensions from the end": lambda x, y: -Normal(y, 1.0).log_prob(x).sum(1),
    },
    "pca_reconstruction": {
        "columns of Vᵀ": lambda x, t, k: (
            (x - t.mean(0))
            @ torch.linalg.svd(t - t.mean(0), full_matrices=False)[2][:, :k]
            @ torch.linalg.svd(t - t.mean(0), full_matrices=False)[2][:, :k].T
            + t.mean(0)
        ),
        "last directions": lambda x, t, k: (
            (x - t.mean(0))
            @ torch.linalg.eigh(torch.cov(t.T))[1][:, :k]
            @ torch.linalg.eigh(torch.cov(t.T))[1][:, :k].T
            + t.mean(0)
        ),
        "divided by their standard deviations": lambda x, t, k: pca(x, t, k, scale=t.std(0)),
        "the mean is one number": lambda x, t, k: pca(x, t, k, mean=t.mean()),
        "is a number written where": lambda x, t, k: pca(x, t, 2),
        "reconstructed: expected x": lambda x, t, k: pca(t, t, k),
        "transpose it": lambda x, t, k: pca(x, t, k).T,
        "every call returns something else": lambda x, t, k: (
            (x - t.mean(0))
            @ torch.pca_lowrank(t, q=6)[2][:, :k]
            @ torch.pca_lowrank(t, q=6)[2][:, :k].T
            + t.mean(0)
        ),
    },
    "segment": {
        "num_points − 1 steps": lambda a, b, n: torch.stack(
            [a + i / n * (b - a) for i in range(n)]
        ),
        "torch.stack": lambda a, b, n: [a + i / (n - 1) * (b - a) for i in range(n)],
        "not their sum": lambda a, b, n: torch.stack([a + i / (n - 1) * (a + b) for i in range(n)]),
        "the start is missing": lambda a, b, n: torch.stack(
            [i / (n - 1) * (b - a) for i in range(n)]
        ),
        "every call returns something else": lambda a, b, n: torch.lerp(
            a, b, torch.rand(n, 1, dtype=a.dtype).sort(0).values
        ),
        "leave out item(), float(), len() and NumPy": lambda a, b, n: np.linspace(
            a.numpy(), b.numpy(), n
        ),
    },
    "fitted_gaussian": {
        "the median": lambda c: (c.median(0).values, torch.cov(c.T)),
        "Cholesky": lambda c: (c.mean(0), torch.linalg.cholesky(torch.cov(c.T))),
        "precision matrix": lambda c: (c.mean(0), torch.cov(c.T).inverse()),
        "the mean is one number": lambda c: (c.mean(), torch.cov(c.T)),
        "is a size written as a number": lambda c: (
            c.mean(0),
            torch.cov(c.T) * (len(c) - 1) / (len(c) - 2),
        ),
        "a dimension of size 1": lambda c: (c.mean(0, keepdim=True), torch.cov(c.T)),
        "2 results are expected": lambda c: torch.distributions.MultivariateNormal(
            c.mean(0), torch.cov(c.T)
        ),
        "changes its argument codes": lambda c: (
            c.mean(0),
            c.sub_(c.mean(0)).T @ c / (len(c) - 1),
        ),
    },
    "log_likelihood": {
        "not exp(−logsigma)": lambda x, mu, s: Normal(mu, torch.exp(-s)).log_prob(x).sum(-1),
        "this is the variance": lambda x, mu, s: Normal(mu, torch.exp(s) ** 2).log_prob(x).sum(-1),
        "exp() of the right answer": lambda x, mu, s: Normal(mu, s.exp()).log_prob(x).sum(-1).exp(),
        "divided by σ² = exp": lambda x, mu, s: (
            -((x - mu) ** 2) / (2 * s.exp()) - s - 0.5 * math.log(2 * math.pi)
        ).sum(-1),
        "−log σ has the wrong sign": lambda x, mu, s: (
            -(((x - mu) / s.exp()) ** 2) / 2 + s - 0.5 * math.log(2 * math.pi)
        ).sum(-1),
        "its factor ½ is missing": lambda x, mu, s: (
            -(((x - mu) / s.exp()) ** 2) / 2 - s - math.log(2 * math.pi)
        ).sum(-1),
        "count dimensions from the end": lambda x, mu, s: Normal(mu, s.exp()).log_prob(x).sum(1),
        "gradient with respect to logsigma": lambda x, mu, s: (
            Normal(mu, s.detach().exp()).log_prob(x).sum(-1)
        ),
    },
    "KL_divergence": {
        "every call returns something else": lambda mu, s: (
            Normal(mu, s.exp()).log_prob(mu + s.exp() * torch.randn_like(mu))
        ).sum(-1),
        "KL for log σ²": lambda mu, s: -0.5 * torch.sum(1 + s - mu**2 - s.exp(), -1),
        "it is −2 logsigma": lambda mu, s: 0.5 * (s.exp() ** 2 + mu**2 - 1 - s).sum(-1),
        "−1 is there once": lambda mu, s: 0.5 * ((s.exp() ** 2 + mu**2 - 2 * s).sum(-1) - 1),
        "μ² has the wrong sign": lambda mu, s: 0.5 * (s.exp() ** 2 - mu**2 - 1 - 2 * s).sum(-1),
        "mu and logsigma are swapped": lambda s, mu: (
            0.5 * (s.exp() ** 2 + mu**2 - 1 - 2 * s).sum(-1)
        ),
        "too large by 3": lambda mu, s: 0.5 * (s.exp() ** 2 + mu**2 - 1 - 2 * s).sum(-1) + 3,
        "gradients fail, by a way through NumPy": in_a_loop(
            lambda mu, s: torch.tensor(
                np.sum(np.exp(2 * s.numpy()) + mu.numpy() ** 2 - 1 - 2 * s.numpy()) / 2
            )
        ),
    },
    "negative_elbo": {
        "summed over the batch, the log-likelihood averaged": lambda p, kl: kl.sum() - p.mean(),
        "goes like N: is a size written": lambda p, kl: (kl - p).sum() / 32,
        "the median": lambda p, kl: torch.median(kl - p),
        "absolute value": lambda p, kl: torch.abs(p - kl).mean(),
        "a dimension of size 1": lambda p, kl: (kl - p).mean(0, keepdim=True),
        "no gradient with respect to kl": lambda p, kl: kl.detach().mean() - p.mean(),
        "one tensor is expected": lambda p, kl: ((kl - p).mean(), kl.mean()),
    },
    "corrected": {
        "divided by ‖u‖²": lambda u, w: (
            u
            + (F.softplus((u * w).sum(-1, True)) - 1 - (u * w).sum(-1, True))
            * w
            / (u * u).sum(-1, True)
        ),
        "correction has the wrong sign": lambda u, w: (
            u
            - (F.softplus((u * w).sum(-1, True)) - 1 - (u * w).sum(-1, True))
            * w
            / (w * w).sum(-1, True)
        ),
        "summed over the batch too": lambda u, w: (
            u + (F.softplus((u * w).sum()) - 1 - (u * w).sum()) * w / (w * w).sum()
        ),
        "keepdim=True needed?": lambda u, w: (
            u + (F.softplus((u * w).sum(-1)) - 1 - (u * w).sum(-1)) * w / (w * w).sum(-1)
        ),
        "‖w‖² is summed over the batch": lambda u, w: (
            u + (F.softplus((u * w).sum(-1, True)) - 1 - (u * w).sum(-1, True)) * w / w.norm() ** 2
        ),
        "changes its argument u": lambda u, w: u.add_(w),
        "only where wᵀu < −1": lambda u, w: torch.where(
            (u * w).sum(-1, True) < -1, checks.corrected.right(u, w), u
        ),
    },
    "planar": {
        "1 + ûᵀψ, with a plus": lambda *a: planar_layer(*a, plus=-1.0),
        "logarithm is to base 10": lambda *a: (
            planar_layer(*a)[0],
            planar_layer(*a)[1] / math.log(10),
        ),
        "ψ has tanh in place": lambda z, b, u, w: planar_layer(
            z, b, u, w, slope=torch.tanh((z * w).sum(-1, True) + b)
        ),
        "bias b is missing, in f and": lambda z, b, u, w: planar_layer(
            z, b, u, w, inner=(z * w).sum(-1, True)
        ),
        "w are swapped, in f and": lambda z, b, w, u: planar_layer(z, b, u, w),
        "changes its argument z": lambda z, b, u, w: (z.add_(u), z[..., 0]),
        "gradient with respect to": lambda *a: (
            planar_layer(*a)[0],
            planar_layer(*a)[1].detach(),
        ),
    },
    "bound": {
        "taken for N(0, I)": lambda z0, mu, *a: flow(z0, mu, *a, q=Normal(0.0 * mu, 1.0)),
        "not log σ²": lambda z0, mu, s, *a: flow(z0, mu, s, *a, q=Normal(mu, (s / 2).exp())),
        "that of the last layer alone": lambda *a: flow(*a, count=lambda log_dets: log_dets[-1:]),
        "only the first layer": lambda *a: flow(*a, which=slice(1)),
        "the first layer is left out": lambda *a: flow(*a, which=slice(1, None)),
        "reverse order": lambda *a: flow(*a, which=slice(None, None, -1)),
        "changes its argument layers": popped,
        "right up to a constant": lambda *a: flow(*a) + 7.0,
    },
    "reverse_kl": {
        "this is the other divergence": lambda p, q, a: kl(normalized(p, a), q, a),
        "the mean of both": lambda p, q, a: (
            (kl(normalized(p, a), q, a) + kl(q, normalized(p, a), a)) / 2
        ),
        "without the cell area": lambda p, q, a: kl(q, p.log_softmax(0), a),
        "cross-entropy": lambda p, q, a: -(q.exp() * normalized(p, a)).sum() * a,
        "the cell area is there twice": lambda p, q, a: kl(q, normalized(p, a), a * a),
        "0 whatever the arguments are": lambda p, q, a: 0.0,
        "mean over the cells": lambda p, q, a: (q.exp() * (q - normalized(p, a))).mean(),
    },
    "forward_kl": {
        "this is the other divergence": lambda p, q, a: kl(q, normalized(p, a), a),
        "is not normalized": lambda p, q, a: kl(p, q, a),
        "largest value": lambda p, q, a: kl(p - p.max(), q, a),
        "leave out abs()": lambda p, q, a: (
            (normalized(p, a).exp() * (normalized(p, a) - q).abs()).sum() * a
        ),
        "in bits": lambda p, q, a: kl(normalized(p, a), q, a) / math.log(2),
        "entropy of the density": lambda p, q, a: (
            -(normalized(p, a).exp() * normalized(p, a)).sum() * a
        ),
    },
    "mass_level": {
        "one cell too low": lambda h, s: torch.sort(h, descending=True)[0][
            1 + int((torch.sort(h, descending=True)[0].cumsum(0) < s * h.sum()).sum())
        ],
        "1 − share of the mass": lambda h, s: torch.sort(h)[0][
            int((torch.sort(h)[0].cumsum(0) < s * h.sum()).sum())
        ],
        "are not sorted": lambda h, s: h[int((h.cumsum(0) < s * h.sum()).sum())],
        "quantile 1 − share": lambda h, s: np.quantile(h.numpy(), 1 - s),
        "each cell whether": lambda h, s: h >= level(h, s),
        "the log of the right answer": lambda h, s: level(h, s).log(),
        "number of the cell": lambda h, s: (
            torch.sort(h, descending=True)[0].cumsum(0) < s * h.sum()
        ).sum(),
    },
    "student_t": {
        "freedom are 3": lambda loc, s: T4(3.0, loc, s.exp()).to_event(1),
        ".to_event(2)": lambda loc, s: T4(4.0, loc, s.exp()).to_event(2),
        "from softplus": lambda loc, s: T4(4.0, loc, F.softplus(s)).to_event(1),
        "a variance": lambda loc, s: T4(4.0, loc, s.exp() ** 2).to_event(1),
        "not a draw of it": lambda loc, s: pyro.sample("z", T4(4.0, loc, s.exp()).to_event(1)),
        "or its class": lambda loc, s: T4,
        "multivariate": lambda loc, s: dist.MultivariateStudentT(
            torch.tensor(4.0).to(loc), loc, torch.diag_embed(s.exp())
        ),
        "gradient with respect to loc": lambda loc, s: T4(4.0, loc.detach(), s.exp()).to_event(1),
    },
    "log_mean_exp": {
        "to base 10": lambda w: torch.logsumexp(w, 0) - math.log10(len(w)),
        "number of data": lambda w: torch.logsumexp(w, 0) - math.log(w.shape[-1]),
        "another one in each case": lambda w: torch.logsumexp(w, 0) - math.log(50),
        "not added again": lambda w: (w - w.max(0).values).exp().mean(0).log(),
        "far smaller: use logsumexp": lambda w: (w.exp().mean(0) + 1e-12).log(),
        "K − 1": lambda w: torch.logsumexp(w, 0) - math.log(len(w) - 1),
        "changes its argument log_w": lambda w: w.exp_().mean(0).log(),
        "over all data too": lambda w: checks.log_mean_exp.right(w).mean(),
    },
    "effective_sample_size": {
        "is zero for log-weights": lambda w: w.exp().sum(0) ** 2 / (w.exp() ** 2).sum(0),
        "log-weights for weights": lambda w: w.sum(0) ** 2 / (w**2).sum(0),
        "mean of the squared": lambda w: 1 / (w.softmax(0) ** 2).mean(0),
        "over the data too": lambda w: 1 / (w.softmax(0) ** 2).sum(),
        "square root": lambda w: 1 / w.softmax(0).norm(dim=0),
        "draws and data together": lambda w: 1 / (w - w.logsumexp((0, 1))).exp().square().sum(0),
        "whole numbers": lambda w: (1 / (w.softmax(0) ** 2).sum(0)).round(),
        "torch.tensor of numbers": lambda w: [1 / float((c.softmax(0) ** 2).sum()) for c in w.T],
    },
    "mc_se": {
        "error of the ELBO": lambda w: w.std(0) / len(w) ** 0.5,
        "1/√K, whatever": lambda w: torch.full_like(w[0], 1 / len(w) ** 0.5),
        "the root is taken of each": lambda w: w.softmax(0).norm(dim=0) - 1 / len(w) ** 0.5,
        "negative is nan": lambda w: (1 / len(w) - (w.softmax(0) ** 2).sum(0)).sqrt(),
        "divides by K − 1": lambda w: (
            (w - w.max(0).values).exp().std(0) / (w - w.max(0).values).exp().mean(0) / len(w) ** 0.5
        ),
        "take its square root": lambda w: (w.softmax(0) ** 2).sum(0) - 1 / len(w),
        "the mean of all values": lambda w: ((w.softmax(0) ** 2).sum(0) - 1 / len(w)).sqrt().mean(),
    },
    "data_se": {
        "by N − 1": lambda p: p.numpy().std() / np.sqrt(len(p)),
        "√N: is a size written": lambda p: statistics.stdev(p.tolist()) / 20**0.5,
        "N − 1 is there twice": lambda p: p.std() / (len(p) - 1) ** 0.5,
        "2 times the right one": lambda p: 2 * p.std() / len(p) ** 0.5,
        "spread of the data is missing": lambda p: 1 / len(p) ** 0.5,
        "variance over √N": lambda p: p.var() / len(p) ** 0.5,
        "a dimension of size 1": lambda p: p.std(0, keepdim=True) / len(p) ** 0.5,
    },
    "tempered": {
        "log f₀ is missing": lambda beta, f0, f1: beta * (f1 - f0),
        "1 + β": lambda beta, f0, f1: (1 + beta) * f0 + beta * f1,
        "a log of a power is a product": lambda beta, f0, f1: f0 ** (1 - beta) * f1**beta,
        "sum of both densities": lambda beta, f0, f1: torch.log(f0.exp() + f1.exp()),
        "are swapped: the path": lambda beta, f1, f0: (1 - beta) * f0 + beta * f1,
        "whatever β is": lambda beta, f0, f1: 0.5 * f0 + 0.5 * f1,
        "changes its argument log_f0": lambda beta, f0, f1: f0.mul_(1 - beta) + beta * f1,
        "subtracted": lambda beta, f0, f1: (1 - beta) * f0 - beta * f1,
    },
    "chain_log_weight": {
        "taken for equal": lambda b, f0, f1: (f1 - f0)[:-1].sum(0) / (len(b) - 1),
        "last increment": lambda b, f0, f1: (steps(b) * (f1 - f0)[:-1])[:-1].sum(0),
        "running sum": lambda b, f0, f1: (steps(b) * (f1 - f0)[:-1]).cumsum(0),
        "sums over the chains: expected": lambda b, f0, f1: (steps(b) * (f1 - f0)[:-1]).sum(-1),
        "is taken at z_t": lambda b, f0, f1: (
            ((1 - b[1:, None]) * f0[1:] + b[1:, None] * f1[1:])
            - ((1 - b[:-1, None]) * f0[:-1] + b[:-1, None] * f1[:-1])
        ).sum(0),
        "averages the weights": lambda b, f0, f1: (
            (steps(b) * (f1 - f0)[:-1]).sum(0).exp().mean().log()
        ),
        "keepdim=True needed?": lambda b, f0, f1: (b.diff() * (f1 - f0)[:-1]).sum(0),
    },
    "upper_bound": {
        "for log-weights of 900": lambda w: -torch.log(torch.exp(-w).mean(0)),
        "base 2": lambda w: math.log2(len(w)) - torch.logsumexp(-w, 0),
        "not the weights: 1/w": lambda w: math.log(len(w)) - torch.logsumexp(1 / w, 0),
        "not added again": lambda w: -(-(w - w.max(0).values)).exp().mean(0).log(),
        "the largest log-weight": lambda w: w.max(0).values,
        "a dimension of size 1": lambda w: math.log(len(w)) - torch.logsumexp(-w, 0, True),
        "far smaller: use logsumexp": lambda w: -torch.log(torch.exp(-w).mean(0) + 1e-30),
    },
    "regression": {
        "prior of the intercept": regression(scale=1.0),
        "exp(sigma)": regression(noise=torch.exp),
        "multiplied by x too": regression(line=lambda a, b, x: (a + b) * x),
        "a prior is another one": regression(sigma=dist.HalfNormal(1.0)),
        "HalfCauchy(25)": regression(sigma=dist.HalfCauchy(25.0)),
        "subsample": regression(plate={"size": 9, "subsample_size": 6}),
        "Shape mismatch": regression(plate={"size": 42}, rows=slice(None)),
        "x and y are swapped": lambda x, y: regression()(y, x),
        "expected the function": "regression",
    },
    "log_bayes_factor": {
        "squares are averaged": lambda p, s, q, t: (p - q, math.sqrt((s**2 + t**2) / 2)),
        "come as log p, its error": lambda p, q, s, t: (p - q, torch.hypot(s, t)),
        "the sign is lost": lambda p, s, q, t: (abs(p - q), torch.hypot(s, t)),
        "their order is not": lambda p, s, q, t: (torch.hypot(s, t), p - q),
        "larger error": lambda p, s, q, t: (p - q, max(s, t)),
        "2 results are expected": lambda p, s, q, t: {"log_bf": p - q},
        "with the error of the log": lambda p, s, q, t: (2 * (p - q), torch.hypot(s, t)),
    },
    "model_probabilities": {
        "0/0 is no number": lambda p, prior: p.exp() * prior / (p.exp() * prior).sum(),
        "not normalized away": lambda p, prior: (p - p.max()).exp() * prior,
        "base 2": lambda p, prior: torch.softmax(p + torch.log2(prior), 0),
        "one for the best model": lambda p, prior: (p + prior.log() == (p + prior.log()).max()).to(
            p
        ),
        "sigmoid": lambda p, prior: torch.sigmoid(p + prior.log() - p.mean()),
        "the first values alone": lambda p, prior: torch.softmax(p + prior.log(), 0)[0],
        "changes its argument log_p": lambda p, prior: p.add_(prior.log()).softmax(0),
        "small constants": lambda p, prior: torch.softmax(p + torch.log(prior + 1e-8), 0),
    },
    "log_bf_of_a_mean": {
        "to base 10": lambda *a: bayes_factor(*a) / math.log(10),
        "variances are n": lambda m, n, tau: bayes_factor(m, 1 / n, tau),
        "1/√n": lambda m, n, tau: bayes_factor(m, n**0.5, tau),
        "sign is flipped": lambda *a: -bayes_factor(*a),
        "multiplied by n": lambda m, n, tau: n * bayes_factor(m, n, tau),
        "expected ": lambda m, n, tau: bayes_factor(m, 10, tau),
        "lost its factor ½": lambda m, n, tau: (
            n * m**2 / 2 * n * tau**2 / (1 + n * tau**2) - torch.log(1 + n * tau**2)
        ),
    },
    "rank": {
        "above the truth": lambda d, t: len(d) - counted(d, t),
        "the number of a draw": lambda d, t: torch.argsort(torch.cat([d, t[None]]), 0)[-1],
        "mean of the draws": lambda d, t: (d.mean(0) < t).int(),
        "first truth": lambda d, t: (d < t[0]).sum(0),
        "a percentage": lambda d, t: 100 * counted(d, t) / len(d),
        "from 1": lambda d, t: counted(d, t) + 1,
        "got ndarray": lambda d, t: (d.numpy() < t.numpy()).sum(0),
    },
    "coverage": {
        "holds 90%": lambda d, t, mass: held(d, t, 0.9).double().mean(),
        "is no share": lambda d, t, mass: held(d, t, mass).any(),
        "every truth is covered": lambda d, t, mass: held(d, t, mass).all(),
        "normal interval of 90%": lambda d, t, mass: np.mean(
            np.abs((t - d.mean(0)).numpy()) <= 1.645 * d.std(0).numpy()
        ),
        "the number of covered data": lambda d, t, mass: held(d, t, mass).sum(),
        "between two draws": lambda d, t, mass: (
            (
                (d.sort(0)[0][int((1 - mass) / 2 * len(d))] <= t)
                & (t <= d.sort(0)[0][-1 - int((1 - mass) / 2 * len(d))])
            )
            .double()
            .mean()
        ),
        "is missed": lambda d, t, mass: 1 - held(d, t, mass).double().mean(),
    },
    "gap_parts": {
        "leave out abs()": lambda p, b, e: ((p - b).abs().mean(), (b - e).abs().mean()),
        "shares of the total gap": lambda p, b, e: (
            (p - b).mean() / (p - e).mean(),
            (b - e).mean() / (p - e).mean(),
        ),
        "three results": lambda p, b, e: (*gaps(p, b, e), (p - e).mean()),
        "the medians": lambda p, b, e: ((p - b).median(), (b - e).median()),
        "goes like N": lambda p, b, e: ((p - b).sum() / 50, (b - e).sum() / 50),
        "come as log p(x)": lambda p, e, b: gaps(p, b, e),
        "2 results are expected": lambda p, b, e: {"approximation": (p - b).mean()},
    },
}


def test_every_check_is_tried():
    assert set(WRONG) == set(NAMES)
    assert min(map(len, WRONG.values())) >= 5


@pytest.mark.parametrize(("name", "said"), [(n, s) for n, w in WRONG.items() for s in w])
def test_what_students_get_wrong_is_named(name, said):
    assert said in message(getattr(checks, name), WRONG[name][said])


def test_a_function_that_knows_one_size_by_heart_is_refused():
    """Each right answer with the sizes of its first case in place of those of the others."""

    def log_mean(w):
        return w.logsumexp(0) - math.log(first.setdefault("K", len(w)))

    first = {}
    assert "size" in message(checks.log_mean_exp, log_mean)


def test_draws_that_fit_one_shape_alone_are_refused():
    """Notebook 2 calls it with [S, B, Z]."""

    def matrix_alone(mu, logsigma):
        rows, columns = mu.shape
        return mu + logsigma.exp() * torch.randn(rows, columns, dtype=mu.dtype)

    assert "fails for mu [20000, " in message(checks.reparameterize, matrix_alone)


def test_noise_that_data_share_is_refused():
    def shared(mu, logsigma):
        return mu + logsigma.exp() * torch.randn(mu[..., :1, :].shape).to(mu)

    assert "data share their noise" in message(checks.reparameterize, shared)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("softplus", lambda mu, s: mu + F.softplus(s) * torch.randn_like(mu)),
        ("not exp(−logsigma)", lambda mu, s: mu + torch.randn_like(mu) / s.exp()),
        ("multiplied by the noise", lambda mu, s: mu * s.exp() * torch.randn_like(mu)),
        ("never negative", lambda mu, s: mu + s.exp() * torch.randn_like(mu).abs()),
        ("cannot be differentiated", lambda mu, s: torch.tensor(
            np.random.default_rng().normal(mu.numpy(), s.exp().numpy()))),
        ("returns nothing", lambda mu, s: None),
        ("still blank. Hint: ε", lambda mu, s: (_ for _ in ()).throw(NotImplementedError("ε"))),
        ("changes its argument logsigma", lambda mu, s: mu + s.exp_() * torch.randn_like(mu)),
        ("expected the function reparameterize, got int", 3),
    ],
)  # fmt: skip
def test_what_students_get_wrong_about_draws_is_named(said, answer):
    assert said in message(checks.reparameterize, answer)
