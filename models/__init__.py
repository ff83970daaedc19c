"""p(x, z): what is assumed about the data, as Pyro model functions."""

from models.autoencoder import Autoencoder
from models.base import AbstractModel as AbstractModel  # to subclass, not to pick
from models.base import Latent as Latent
from models.bayesian_linear_regression import BayesianLinearRegression
from models.bayesian_logistic_regression import BayesianLogisticRegression
from models.conditional_vae import ConditionalVAE
from models.eight_schools import EightSchools
from models.energy_2d import Energy2D
from models.gaussian_mixture_2d import GaussianMixture2D
from models.hierarchical_vae import HierarchicalVAE
from models.linear_gaussian import LinearGaussian
from models.vae import VAE

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
