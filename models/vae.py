"""The decoder of a variational autoencoder."""

from collections.abc import Sequence

from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.models.base import AbstractModel
from evidence.models.likelihoods import PixelLikelihood
from evidence.models.networks import decoder_network, mirrored
from evidence.models.priors import make_prior


class VAE(AbstractModel):
    """Deep latent Gaussian model: z from a prior, pixels x | z with a network's outputs.

    The likelihoods, and the pixels that each scores:

        bernoulli                             binary pixels, by logits
        continuous-bernoulli                  pixels in [0, 1] (Loaiza-Ganem and Cunningham 2019)
        discretized-logistic(num_levels=L)    grey levels k/(L − 1) (Kingma et al. 2016)
        gaussian(scale_floor=0.01)            real pixels, each with a mean μ and a log σ

    As σ → 0 on constant pixels makes a Gaussian density unbounded, σ stays above `scale_floor`, in
    units of x: log σ = log floor + softplus(raw − log floor).

    The priors, of which all but the first are learnt with the decoder:

        standard-normal                       N(0, I)
        mixture(num_components=10)            of Gaussians
        vampprior(num_components=10)          with an encoder of its own (Tomczak and Welling 2018)
        flow(num_flows=4)                     a normalizing flow (Dinh et al. 2017)

    Either is written as here, and its options may be left out: `prior="mixture"`,
    `prior="mixture(num_components=20)"`.

    Reference: D. P. Kingma, M. Welling, "Auto-Encoding Variational Bayes", 2014,
    https://arxiv.org/abs/1312.6114, appendix C.

    Args:
        data_dim: D, the number of pixels.
        latent_dim: Z, the number of latent variables.
        hidden_dims: sizes of the decoder's fully connected hidden layers, from z to x.
        activation: nonlinearity between the layers.
        channels: channels that transposed convolutions after them take, from z to x, each
            doubling the side of a square image; none by default.
        likelihood: of pixels, one of those above.
        prior: of z, one of those above.

    Raises:
        ValueError: an unknown name or option, or a bad size, with what was expected.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 6,
        *,
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        channels: Sequence[int] = (),
        likelihood: str = "bernoulli",
        prior: str = "standard-normal",
    ) -> None:
        super().__init__(data_dim, latent_dim)
        self.encoder_options = mirrored(hidden_dims, activation, channels)
        self.pixel_likelihood = PixelLikelihood(likelihood)
        self.pixels = self.pixel_likelihood.pixels
        self.decoder = decoder_network(
            latent_dim,
            hidden_dims,
            data_dim,
            activation=activation,
            channels=channels,
            outputs_per_pixel=self.pixel_likelihood.outputs_per_pixel,
        )
        self.prior_network = make_prior(
            prior,
            latent_dim,
            data_dim,
            hidden_dims=hidden_dims[::-1],
            activation=activation,
        )

    def prior(self) -> TorchDistribution:
        """p(z): batch shape `[]`, event shape `[Z]`."""
        return self.standard_normal() if self.prior_network is None else self.prior_network()

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[D]`."""
        return self.pixel_likelihood(self.decoder(z))
