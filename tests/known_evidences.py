"""Ordinary Bayesian models as their users write them, and what each evidence is, found otherwise.

Conjugacy, quadrature, scikit-learn or SciPy give the exact values, in float64, without a line of
the suite or of Pyro.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import betaln, gammaln, logsumexp
from sklearn.datasets import load_diabetes, load_iris
from sklearn.decomposition import PCA
from torch import Tensor


class Known(NamedTuple):
    """A model and its evidence.

    Args:
        model: called as `model(*data)`.
        data: its arguments.
        exact: gives log p(data) in nats, of every datum where each has latents of its own: `[M]`.
    """

    model: Callable
    data: tuple[Tensor, ...]
    exact: Callable[[], np.ndarray]


def trapezoid(log_f: np.ndarray, *steps: float) -> np.ndarray:
    """Log of the integral of exp(log_f) on a regular grid, where it is nothing at the edges."""
    return logsumexp(log_f) + np.log(steps).sum()


def numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


# Regression on the diabetes data of scikit-learn: 442 patients, 10 predictors of norm 1.


@cache
def diabetes() -> tuple[Tensor, Tensor]:
    X, y = load_diabetes(return_X_y=True)
    return torch.tensor(X).float(), torch.tensor(y).float()


def regression(X, y):
    intercept = pyro.sample("intercept", dist.Normal(150.0, 50.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(10), 500.0).to_event(1))
    with pyro.plate("patients", len(X)):
        pyro.sample("y", dist.Normal(intercept + X @ w, 54.0), obs=y)


def noisy_regression(X, y):
    intercept = pyro.sample("intercept", dist.Normal(150.0, 50.0))
    w = pyro.sample("w", dist.Normal(0.0, 500.0).expand([10]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(50.0))
    with pyro.plate("patients", len(X)):
        pyro.sample("y", dist.Normal(intercept + X @ w, sigma), obs=y)


def regression_evidence(sigma) -> np.ndarray:
    """Given each of the noise scales; the covariance of y has eigenvalues λ + σ²."""
    X, y = map(numpy, diabetes())
    scaled = np.column_stack([50 * np.ones(len(X)), 500 * X])
    eigenvalues, vectors = np.linalg.eigh(scaled @ scaled.T)
    variances = np.clip(eigenvalues, 0, None) + np.square(sigma)[..., None]
    squares = np.square(vectors.T @ (y - 150)) / variances
    return -0.5 * (squares + np.log(2 * math.pi * variances)).sum(-1)


def noisy_regression_evidence() -> np.ndarray:
    log_sigma = np.linspace(2, 8, 3001)
    sigma = np.exp(log_sigma)
    log_prior = math.log(2 / (50 * math.pi)) - np.log1p((sigma / 50) ** 2) + log_sigma
    return trapezoid(regression_evidence(sigma) + log_prior, log_sigma[1] - log_sigma[0])


# Eight schools.

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOL_ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(y, sigma):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_evidence() -> np.ndarray:
    """θ and μ are Gaussian given τ."""
    y, errors = numpy(SCHOOLS), numpy(SCHOOL_ERRORS)
    log_tau = np.linspace(-30, 40, 3501)
    log_p = []
    for tau in np.exp(log_tau):
        variances = errors**2 + tau**2
        total, weighted = (1 / variances).sum(), (y / variances).sum()
        log_det = np.log(variances).sum() + math.log1p(25 * total)
        square = (y**2 / variances).sum() - 25 * weighted**2 / (1 + 25 * total)
        log_prior = math.log(2 / (5 * math.pi)) - np.log1p((tau / 5) ** 2) + math.log(tau)
        log_p.append(log_prior - 0.5 * (square + log_det + 8 * math.log(2 * math.pi)))
    return trapezoid(np.array(log_p), log_tau[1] - log_tau[0])


# Batting averages of 18 players, 45 times at bat each: B. Efron, C. Morris, "Data analysis using
# Stein's estimator and its generalizations", 1975.

HITS = torch.tensor([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]).float()


def baseball(hits):
    m = pyro.sample("m", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        pyro.sample("hits", dist.Binomial(45, phi), obs=hits)


def baseball_evidence() -> np.ndarray:
    """Beta-binomial given m and κ, by Gauss-Legendre over m and log κ."""
    hits = numpy(HITS)
    nodes, weights = np.polynomial.legendre.leggauss(400)
    m, log_kappa = 0.5 + 0.5 * nodes[:, None, None], 15 + 15 * nodes[:, None]
    kappa = np.exp(log_kappa)
    a, b = m * kappa, (1 - m) * kappa
    choose = gammaln(46) - gammaln(hits + 1) - gammaln(46 - hits)
    log_p = (choose + betaln(a + hits, b + 45 - hits) - betaln(a, b)).sum(-1)
    log_p += math.log(1.5) - 1.5 * log_kappa[:, 0]  # Pareto(1, 1.5), of log κ
    return logsumexp(log_p + np.log(0.5 * weights)[:, None] + np.log(15 * weights))


# Failures of ten pumps in so many thousand hours: E. I. George, U. E. Makov, A. F. M. Smith,
# "Conjugate likelihood distributions", 1993.

FAILURES = torch.tensor([5, 1, 5, 14, 3, 19, 1, 1, 4, 22]).float()
HOURS = torch.tensor([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])


def pumps(failures, hours):
    alpha = pyro.sample("alpha", dist.Exponential(1.0))
    beta = pyro.sample("beta", dist.Gamma(0.1, 1.0))
    with pyro.plate("pumps", len(failures)):
        theta = pyro.sample("theta", dist.Gamma(alpha, beta))
        pyro.sample("failures", dist.Poisson(theta * hours), obs=failures)


def pumps_evidence() -> np.ndarray:
    """Negative binomial given α and β, over log α and log β."""
    failures, hours = numpy(FAILURES), numpy(HOURS)
    log_alpha, log_beta = np.linspace(-10, 5, 601), np.linspace(-60, 8, 1701)
    alpha, beta = np.exp(log_alpha)[:, None, None], np.exp(log_beta)[:, None]
    log_p = (
        gammaln(alpha + failures)
        - gammaln(alpha)
        - gammaln(failures + 1)
        + alpha * (np.log(beta) - np.log(beta + hours))
        + failures * (np.log(hours) - np.log(beta + hours))
    ).sum(-1)
    log_p += (log_alpha - np.exp(log_alpha))[:, None]
    log_p += stats.gamma(0.1).logpdf(np.exp(log_beta)) + log_beta
    return trapezoid(log_p, log_alpha[1] - log_alpha[0], log_beta[1] - log_beta[0])


# Probabilistic principal components of iris: two latents for each of 150 flowers.


@cache
def iris_components() -> tuple[PCA, Tensor]:
    x = load_iris().data
    return PCA(2).fit(x), torch.tensor(x).float()


def principal_components(x):
    pca, _ = iris_components()
    spread = np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    weight = torch.tensor(pca.components_.T * spread).float()
    loc, sigma = torch.tensor(pca.mean_).float(), math.sqrt(pca.noise_variance_)
    with pyro.plate("flowers", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc + z @ weight.mT, sigma).to_event(1), obs=x)


def principal_components_evidence() -> np.ndarray:
    pca, x = iris_components()
    return pca.score_samples(numpy(x))


# A Gaussian process with a latent value at each of 100 points, in float64.


@cache
def curve() -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(0, 10, 100))
    return torch.tensor(x), torch.tensor(np.sin(x) + 0.3 * random.standard_normal(100))


def gaussian_process(x, y):
    covariance = torch.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-6 * torch.eye(len(x)).double()
    f = pyro.sample("f", dist.MultivariateNormal(x.new_zeros(len(x)), covariance))
    with pyro.plate("points", len(x)):
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def gaussian_process_evidence() -> np.ndarray:
    x, y = map(numpy, curve())
    covariance = np.exp(-0.5 * (x[:, None] - x) ** 2) + (1e-6 + 0.3**2) * np.eye(len(x))
    return stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(y)


# Two Gaussian shells in the plane: F. Feroz, M. P. Hobson, "Multimodal nested sampling", 2008.


def shells():
    z = pyro.sample("z", dist.Uniform(-6.0, 6.0).expand([2]).to_event(1))
    rings = [
        dist.Normal(2.0, 0.1).log_prob((z - torch.tensor([centre, 0.0])).norm(dim=-1))
        for centre in (-3.5, 3.5)
    ]
    pyro.factor("shells", torch.logaddexp(*rings))


def shells_evidence() -> np.ndarray:
    grid = np.linspace(-6, 6, 2401)
    log_p = -math.inf
    for centre in (-3.5, 3.5):
        radius = np.hypot(grid[:, None] - centre, grid)
        log_p = np.logaddexp(log_p, stats.norm(2, 0.1).logpdf(radius))
    return trapezoid(log_p, 0.005, 0.005) - math.log(144)


# A regression with the scales of the radiata pine data: a precision of 1e-5 beside an intercept of
# 3,000. See B. P. Carlin, S. Chib, "Bayesian model choice via Markov chain Monte Carlo", 1995.


@cache
def pines() -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(1)
    x = random.normal(0, 3.5, 42)
    x -= x.mean()
    y = 2990 + 190 * x + 320 * random.standard_normal(42)
    return torch.tensor(x).float(), torch.tensor(y).float()


def pine_regression(x, y):
    precision = pyro.sample("precision", dist.Gamma(3.0, 180_000.0))
    intercept = pyro.sample("intercept", dist.Normal(3000.0, (0.06 * precision) ** -0.5))
    slope = pyro.sample("slope", dist.Normal(185.0, (6 * precision) ** -0.5))
    with pyro.plate("trees", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, precision**-0.5), obs=y)


def pine_regression_evidence() -> np.ndarray:
    """Student's t: the normal-gamma prior is conjugate."""
    x, y = map(numpy, pines())
    shape = np.eye(len(x)) + 1 / 0.06 + np.outer(x, x) / 6
    t = stats.multivariate_t(3000 + 185 * x, 180_000 / 3 * shape, df=6)
    return t.logpdf(y)


KNOWN = {
    "regression": Known(regression, diabetes(), lambda: regression_evidence(54.0)),
    "noisy regression": Known(noisy_regression, diabetes(), noisy_regression_evidence),
    "eight schools": Known(eight_schools, (SCHOOLS, SCHOOL_ERRORS), eight_schools_evidence),
    "baseball": Known(baseball, (HITS,), baseball_evidence),
    "pumps": Known(pumps, (FAILURES, HOURS), pumps_evidence),
    "principal components": Known(
        principal_components, (iris_components()[1],), principal_components_evidence
    ),
    "gaussian process": Known(gaussian_process, curve(), gaussian_process_evidence),
    "shells": Known(shells, (), shells_evidence),
    "pines": Known(pine_regression, pines(), pine_regression_evidence),
}
