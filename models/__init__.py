"""p(x, z): what is assumed about the data, as Pyro model functions."""

from evidence.models.autoencoder import Autoencoder
from evidence.models.base import AbstractModel as AbstractModel  # to subclass, not to pick
from evidence.models.base import Latent as Latent
from evidence.models.bayesian_linear_regression import BayesianLinearRegression
from evidence.models.bayesian_logistic_regression import BayesianLogisticRegression
from evidence.models.conditional_vae import ConditionalVAE
from evidence.models.eight_schools import EightSchools
from evidence.models.energy_2d import Energy2D
from evidence.models.gaussian_mixture_2d import GaussianMixture2D
from evidence.models.hierarchical_vae import HierarchicalVAE
from evidence.models.linear_gaussian import LinearGaussian
from evidence.models.vae import VAE

__all__ = [
    "VAE",
    "Autoencoder",
    "BayesianLinearRegression",
    "BayesianLogisticRegression",
    "ConditionalVAE",
    "EightSchools",
    "Energy2D",
    "GaussianMixture2D",
    "HierarchicalVAE",
    "LinearGaussian",
]
