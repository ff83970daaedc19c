"""The mixture of Gaussians as a posterior, with draws that carry gradients."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from evidence.guides.base import AbstractGuide


class Mixture(AbstractGuide):
    """q(z | x) = Σ_c π_c(x) N(μ_c(x), diag σ_c²(x)), a mixture of K diagonal Gaussians.

    The encoder gives log π up to a constant, log σ_c, and a location and offsets from it that make
    the μ_c. Draws carry exact gradients to all of them, π included: those of the implicit
    reparameterization by the conditional distribution functions F_i(z_i | z_1, …, z_{i−1}),
    ∂z/∂λ = −(∂F/∂z)⁻¹ ∂F/∂λ. The draws between components bear the gradient to π, so that of
    components far apart is noisy. Components start a little apart around the location.

    Reference: M. Figurnov, S. Mohamed, A. Mnih, "Implicit Reparameterization Gradients", 2018,
    https://arxiv.org/abs/1805.08498, section 3.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_components: K, the number of Gaussians.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self, latent_dim: int, data_dim: int, *, num_components: int = 4, **encoder: Any
    ) -> None:
        if num_components < 1:
            raise ValueError(f"expected num_components of at least 1, got {num_components}")
        size = num_components * latent_dim
        sizes = (latent_dim, size, size, num_components)
        super().__init__(latent_dim, data_dim, output_dims=sizes, **encoder)
        self.num_components = num_components
        *_, last = self.encoder.children()
        self._start_apart(last.get_parameter("bias"))

    @torch.no_grad()
    def _start_apart(self, bias: Tensor) -> None:
        """Offsets of about half a standard deviation that leave the mean in place.

        Equal components would get equal gradients, and stay equal.
        """
        offsets = 0.5 * torch.randn(self.num_components, self.latent_dim)
        _, start, *_ = bias.split(self.output_dims)
        start += (offsets - offsets.mean(0)).flatten()

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x): batch shape `[B]`, event shape `[Z]`."""
        loc, offsets, log_scales, logits = self.encode(x)
        shape = (self.num_components, self.latent_dim)
        locs = loc.unsqueeze(-2) + offsets.unflatten(-1, shape)
        scales = log_scales.unflatten(-1, shape).exp()
        return DiagonalMixture(
            dist.Categorical(logits=logits), dist.Normal(locs, scales).to_event(1)
        )


class DiagonalMixture(dist.MixtureSameFamily):
    """A mixture of diagonal Gaussians whose draws carry exact first derivatives.

    Pyro's `MixtureOfDiagNormals` has biased gradients to the logits (of E[z_1²] already), draws
    from the wrong rows of a batch when asked for several draws, and is wrong for Z = 1.
    """

    has_rsample = True
    support = constraints.real_vector

    @torch.no_grad()
    def sample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws without gradients, `[*sample_shape, B, Z]`; torch itself cannot draw none."""
        normals, probs = self.component_distribution.base_dist, self.mixture_distribution.probs
        shape = (*sample_shape, *self.batch_shape)
        clocks = probs.new_empty(*shape, probs.shape[-1]).exponential_() / probs
        first = clocks.argmin(-1)[..., None, None]  # the first of exponential clocks to ring
        loc, scale = (
            values.expand(*shape, *values.shape[-2:])
            .take_along_dim(first.expand(*shape, 1, values.shape[-1]), -2)
            .squeeze(-2)
            for values in (normals.loc, normals.scale)
        )
        return loc + scale * torch.randn_like(loc)

    def rsample(self, sample_shape: tuple[int, ...] = ()) -> Tensor:
        """Draws with gradients, `[*sample_shape, B, Z]`."""
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        cdfs, slopes = self._conditional_cdfs(z)
        change = torch.linalg.solve_triangular(
            slopes, (cdfs - cdfs.detach()).unsqueeze(-1), upper=False
        )  # zero, but for its derivatives
        return z - change.squeeze(-1)

    def _conditional_cdfs(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """F_i(z_i | z_<i) up to constants, `[..., Z]`, and ∂F_i/∂z_j as numbers, `[..., Z, Z]`.

        F_i = Σ_c w_ci Φ(t_ci) with t = (z − μ)/σ and w_ci ∝ π_c Π_{j<i} N(z_j; μ_cj, σ_cj²). Where
        Φ is near one, Φ − 1 stands for it, which keeps its digits.
        """
        normals = self.component_distribution.base_dist
        z = z.unsqueeze(-2)  # [..., 1, Z] beside [B, K, Z]
        t = (z - normals.loc) / normals.scale
        log_p = normals.log_prob(z)
        log_w = self.mixture_distribution.logits.unsqueeze(-1) + log_p.cumsum(-1) - log_p
        w = log_w.softmax(-2)
        lower, upper = (0.5 * torch.erfc(sign * t / math.sqrt(2)) for sign in (-1, 1))
        is_high = (w * lower).sum(-2, keepdim=True) > 0.5
        phi = torch.where(is_high, -upper, lower)
        cdfs = (w * phi).sum(-2)
        with torch.no_grad():
            densities = (w * log_p.exp()).sum(-2)
            below = (w * (phi - cdfs.unsqueeze(-2))).mT @ (-t / normals.scale)
            slopes = below.tril(-1) + torch.diag_embed(densities)
        return cdfs, slopes
