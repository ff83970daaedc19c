"""What guides have in common: the data plate, the latent site, and an encoder that amortizes."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from evidence.models.networks import RegisteredModule, encoder_network, expect_vectors


class AbstractPosterior(RegisteredModule, ABC):
    """A Pyro guide q(z | x) with local parameters λ of its own for every datum.

    λ is what amortization is about: an encoder gives λ(x) at once, `Refined` improves it by
    gradient steps, `Unamortized` stores it.

    Args:
        latent_dim: Z, the number of entries of one latent vector.
        data_dim: D, the number of entries of one datum.
        site: the model's latent site.
    """

    def __init__(self, latent_dim: int, data_dim: int, *, site: str = "z") -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.data_dim = data_dim
        self.site = site

    @abstractmethod
    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) for `x` of shape `[B, D]`: batch shape `[B]`, event shape `[Z]`.

        It scores any z in its support, not only what it drew.
        """

    @abstractmethod
    def local_parameters(self, x: Tensor) -> Tensor:
        """λ(x) for `x` of shape `[B, D]`, flat and unconstrained: `[B, P]`."""

    @abstractmethod
    def given(self, local_parameters: Tensor) -> Self:
        """This guide for one batch whose λ, `[B, P]`, is given; all else is shared with it."""

    def forward(self, x: Tensor) -> Tensor:
        """Sample z given the batch `x` of shape `[B, D]`: `[B, Z]`."""
        self.register()
        posterior = self.posterior(x)
        with pyro.plate("data", len(x)):
            return self.sample_sites(posterior)

    def sample_sites(self, posterior: TorchDistribution) -> Tensor:
        """Draw z at the model's latent sites, inside the data plate: `[B, Z]`."""
        return pyro.sample(self.site, posterior)

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The values of the model's latent sites in `z` of shape `[..., Z]`."""
        return {self.site: z}

    @torch.no_grad()
    def posterior_mean(self, x: Tensor, *, num_samples: int = 100) -> Tensor:
        """E_q[z | x] for `x` of shape `[B, D]`: `[B, Z]`.

        Exact where the posterior knows its mean, else the average of `num_samples` draws.
        """
        posterior = self.posterior(x)
        try:
            return posterior.mean
        except NotImplementedError:
            return posterior.sample(torch.Size([num_samples])).mean(0)


class AbstractGuide(AbstractPosterior):
    """An amortized Pyro guide q(z | x), for any model with one latent vector per datum.

    To write a guide of your own, put a file like this one into `guides/` (or anywhere, and name it
    by its dotted path): the base class supplies encoder, plate and site.

        class Laplace(AbstractGuide):
            '''Independent Laplace posteriors.'''

            def __init__(self, latent_dim: int, data_dim: int, **encoder: Any) -> None:
                sizes = (latent_dim, latent_dim)
                super().__init__(latent_dim, data_dim, output_dims=sizes, **encoder)

            def posterior(self, x):
                loc, log_scale = self.encode(x)
                return dist.Laplace(loc, log_scale.exp()).to_event(1)

    Args:
        latent_dim: Z, the number of entries of one latent vector.
        data_dim: D, the number of entries of one datum.
        output_dims: sizes of the tensors that `encode` returns, the location first; all others
            start near zero.
        hidden_dims: sizes of the encoder's hidden layers, from x to z.
        activation: nonlinearity between the layers.
        channels: channels of convolutions before the hidden layers, for square images.
        site: the model's latent site.
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        output_dims: Sequence[int],
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        channels: Sequence[int] = (),
        site: str = "z",
    ) -> None:
        super().__init__(latent_dim, data_dim, site=site)
        self.output_dims = tuple(output_dims)
        self.encoder: nn.Module = encoder_network(
            data_dim, hidden_dims, sum(self.output_dims), activation=activation, channels=channels
        )
        self._start_calmly(self.encoder[-1])

    def local_parameters(self, x: Tensor) -> Tensor:
        """The encoder's outputs side by side, for `x` of shape `[B, D]`: `[B, P]`.

        Raises:
            ValueError: `x` is of another shape.
        """
        if x.ndim != 2:
            raise ValueError(f"expected x of shape (B, {self.data_dim}), got {tuple(x.shape)}")
        expect_vectors("x", x, self.data_dim)
        return self.encoder(x)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The encoder's outputs for `x` of shape `[B, D]`, one `[B, size]` per output dim.

        Raises:
            ValueError: `x` is of another shape.
        """
        return self.local_parameters(x).split(self.output_dims, dim=-1)

    def given(self, local_parameters: Tensor) -> Self:
        """This guide for one batch whose λ, `[B, P]`, is given; all else is shared with it."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, "encoder": _Constant(local_parameters)}
        return twin

    @torch.no_grad()
    def _start_calmly(self, last: nn.Linear) -> None:
        """Start all outputs but the first, the location, small.

        Scales are exponentials of outputs: at full size a few data start with enormous ones, whose
        gradients drown all others.
        """
        last.weight[self.output_dims[0] :] *= 0.1


class _Constant(nn.Module):
    """An encoder that has been told its outputs."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _: Tensor) -> Tensor:
        return self.outputs
