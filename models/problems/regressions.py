"""Regressions whose evidence is known: by conjugacy, or by a quadrature over the noise scale."""

import math
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from sklearn.datasets import load_diabetes
from torch import Tensor

from evidence.models.problems.problem import Problem, trapezoid

_DIABETES = "B. Efron, T. Hastie, I. Johnstone, R. Tibshirani, 'Least Angle Regression', 2004"


@cache
def diabetes() -> tuple[Tensor, Tensor]:
    """442 patients: ten predictors of norm 1, and how the disease went on."""
    features, y = load_diabetes(return_X_y=True)
    return torch.tensor(features).float(), torch.tensor(y).float()


def regression(features: Tensor, y: Tensor) -> None:
    """Of the diabetes data, the noise known."""
    intercept = pyro.sample("intercept", dist.Normal(150.0, 50.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(10), 500.0).to_event(1))
    with pyro.plate("patients", len(features)):
        pyro.sample("y", dist.Normal(intercept + features @ w, 54.0), obs=y)


def noisy_regression(features: Tensor, y: Tensor) -> None:
    """Of the diabetes data, the noise unknown."""
    intercept = pyro.sample("intercept", dist.Normal(150.0, 50.0))
    w = pyro.sample("w", dist.Normal(0.0, 500.0).expand([10]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(50.0))
    with pyro.plate("patients", len(features)):
        pyro.sample("y", dist.Normal(intercept + features @ w, sigma), obs=y)


def regression_evidence(sigma: np.ndarray | float) -> np.ndarray:
    """Given each of the noise scales; the covariance of y has eigenvalues λ + σ²."""
    features, y = (tensor.double().numpy() for tensor in diabetes())
    scaled = np.column_stack([50 * np.ones(len(features)), 500 * features])
    eigenvalues, vectors = np.linalg.eigh(scaled @ scaled.T)
    variances = np.clip(eigenvalues, 0, None) + np.square(sigma)[..., None]
    squares = np.square(vectors.T @ (y - 150)) / variances
    return -0.5 * (squares + np.log(2 * math.pi * variances)).sum(-1)


def noisy_regression_evidence() -> float:
    """By the trapezoidal rule over log σ."""
    log_sigma = np.linspace(2, 8, 3001)
    sigma = np.exp(log_sigma)
    log_prior = math.log(2 / (50 * math.pi)) - np.log1p((sigma / 50) ** 2) + log_sigma
    return trapezoid(regression_evidence(sigma) + log_prior, log_sigma[1] - log_sigma[0])


# Strength of 42 specimens of radiata pine, by density, or by density adjusted for resin. As N.
# Friel and A. N. Pettitt (2008) and those after them had them: the ninth specimen is another one
# than in B. P. Carlin and S. Chib (1995).
# fmt: off
_STRENGTH = [
    3040, 2470, 3610, 3480, 3810, 2330, 1800, 3110, 3670, 2310, 4360, 1880, 3670, 1740, 2250, 2650,
    4970, 2620, 2900, 1670, 2540, 3840, 3800, 4600, 1900, 2530, 2920, 4990, 1670, 3310, 3450, 3600,
    2850, 1590, 3770, 3850, 2480, 3570, 2620, 1890, 3030, 3030,
]
_DENSITY = [
    29.2, 24.7, 32.3, 31.3, 31.5, 24.5, 19.9, 27.3, 32.3, 24.0, 33.8, 21.5, 32.2, 22.5, 27.5, 25.6,
    34.5, 26.2, 26.7, 21.1, 24.1, 30.7, 32.7, 32.6, 22.1, 25.3, 30.8, 38.9, 22.1, 29.2, 30.1, 31.4,
    26.7, 22.1, 30.3, 32.0, 23.2, 30.3, 29.9, 20.8, 33.2, 28.2,
]
_ADJUSTED = [
    25.4, 22.2, 32.2, 31.0, 30.9, 23.9, 19.2, 27.2, 29.0, 23.9, 33.2, 21.0, 29.0, 22.0, 23.8, 25.3,
    34.2, 25.7, 26.4, 20.0, 23.9, 30.7, 32.6, 32.5, 20.8, 23.1, 29.8, 38.1, 21.3, 28.5, 29.2, 31.4,
    25.9, 21.4, 29.8, 30.6, 22.6, 30.3, 23.8, 18.4, 29.4, 28.2,
]
# fmt: on
_PINES = (
    "E. J. Williams, 'Regression Analysis', 1959; priors of N. Friel, A. N. Pettitt, 'Marginal "
    "likelihood estimation via power posteriors', 2008"
)


def pines(by: str = "density") -> tuple[Tensor, Tensor]:
    """Centred density, by itself or "adjusted" for resin, and strength, of 42 specimens."""
    x = torch.tensor(_DENSITY if by == "density" else _ADJUSTED)
    return x - x.mean(), torch.tensor(_STRENGTH).float()


def pine_regression(x: Tensor, y: Tensor) -> None:
    """Of the radiata pine data: a precision of 1e-5 stands beside an intercept of 3,000."""
    precision = pyro.sample("precision", dist.Gamma(3.0, 180_000.0))
    intercept = pyro.sample("intercept", dist.Normal(3000.0, (0.06 * precision) ** -0.5))
    slope = pyro.sample("slope", dist.Normal(185.0, (6 * precision) ** -0.5))
    with pyro.plate("specimens", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, precision**-0.5), obs=y)


def pine_regression_evidence(by: str = "density") -> float:
    """Student's t: the normal-gamma prior is conjugate."""
    x = np.array(_DENSITY if by == "density" else _ADJUSTED)
    x = x - x.mean()
    shape = np.eye(len(x)) + 1 / 0.06 + np.outer(x, x) / 6
    t = stats.multivariate_t(3000 + 185 * x, 180_000 / 3 * shape, df=6)
    return float(t.logpdf(np.array(_STRENGTH)))


PROBLEMS = (
    Problem(
        "regression",
        regression,
        diabetes(),
        lambda: regression_evidence(54.0),
        "conjugate",
        _DIABETES,
    ),
    Problem(
        "noisy-regression",
        noisy_regression,
        diabetes(),
        noisy_regression_evidence,
        "conjugate given the noise scale, quadrature over its logarithm",
        _DIABETES,
    ),
    Problem(
        "pines",
        pine_regression,
        pines(),
        pine_regression_evidence,
        "conjugate",
        _PINES,
    ),
    Problem(
        "pines-adjusted",
        pine_regression,
        pines("adjusted"),
        lambda: pine_regression_evidence("adjusted"),
        "conjugate",
        _PINES,
    ),
)
