"""The decoder of a variational autoencoder."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor

from models.base import AbstractModel
from models.likelihoods import Bernoulli, Normal
from models.networks import expect_choice, mlp

LIKELIHOODS = ("bernoulli", "gaussian")


class VAE(AbstractModel):
    """Deep latent Gaussian model: z ~ N(0, I), x | z ~ Bernoulli or Gaussian with an MLP's outputs.

    Bernoulli decoders score binary pixels by logits. Gaussian decoders give each pixel a mean μ and
    a log σ; as σ → 0 on constant pixels makes the density unbounded, σ stays above `scale_floor`:
    log σ = log floor + softplus(raw − log floor).

    Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", 2014,
    https://arxiv.org/abs/1312.6114, appendix C.

    Args:
        data_dim: D, the number of pixels.
        latent_dim: Z, the number of latent variables.
        hidden_dims: sizes of the decoder's hidden layers, from z to x.
        activation: nonlinearity between the layers.
        likelihood: "bernoulli" for binary pixels, "gaussian" for real-valued ones.
        scale_floor: smallest σ of a Gaussian pixel, in units of x.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 6,
        *,
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        likelihood: str = "bernoulli",
        scale_floor: float = 0.01,
    ) -> None:
        super().__init__(data_dim, latent_dim)
        self.hidden_dims, self.activation = tuple(hidden_dims), activation
        self.likelihood_name = expect_choice("likelihood", likelihood, LIKELIHOODS)
        if scale_floor <= 0:
            raise ValueError(f"expected scale_floor > 0, got {scale_floor}")
        self.log_scale_floor = math.log(scale_floor)
        num_outputs = data_dim if likelihood == "bernoulli" else 2 * data_dim
        self.decoder = mlp(latent_dim, hidden_dims, num_outputs, activation=activation)

    def prior(self) -> TorchDistribution:
        """p(z) = N(0, I): event shape `[Z]`."""
        return self.standard_normal()

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[D]`."""
        outputs = self.decoder(z)
        if self.likelihood_name == "bernoulli":
            return Bernoulli(logits=outputs).to_event(1)
        loc, raw = outputs.chunk(2, dim=-1)  # each [..., D]
        log_scale = self.log_scale_floor + F.softplus(raw - self.log_scale_floor)
        return Normal(loc, log_scale).to_event(1)
