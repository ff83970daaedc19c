"""The plain autoencoder, read as a Bayesian model."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from evidence.models.base import AbstractModel
from evidence.models.likelihoods import Normal
from evidence.models.networks import decoder_network, mirrored


class Autoencoder(AbstractModel):
    """The decoder of a plain autoencoder: x | z ~ N(decoder(z), I), and no prior on the codes.

    With the guide `Delta` the ELBO is log p(x | z) = −½‖x − x̂‖² − (D/2) log 2π: half the squared
    error, up to a constant. The flat "prior" is improper: codes can be fitted, but neither
    simulated nor integrated out, so there is no log p(x).

    Args:
        data_dim: D, the number of pixels.
        latent_dim: Z, the size of a code.
        hidden_dims: sizes of the decoder's hidden layers, from z to x.
        activation: nonlinearity between the layers.
        channels: channels that transposed convolutions after them take, from z to x, each
            doubling the side of a square image; none by default.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 60,
        *,
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        channels: Sequence[int] = (),
    ) -> None:
        super().__init__(data_dim, latent_dim)
        self.encoder_options = mirrored(hidden_dims, activation, channels)
        self.decoder = decoder_network(
            latent_dim, hidden_dims, data_dim, activation=activation, channels=channels
        )

    def prior(self) -> TorchDistribution:
        """The flat, improper density 1 on codes: event shape `[Z]`; it cannot be sampled."""
        return dist.ImproperUniform(constraints.real_vector, (), (self.latent_dim,))

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[D]`."""
        loc = self.decoder(z)
        return Normal(loc, torch.zeros_like(loc)).to_event(1)

    def forward(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Score a batch `x` of shape `[B, D]`.

        Raises:
            ValueError: asked to simulate: there is no prior to draw codes from.
        """
        if x is None:
            raise ValueError(
                "Autoencoder has no prior p(z) to draw from: choose a model with one, such as VAE"
            )
        return super().forward(x, size=size)
