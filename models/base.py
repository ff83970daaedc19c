"""What every model of the suite has in common: latents and observations, datum by datum."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from evidence.models.chain import Chain
from evidence.models.modes import Modes
from evidence.models.networks import RegisteredModule, expect_vectors, mirrored


class Latent(NamedTuple):
    """A latent site: how many entries, and where they may lie."""

    dim: int
    support: constraints.Constraint


class AbstractModel(RegisteredModule, ABC):
    """A Pyro model p(x, z) = p(z) p(x | z); row i of a batch is a data set of its own.

    To write a model of your own, subclass this, call `super().__init__(data_dim, latent_dim)` and
    write `prior()` and `likelihood(z)`; plate, sites and simulation are supplied here:

        class Factor(AbstractModel):
            def __init__(self, data_dim: int, latent_dim: int = 2) -> None:
                super().__init__(data_dim, latent_dim)
                self.decoder = mlp(latent_dim, (), data_dim)

            def prior(self):
                return self.standard_normal()

            def likelihood(self, z):
                return dist.Normal(self.decoder(z), 1.0).to_event(1)

    Several latent sites are still one vector z, in which they lie side by side: name them in
    `latents`, and let `prior()` be a `Chain`, which draws each at its own site.

    A model whose evidence is known writes `log_evidence(x)`, `[B, D] -> [B]` in nats and float64;
    if its posterior is known too, `posterior(x)`.

    Args:
        data_dim: D, the number of entries of one datum.
        latent_dim: Z, the number of entries of one latent vector.
    """

    # What an encoder for this model is like, options of a guide; a linear model has a linear
    # posterior mean.
    encoder_options: Mapping[str, Any] = mirrored()

    # The sides of a square that holds the posterior, of a model with a posterior in the plane.
    plane: tuple[float, float] | None = None

    # What x must be: "binary", "unit" (interval), "levels" (of grey) or "real" entries.
    pixels: str = "real"

    # Whether a datum ends in a one-hot label of `num_classes` entries.
    labelled: ClassVar[bool] = False

    # What a datum is, in words, of a model for which an image is none.
    responses: ClassVar[str | None] = None

    # The number of entries of a datum, of a model that takes no other.
    fixed_data_dim: ClassVar[int | None] = None

    _zero: Tensor

    def __init__(self, data_dim: int, latent_dim: int) -> None:
        super().__init__()
        if min(data_dim, latent_dim) < 1:
            raise ValueError(
                f"expected data_dim and latent_dim of at least 1, got {data_dim} and {latent_dim}"
            )
        if self.fixed_data_dim not in (None, data_dim):
            raise ValueError(
                f"{type(self).__name__} is a model of data with {self.fixed_data_dim} entries, got "
                f"data_dim={data_dim}: choose other data"
            )
        self.data_dim = data_dim
        self.latent_dim = latent_dim
        # Carries device and dtype to the priors; it is no part of the state.
        self.register_buffer("_zero", torch.zeros(()), persistent=False)

    @property
    def latents(self) -> dict[str, Latent]:
        """Size and support of every latent site, in the order in which they lie side by side."""
        return {"z": Latent(self.latent_dim, constraints.real_vector)}

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Log p(x, z) in nats for `x` `[B, D]` and all latents `z` `[..., B, Z]`: `[..., B]`."""
        return self.prior().log_prob(z) + self.likelihood(z).log_prob(x)

    def log_evidence(self, x: Tensor) -> Tensor | None:
        """Log p(x) in nats and float64, where it is known: `[B, D] -> [B]`."""
        return None

    def modes(self, x: Tensor) -> Modes | None:
        """The modes of p(z | x), where they are known, for `x` of shape `[B, D]`."""
        return None

    @abstractmethod
    def prior(self) -> TorchDistribution:
        """p(z): batch shape `[]`, event shape `[Z]`."""

    @abstractmethod
    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[D]`."""

    def standard_normal(self) -> TorchDistribution:
        """The prior N(0, I): batch shape `[]`, event shape `[Z]`."""
        return dist.Normal(self._zero, self._zero + 1.0).expand([self.latent_dim]).to_event(1)

    def forward(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Score a batch, `model(x)` with `x` of shape `[B, D]`, or simulate one, `model(size=B)`.

        Returns:
            The data of the batch, `[B, D]`.

        Raises:
            ValueError: `x` or z is of another shape than the model's, or neither `x` nor `size`
                is given.
        """
        self.register()
        with pyro.plate("data", self._batch_size(x, size)):
            return pyro.sample("x", self.likelihood(self.sample_latents()), obs=x)

    def sample_latents(self) -> Tensor:
        """Draw all latents at their sites, inside the data plate: `[..., B, Z]`.

        Raises:
            ValueError: a guide gave a z of another shape.
        """
        prior = self.prior()
        z = prior.sample_sites() if isinstance(prior, Chain) else pyro.sample("z", prior)
        expect_vectors("z", z, self.latent_dim, "(..., {dim})")
        return z

    def _batch_size(self, x: Tensor | None, size: int | None) -> int:
        """B, of the batch `x` of shape `[B, D]` or of the one to simulate.

        Raises:
            ValueError: `x` is of another shape, or neither is given.
        """
        if x is None:
            if size is None:
                raise ValueError("expected a batch x or a size to simulate, got neither")
            return size
        if x.ndim != 2:
            raise ValueError(f"expected x of shape (B, {self.data_dim}), got {tuple(x.shape)}")
        expect_vectors("x", x, self.data_dim)
        return len(x)
