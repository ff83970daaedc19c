"""A mixture of Gaussians in the latent space."""

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn


class MixturePrior(nn.Module):
    """p(z) = Σ π_k N(z; μ_k, diag σ_k²), with everything learnt.

    Reference: J. M. Tomczak, M. Welling, "VAE with a VampPrior", 2018,
    https://arxiv.org/abs/1705.07120, where it is the rival of the VampPrior.

    Args:
        latent_dim: Z, the number of latent variables.
        num_components: K, the number of Gaussians.

    Raises:
        ValueError: fewer than one component.
    """

    def __init__(self, latent_dim: int, *, num_components: int = 10) -> None:
        super().__init__()
        expect_components(num_components)
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, latent_dim))
        self.log_scale = nn.Parameter(torch.zeros(num_components, latent_dim))

    def forward(self) -> TorchDistribution:
        """p(z): batch shape `[]`, event shape `[Z]`."""
        return gaussian_mixture(self.logits, self.loc, self.log_scale)


def gaussian_mixture(logits: Tensor, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
    """Mixture of diagonal Gaussians: weights `[..., K]`, location and log-scale `[..., K, Z]`."""
    components = dist.Normal(loc, log_scale.exp()).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


def expect_components(num_components: int) -> None:
    """Check that there is a component at all.

    Raises:
        ValueError: with the number that was given.
    """
    if num_components < 1:
        raise ValueError(f"expected num_components of at least 1, got {num_components}")
