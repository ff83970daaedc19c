"""Conjugate models with a latent for every datum: their evidence, and chains of a known memory.

Evidence and posteriors are SciPy's. Every datum is the same: a model of many is as many
repetitions of one problem.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor


class Problem(NamedTuple):
    """One datum, many times.

    Args:
        model: called as `model(x)`, latent `z`.
        x: the datum.
        exact: its log evidence.
        quantiles: of the posterior, `[..., Z] -> [..., *event]` of uniform numbers.
        dim: Z of `quantiles`; 0 for a scalar.
    """

    model: Callable
    x: Tensor
    exact: float
    quantiles: Callable[[Tensor], Tensor]
    dim: int = 0


def model_of(prior, likelihood):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", likelihood(z), obs=x)

    return model


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def by_scipy(distribution):
    return lambda u: torch.as_tensor(distribution.ppf(u.numpy()))


def normalized(concentration):
    """Dirichlet, of independent gammas."""

    def quantiles(u):
        gammas = torch.as_tensor(stats.gamma(concentration.numpy()).ppf(u.numpy()))
        return gammas / gammas.sum(-1, keepdim=True)

    return quantiles


def linear(u, loc, scale_tril):
    return loc + torch.special.ndtri(u) @ scale_tril.mT


ONE, ZERO = double(1.0)[0], double(0.0)[0]
DESIGN = double([1.0, 0.5, -0.3], [0.2, -1.0, 0.4], [0.7, 0.3, 0.9], [0.0, 0.8, -0.6])
Y = double(1.0, -0.5, 2.0, 0.3)
COVARIANCE = (torch.eye(3).double() + 4 * DESIGN.mT @ DESIGN).inverse()
LOC = 4 * COVARIANCE @ DESIGN.mT @ Y
TRIL = torch.linalg.cholesky(COVARIANCE)
COUNTS, CONCENTRATION = double(3.0, 0.0, 5.0), double(1.5, 1.0, 2.0)

PROBLEMS = {
    "normal": Problem(
        model_of(dist.Normal(ZERO, 1.0), lambda z: dist.Normal(z, 0.5)),
        double(1.5)[0],
        stats.norm(0, math.sqrt(1.25)).logpdf(1.5),
        by_scipy(stats.norm(1.2, math.sqrt(0.2))),
    ),
    "exponential": Problem(
        model_of(dist.Gamma(3 * ONE, 2.0), dist.Exponential),
        double(0.7)[0],
        stats.lomax(3, scale=2).logpdf(0.7),
        by_scipy(stats.gamma(4, scale=1 / 2.7)),
    ),
    "binomial": Problem(
        model_of(dist.Beta(2 * ONE, 2.0), lambda z: dist.Binomial(10, z)),
        double(8.0)[0],
        stats.betabinom(10, 2, 2).logpmf(8),
        by_scipy(stats.beta(10, 4)),
    ),
    "poisson": Problem(
        model_of(dist.Gamma(0.6 * ONE, 0.5), dist.Poisson),
        double(0.0)[0],
        stats.nbinom(0.6, 0.5 / 1.5).logpmf(0),
        by_scipy(stats.gamma(0.6, scale=1 / 1.5)),
    ),
    "multinomial": Problem(
        model_of(dist.Dirichlet(CONCENTRATION), lambda z: dist.Multinomial(8, z)),
        COUNTS,
        stats.dirichlet_multinomial(CONCENTRATION.numpy(), 8).logpmf(COUNTS.numpy()),
        normalized(CONCENTRATION + COUNTS),
        3,
    ),
    "variance": Problem(
        model_of(dist.InverseGamma(3 * ONE, 2.0), lambda z: dist.Normal(ZERO, z.sqrt())),
        double(2.0)[0],
        stats.t(6, scale=math.sqrt(2 / 3)).logpdf(2.0),
        by_scipy(stats.invgamma(3.5, scale=4.0)),
    ),
    "log-normal": Problem(
        model_of(dist.LogNormal(ZERO, 1.0), lambda z: dist.Normal(z.log(), 0.5)),
        double(1.5)[0],
        stats.norm(0, math.sqrt(1.25)).logpdf(1.5),
        by_scipy(stats.lognorm(math.sqrt(0.2), scale=math.exp(1.2))),
    ),
    "regression": Problem(
        model_of(
            dist.Normal(torch.zeros(3).double(), 1.0).to_event(1),
            lambda z: dist.Normal(z @ DESIGN.mT, 0.5).to_event(1),
        ),
        Y,
        stats.multivariate_normal(
            None, (DESIGN @ DESIGN.mT + 0.25 * torch.eye(4).double()).numpy()
        ).logpdf(Y.numpy()),
        lambda u: linear(u, LOC, TRIL),
        3,
    ),
}


def chains_of(problem, num_data, *, memory=0.0, num_chains=4, num_draws=250):
    """Draws `[C, N, B, ...]` of the posterior: an autoregression's normals, by their quantiles.

    Their autocorrelation at lag k is `memory` to the k-th power before the quantiles are taken.
    """
    shape = num_chains, num_draws, num_data, *((problem.dim,) if problem.dim else ())
    noise = torch.randn(shape, dtype=torch.float64)
    for t in range(1, num_draws):
        noise[:, t] = memory * noise[:, t - 1] + math.sqrt(1 - memory**2) * noise[:, t]
    return {"z": problem.quantiles(torch.special.ndtr(noise))}


def hidden_prior(problem):
    """The prior, as a guide that is wider than the posterior."""

    def guide(x):
        with poutine.block(hide_fn=lambda site: site.get("is_observed", False)):
            problem.model(x)

    return guide
