"""Logistic regression with a Gaussian prior on the weights."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.models.base import AbstractModel
from evidence.models.design import design_matrix, expect_positive
from evidence.models.likelihoods import Bernoulli
from evidence.models.networks import expect_vectors, mirrored
from evidence.models.quadrature import log_integral, over_the_line

_MAX_NUMBERS = 1 << 18  # logits at once, which bounds the memory of the quadrature
_NEWTON_STEPS = 100


class BayesianLogisticRegression(AbstractModel):
    """y ~ Bernoulli(σ(Φz)) with weights z ~ N(0, τ²I): classification on a fixed design.

    A datum is a whole vector y of N binary responses to the N rows of Φ, and has weights of its
    own. The posterior has no closed form; with one or two weights the evidence is exact all the
    same, by quadrature about the mode, whose error is estimated too.

    Reference: T. S. Jaakkola, M. I. Jordan, "Bayesian parameter estimation via variational
    methods", 2000, https://doi.org/10.1023/A:1008932416310, section 2.

    Args:
        data_dim: N, the number of responses of one data set.
        latent_dim: Z, the number of weights.
        design: Φ, one row of Z features per response; by default the powers of N points of a grid
            on [−1, 1].
        prior_scale: τ.

    Raises:
        ValueError: a scale that is not positive, or a design of another shape.
    """

    encoder_options = mirrored((64,))
    pixels = "binary"
    responses = "vectors of N binary responses, one for each row of the design"
    design: Tensor

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        *,
        design: Sequence[Sequence[float]] | None = None,
        prior_scale: float = 2.0,
    ) -> None:
        super().__init__(data_dim, latent_dim)
        expect_positive(prior_scale=prior_scale)
        self.prior_scale = prior_scale
        self.register_buffer("design", design_matrix(design, data_dim, latent_dim))
        if latent_dim == 2:
            self.plane = (-5 * prior_scale, 5 * prior_scale)

    def prior(self) -> TorchDistribution:
        """p(z) = N(0, τ²I): event shape `[Z]`."""
        scale = self._zero + self.prior_scale
        return dist.Normal(self._zero, scale).expand([self.latent_dim]).to_event(1)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """p(y | z) for `z` of shape `[..., Z]`: batch shape `[...]`, event shape `[N]`."""
        return Bernoulli(logits=z @ self.design.mT).to_event(1)

    @torch.no_grad()
    def log_evidence(self, x: Tensor) -> Tensor | None:
        """Log p(y) in nats by quadrature over at most two weights, in float64: `[B, N] -> [B]`.

        Raises:
            ValueError: `x` is of another shape, or an evidence is not known to within 1e-4 nat.
        """
        expect_vectors("x", x, self.data_dim)
        if self.latent_dim > 2:
            return None
        joint = _Joint(x.double(), self.prior_scale * self.design.double())
        centre, root = joint.mode()  # where the mass is, and how far it reaches
        log_volume = torch.linalg.slogdet(root).logabsdet

        def log_f(v: Tensor, rows: Tensor) -> Tensor:
            u, log_slope = over_the_line(v)
            w = centre[rows].unsqueeze(1) + u @ root[rows].mT
            return joint(w, rows) + log_volume[rows].unsqueeze(1) + log_slope.sum(-1)

        return log_integral(
            log_f,
            len(x),
            self.latent_dim,
            num_panels=2 if self.latent_dim == 2 else 8,
            max_points=_MAX_NUMBERS // len(joint.features) + 1,
            device=x.device,
        )


class _Joint:
    """Log p(y, w) in nats, of the weights w = z/τ ~ N(0, I).

    Equal rows of the design are counted, as only the number of their ones matters.

    Args:
        y: responses `[B, N]`.
        features: τΦ, `[N, Z]`.
    """

    def __init__(self, y: Tensor, features: Tensor) -> None:
        self.features, row_of, counts = features.unique(
            dim=0, return_inverse=True, return_counts=True
        )  # [U, Z]
        self.counts = counts.to(y)
        self.y = y.new_zeros(len(y), len(counts)).index_add(1, row_of, y)  # ones of each, [B, U]

    def __call__(self, w: Tensor, rows: Tensor | slice = slice(None)) -> Tensor:
        """For `w` `[T, N, Z]` of the data with numbers `[T]`: `[T, N]`."""
        slopes = (self.y @ self.features)[rows]  # [T, Z]
        # log p(y | w) = yᵀ logits − Σ log(1 + e^logits), of which the second term has no y.
        log_p_y = (w @ slopes.unsqueeze(-1)).squeeze(-1)
        log_p_y = log_p_y + F.logsigmoid(-(w @ self.features.mT)) @ self.counts
        dim = w.shape[-1]
        return log_p_y - 0.5 * w.square().sum(-1) - 0.5 * dim * math.log(2 * math.pi)

    def mode(self) -> tuple[Tensor, Tensor]:
        """The highest point, `[B, Z]`, and a root of the covariance there, `[B, Z, Z]`.

        By Newton's method, whose steps are halved where they do not rise; log p is concave.
        """
        w = self.y.new_zeros(len(self.y), self.features.shape[1])
        size, value = torch.ones_like(w[:, :1]), self(w.unsqueeze(1))
        for _ in range(_NEWTON_STEPS):
            slope, root = self._derivatives(w)
            whitened = (root.mT @ slope.unsqueeze(-1)).squeeze(-1)
            if (whitened.norm(dim=1) < 0.01).all():  # in units of the scale
                break
            step = (root @ whitened.unsqueeze(-1)).squeeze(-1)
            there = w + size * step
            new_value = self(there.unsqueeze(1))
            rises = new_value > value
            w, value = torch.where(rises, there, w), torch.where(rises, new_value, value)
            size = torch.where(rises, (2 * size).clamp(max=1), size / 2)
        return w, self._derivatives(w)[1]

    def _derivatives(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient at `w` `[B, Z]`, and a root of the inverse of −Hessian: `[B, Z, Z]`."""
        p = torch.sigmoid(w @ self.features.mT)  # [B, U]
        slope = (self.y - self.counts * p) @ self.features - w
        squares = self.features.unsqueeze(-1) * self.features.unsqueeze(-2)  # [U, Z, Z]
        hessian = torch.eye(w.shape[1]).to(w) + torch.tensordot(
            self.counts * p * (1 - p), squares, 1
        )
        values, vectors = torch.linalg.eigh(hessian)  # at least one, but for rounding
        return slope, vectors * values.clamp_min(1.0).rsqrt().unsqueeze(-2)
