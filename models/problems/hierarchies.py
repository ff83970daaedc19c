"""Hierarchies whose evidence is known by quadrature over their hyperparameters."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import betaln, gammaln, logsumexp
from torch import Tensor

from evidence.models.problems.problem import Problem, trapezoid

SCHOOLS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SCHOOL_ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    """Effects of coaching in eight schools."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_evidence() -> float:
    """θ and μ are Gaussian given τ."""
    y, errors = SCHOOLS.double().numpy(), SCHOOL_ERRORS.double().numpy()
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


# Hits of 18 players, 45 times at bat each.
HITS = torch.tensor([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7]).float()


def baseball(hits: Tensor) -> None:
    """Batting averages; a tenth of the prior of κ is so near 1 that float32 ends there."""
    m = pyro.sample("m", dist.Uniform(0.0, 1.0))
    kappa = pyro.sample("kappa", dist.Pareto(1.0, 1.5))
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        pyro.sample("hits", dist.Binomial(45, phi), obs=hits)


def baseball_evidence() -> float:
    """Beta-binomial given m and κ, by Gauss-Legendre over m and log κ."""
    hits = HITS.double().numpy()
    nodes, weights = np.polynomial.legendre.leggauss(400)
    m, log_kappa = 0.5 + 0.5 * nodes[:, None, None], 15 + 15 * nodes[:, None]
    kappa = np.exp(log_kappa)
    a, b = m * kappa, (1 - m) * kappa
    choose = gammaln(46) - gammaln(hits + 1) - gammaln(46 - hits)
    log_p = (choose + betaln(a + hits, b + 45 - hits) - betaln(a, b)).sum(-1)
    log_p += math.log(1.5) - 1.5 * log_kappa[:, 0]  # Pareto(1, 1.5), of log κ
    log_weights = np.log(0.5 * weights)[:, None] + np.log(15 * weights)
    return float(logsumexp(log_p + log_weights))


# Failures of ten pumps in so many thousand hours.
FAILURES = torch.tensor([5, 1, 5, 14, 3, 19, 1, 1, 4, 22]).float()
HOURS = torch.tensor([94.3, 15.7, 62.9, 126.0, 5.24, 31.4, 1.05, 1.05, 2.1, 10.5])


def pumps(failures: Tensor, hours: Tensor) -> None:
    """Failure rates of pumps."""
    alpha = pyro.sample("alpha", dist.Exponential(1.0))
    beta = pyro.sample("beta", dist.Gamma(0.1, 1.0))
    with pyro.plate("pumps", len(failures)):
        theta = pyro.sample("theta", dist.Gamma(alpha, beta))
        pyro.sample("failures", dist.Poisson(theta * hours), obs=failures)


def pumps_evidence() -> float:
    """Negative binomial given α and β, over log α and log β."""
    failures, hours = FAILURES.double().numpy(), HOURS.double().numpy()
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


PROBLEMS = (
    Problem(
        "eight-schools",
        eight_schools,
        (SCHOOLS, SCHOOL_ERRORS),
        eight_schools_evidence,
        "Gaussian given τ, quadrature over log τ",
        "D. B. Rubin, 'Estimation in Parallel Randomized Experiments', 1981",
    ),
    Problem(
        "baseball",
        baseball,
        (HITS,),
        baseball_evidence,
        "beta-binomial given two hyperparameters, quadrature over these",
        "B. Efron, C. Morris, 'Data Analysis Using Stein's Estimator', 1975",
        double=True,
    ),
    Problem(
        "pumps",
        pumps,
        (FAILURES, HOURS),
        pumps_evidence,
        "negative binomial given two hyperparameters, quadrature over these",
        "E. I. George, U. E. Makov, A. F. M. Smith, 'Conjugate Likelihood Distributions', 1993",
        double=True,
    ),
)
