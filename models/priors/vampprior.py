"""A mixture of posteriors at learnt pseudo-inputs."""

from collections.abc import Callable, Sequence

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from evidence.models.networks import encoder_network
from evidence.models.priors.mixture import expect_components, gaussian_mixture

# From pseudo-inputs [K, D] to location and log-scale, each [K, Z].
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


class VampPrior(nn.Module):
    """p(z) = (1/K) Σ N(z; μ(u_k), diag σ²(u_k)), with learnt pseudo-inputs u_k in data space.

    In the paper μ and σ are the guide's encoder. A model of this suite knows no guide, so here the
    pseudo-inputs go through an encoder of the prior's own: the same family of densities, but
    nothing ties its components to posteriors, so it is a mixture in another parametrization. `tie`
    gives the paper's prior, with the encoder of a diagonal Gaussian guide:

        model.prior_network.tie(guide.encode)

    Pseudo-inputs are any reals, not clipped to the range of pixels.

    Reference: J. M. Tomczak, M. Welling, "VAE with a VampPrior", 2018,
    https://arxiv.org/abs/1705.07120, section 2.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of a pseudo-input.
        hidden_dims: sizes of the encoder's hidden layers, from x to z.
        activation: nonlinearity between the layers.
        num_components: K, the number of pseudo-inputs.

    Raises:
        ValueError: fewer than one component, or bad sizes of the encoder.
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        hidden_dims: Sequence[int] = (),
        activation: str = "elu",
        *,
        num_components: int = 10,
    ) -> None:
        super().__init__()
        expect_components(num_components)
        self.pseudo_inputs = nn.Parameter(torch.rand(num_components, data_dim))
        self.encoder: nn.Module | None = encoder_network(
            data_dim, hidden_dims, 2 * latent_dim, activation=activation
        )
        self._tied: Encode | None = None

    def tie(self, encode: Encode) -> None:
        """Use this function in place of the own encoder; its parameters stay where they are.

        It gets the pseudo-inputs `[K, D]` and gives location and log-scale, `[K, Z]` each.
        """
        self.encoder, self._tied = None, encode

    def encode(self) -> tuple[Tensor, Tensor]:
        """Location and log-scale of the components, `[K, Z]` each."""
        if self._tied is not None:
            return self._tied(self.pseudo_inputs)
        assert self.encoder is not None  # until `tie`
        loc, log_scale = self.encoder(self.pseudo_inputs).chunk(2, dim=-1)
        return loc, log_scale

    def forward(self) -> TorchDistribution:
        """p(z): batch shape `[]`, event shape `[Z]`."""
        loc, log_scale = self.encode()
        return gaussian_mixture(loc.new_zeros(len(loc)), loc, log_scale)
