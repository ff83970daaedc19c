"""p(x, z): what is assumed about the data, as Pyro model functions."""

from models.autoencoder import Autoencoder
from models.base import AbstractModel as AbstractModel  # to subclass, not to pick
from models.linear_gaussian import LinearGaussian
from models.vae import VAE

__all__ = ["VAE", "Autoencoder", "LinearGaussian"]
