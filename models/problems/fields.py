"""Gaussian models with many latents: their evidence is a Gaussian density of the data."""

import math
from functools import cache

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from torch import Tensor

from evidence.models.problems.problem import Problem


@cache
def iris_components() -> tuple[PCA, Tensor]:
    """The two first principal components of 150 flowers."""
    x = load_iris().data
    return PCA(2).fit(x), torch.tensor(x).float()


def principal_components(x: Tensor) -> None:
    """Probabilistic principal components, with two latents for each flower."""
    pca, _ = iris_components()
    spread = np.sqrt(pca.explained_variance_ - pca.noise_variance_)
    weight = torch.tensor(pca.components_.T * spread).float()
    loc, sigma = torch.tensor(pca.mean_).float(), math.sqrt(pca.noise_variance_)
    with pyro.plate("flowers", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc + z @ weight.mT, sigma).to_event(1), obs=x)


def principal_components_evidence() -> np.ndarray:
    """Of each flower `[150]`, by scikit-learn."""
    pca, x = iris_components()
    return pca.score_samples(x.double().numpy())


@cache
def curve() -> tuple[Tensor, Tensor]:
    """A noisy sine at 100 points, in float64."""
    random = np.random.default_rng(0)
    x = np.sort(random.uniform(0, 10, 100))
    return torch.tensor(x), torch.tensor(np.sin(x) + 0.3 * random.standard_normal(100))


def gaussian_process(x: Tensor, y: Tensor) -> None:
    """A Gaussian process with a latent value at each of 100 points."""
    covariance = torch.exp(-0.5 * (x[:, None] - x) ** 2) + 1e-6 * torch.eye(len(x)).double()
    f = pyro.sample("f", dist.MultivariateNormal(x.new_zeros(len(x)), covariance))
    with pyro.plate("points", len(x)):
        pyro.sample("y", dist.Normal(f, 0.3), obs=y)


def gaussian_process_evidence() -> float:
    """The density of y, whose covariance is that of f and of the noise."""
    x, y = (tensor.numpy() for tensor in curve())
    covariance = np.exp(-0.5 * (x[:, None] - x) ** 2) + (1e-6 + 0.3**2) * np.eye(len(x))
    return float(stats.multivariate_normal(np.zeros(len(x)), covariance).logpdf(y))


PROBLEMS = (
    Problem(
        "principal-components",
        principal_components,
        (iris_components()[1],),
        principal_components_evidence,
        "scikit-learn's PCA.score_samples",
        "M. E. Tipping, C. M. Bishop, 'Probabilistic Principal Component Analysis', 1999",
    ),
    Problem(
        "gaussian-process",
        gaussian_process,
        curve(),
        gaussian_process_evidence,
        "Gaussian density of the data",
        "C. E. Rasmussen, C. K. I. Williams, 'Gaussian Processes for Machine Learning', 2006",
        double=True,
    ),
)
