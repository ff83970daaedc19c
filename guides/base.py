"""What every amortized guide has in common: an encoder, the data plate and one latent site."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from models.networks import RegisteredModule, expect_vectors, mlp


class AbstractGuide(RegisteredModule, ABC):
    """An amortized Pyro guide q(z | x), for any model with one latent vector per datum.

    To write a guide of your own, put a file like this one into `guides/` (or anywhere, and name it
    by its dotted path): the base class supplies encoder, plate and site.

        class Laplace(AbstractGuide):
            '''Independent Laplace posteriors.'''

            def __init__(self, latent_dim: int, data_dim: int, *, hidden_dims=(600,)) -> None:
                sizes = (latent_dim, latent_dim)
                super().__init__(latent_dim, data_dim, output_dims=sizes, hidden_dims=hidden_dims)

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
        site: str = "z",
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.data_dim = data_dim
        self.output_dims = tuple(output_dims)
        self.site = site
        self.encoder = mlp(data_dim, hidden_dims, sum(self.output_dims), activation=activation)
        self._start_calmly()

    @abstractmethod
    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) for `x` of shape `[B, D]`: batch shape `[B]`, event shape `[Z]`."""

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The encoder's outputs for `x` of shape `[B, D]`, one `[B, size]` per output dim.

        Raises:
            ValueError: `x` is of another shape.
        """
        if x.ndim != 2:
            raise ValueError(f"expected x of shape (B, {self.data_dim}), got {tuple(x.shape)}")
        expect_vectors("x", x, self.data_dim)
        return self.encoder(x).split(self.output_dims, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """Sample z given the batch `x` of shape `[B, D]`: `[B, Z]`."""
        self.register()
        with pyro.plate("data", len(x)):
            return pyro.sample(self.site, self.posterior(x))

    @torch.no_grad()
    def _start_calmly(self) -> None:
        """Start all outputs but the first, the location, small.

        Scales are exponentials of outputs: at full size a few data start with enormous ones, whose
        gradients drown all others.
        """
        self.encoder[-1].weight[self.output_dims[0] :] *= 0.1

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
