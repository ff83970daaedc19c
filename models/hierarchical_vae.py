"""A variational autoencoder with several stochastic layers."""

import itertools
from collections.abc import Sequence

import pyro.distributions as dist
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from evidence.models.base import AbstractModel, Latent
from evidence.models.chain import Chain, Factor, Values
from evidence.models.likelihoods import PixelLikelihood
from evidence.models.networks import decoder_network, mirrored, mlp


class HierarchicalVAE(AbstractModel):
    """Layers of latents, z_L → … → z_1 → x: p(z_L) Π p(z_l | z_{l+1}) p(x | z_1).

    p(z_L) = N(0, I), and p(z_l | z_{l+1}) is a diagonal Gaussian whose mean and log σ are a
    network's outputs. The latent sites are "z2", "z1" (with two layers), which is the order in the
    vector of all latents too.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, section 5.

    Args:
        data_dim: D, the number of pixels.
        latent_dims: sizes of z_1, z_2, …, from x upwards; two or more.
        hidden_dims: sizes of the fully connected hidden layers from z_1 to x.
        layer_hidden_dims: sizes of the hidden layers between one latent layer and the next.
        activation: nonlinearity between the layers.
        channels: channels that transposed convolutions before x take; none by default.
        likelihood: of pixels, as in `VAE`: "bernoulli", "gaussian(scale_floor=0.1)", …

    Raises:
        ValueError: fewer than two layers, an unknown name or option, or a bad size.
    """

    def __init__(
        self,
        data_dim: int,
        *,
        latent_dims: Sequence[int] = (100, 50),
        hidden_dims: Sequence[int] = (200, 200),
        layer_hidden_dims: Sequence[int] = (100, 100),
        activation: str = "tanh",
        channels: Sequence[int] = (),
        likelihood: str = "bernoulli",
    ) -> None:
        if len(latent_dims) < 2 or min(latent_dims) < 1:
            raise ValueError(
                "expected latent_dims of two or more layers with at least 1 latent each, got "
                f"{list(latent_dims)}: for one layer use VAE"
            )
        super().__init__(data_dim, sum(latent_dims))
        self.encoder_options = mirrored(hidden_dims, activation, channels)
        self.dims = {f"z{k}": dim for k, dim in reversed(list(enumerate(latent_dims, start=1)))}
        self.pixel_likelihood = PixelLikelihood(likelihood)
        self.pixels = self.pixel_likelihood.pixels
        self.layers = nn.ModuleDict(
            {
                name: mlp(above_dim, layer_hidden_dims, 2 * dim, activation=activation)
                for (_, above_dim), (name, dim) in itertools.pairwise(self.dims.items())
            }
        )
        self.decoder = decoder_network(
            latent_dims[0],
            hidden_dims,
            data_dim,
            activation=activation,
            channels=channels,
            outputs_per_pixel=self.pixel_likelihood.outputs_per_pixel,
        )

    @property
    def latents(self) -> dict[str, Latent]:
        """The layers from the top, all real."""
        return {name: Latent(dim, constraints.real_vector) for name, dim in self.dims.items()}

    def prior(self) -> Chain:
        """p(z_L) … p(z_1 | z_2): event shape `[Z]`."""
        top, *_ = self.dims
        factors: dict[str, Factor] = {
            top: lambda _: (
                dist.Normal(self._zero, self._zero + 1).expand([self.dims[top]]).to_event(1)
            )
        }
        for above, name in itertools.pairwise(self.dims):
            factors[name] = _Below(self.layers[name], above)
        return Chain(self.dims, factors)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z_1) for all latents `z` `[..., Z]`: batch shape `[...]`, event shape `[D]`."""
        return self.pixel_likelihood(self.decoder(z[..., -self.dims["z1"] :]))


class _Below:
    """p(z_l | z_{l+1}).

    Args:
        network: `[..., Z_{l+1}] -> [..., 2 Z_l]`.
        above: name of the layer above.
    """

    def __init__(self, network: nn.Module, above: str) -> None:
        self.network, self.above = network, above

    def __call__(self, values: Values) -> TorchDistribution:
        loc, log_scale = self.network(values[self.above]).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
