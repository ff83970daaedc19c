"""A latent point in the plane near one of several centres, seen through noise."""

import math

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.models.base import AbstractModel
from evidence.models.design import expect_positive
from evidence.models.modes import Modes
from evidence.models.networks import expect_vectors, mirrored


class GaussianMixture2D(AbstractModel):
    """z from K Gaussians on a ring in the plane, x ~ N(z, σ²I): a posterior with several modes.

    With centres m_k, spread s and σ large, x does not tell where z came from:

        p(x)     = (1/K) Σ N(x; m_k, (s² + σ²)I)
        p(z | x) = Σ w_k(x) N(z; m_k + c(x − m_k), cσ²I),    c = s²/(s² + σ²),

    with w_k(x) the k-th term of p(x), normalized: everything is known.

    Reference: C. M. Bishop, "Pattern Recognition and Machine Learning", 2006,
    https://www.microsoft.com/en-us/research/publication/pattern-recognition-machine-learning/,
    eqs. 2.113-2.117 for every component.

    Args:
        data_dim: 2.
        num_components: K.
        radius: of the ring.
        component_scale: s.
        noise_scale: σ.

    Raises:
        ValueError: data that are not in the plane, no component, or a scale that is not positive.
    """

    fixed_data_dim = 2
    encoder_options = mirrored((64,))

    centres: Tensor

    def __init__(
        self,
        data_dim: int,
        *,
        num_components: int = 4,
        radius: float = 2.0,
        component_scale: float = 0.4,
        noise_scale: float = 2.0,
    ) -> None:
        super().__init__(data_dim, 2)
        if num_components < 1:
            raise ValueError(f"expected num_components of at least 1, got {num_components}")
        expect_positive(radius=radius, component_scale=component_scale, noise_scale=noise_scale)
        self.component_scale, self.noise_scale = component_scale, noise_scale
        angles = (torch.arange(num_components) + 0.5) * (2 * math.pi / num_components)
        centres = radius * torch.stack([angles.cos(), angles.sin()], dim=-1)  # [K, 2]
        self.register_buffer("centres", centres, persistent=False)
        self.plane = (-radius - 5 * component_scale, radius + 5 * component_scale)

    def prior(self) -> TorchDistribution:
        """p(z): batch shape `[]`, event shape `[2]`."""
        return _mixture(self._zero.expand(len(self.centres)), self.centres, self.component_scale)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for `z` of shape `[..., 2]`: batch shape `[...]`, event shape `[2]`."""
        return dist.Normal(z, self.noise_scale).to_event(1)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x) in nats, in float64 whatever the model's type: `[..., 2] -> [...]`."""
        expect_vectors("x", x, self.data_dim)
        centres = self.centres.double()
        return _mixture(centres.new_zeros(len(centres)), centres, self._total_scale).log_prob(
            x.double()
        )

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Exact p(z | x) for `x` of shape `[B, 2]`: batch shape `[B]`, event shape `[2]`."""
        expect_vectors("x", x, self.data_dim)
        shrinkage = (self.component_scale / self._total_scale) ** 2  # c
        loc = self.centres + shrinkage * (x.unsqueeze(-2) - self.centres)
        return _mixture(
            self._log_shares(x, self._total_scale), loc, math.sqrt(shrinkage) * self.noise_scale
        )

    def modes(self, x: Tensor) -> Modes:
        """The components: z belongs to each as p(k | z) says, whatever x."""
        expect_vectors("x", x, self.data_dim)
        return Modes(
            self._log_shares(x.double(), self._total_scale).softmax(-1),
            lambda z: self._log_shares(z, self.component_scale).softmax(-1),
        )

    def _log_shares(self, point: Tensor, scale: float) -> Tensor:
        """Log of what every component has in a point `[..., 2]`, up to a constant: `[..., K]`."""
        off = point.unsqueeze(-2) - self.centres.to(point)
        return -0.5 * (off / scale).square().sum(-1)

    @property
    def _total_scale(self) -> float:
        return math.hypot(self.component_scale, self.noise_scale)


def _mixture(logits: Tensor, loc: Tensor, scale: float) -> TorchDistribution:
    """Mixture of round Gaussians: weights `[..., K]`, centres `[..., K, 2]`."""
    components = dist.Normal(loc, scale).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)
