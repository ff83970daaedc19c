"""Logistic regression with a Gaussian prior on the weights."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor

from models.base import AbstractModel
from models.design import design_matrix, expect_positive
from models.likelihoods import Bernoulli
from models.networks import expect_vectors
from models.quadrature import box_rule

_ROWS = 64  # data per block of the quadrature, which bounds its memory


class BayesianLogisticRegression(AbstractModel):
    """y ~ Bernoulli(σ(Φz)) with weights z ~ N(0, τ²I): classification on a fixed design.

    A datum is a whole vector y of N binary responses to the N rows of Φ, and has weights of its
    own. The posterior has no closed form; with one or two weights the evidence is exact all the
    same, by quadrature.

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

    hidden_dims = (64,)
    pixels = "binary"
    responses = "vectors of N binary responses, one for each row of the design"
    likelihood_name = "bernoulli"
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
        self.knows_evidence = latent_dim <= 2
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
    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(y) in nats by quadrature over the weights, in float64: `[B, N] -> [B]`.

        Raises:
            ValueError: more than two weights.
        """
        expect_vectors("x", x, self.data_dim)
        if not self.knows_evidence:
            raise ValueError(
                f"expected at most 2 weights to integrate over, got latent_dim={self.latent_dim}"
            )
        edge = 10 * self.prior_scale  # the prior beyond it is 1e-23
        nodes, log_weights = box_rule(-edge, edge, self.latent_dim, num_panels=40)
        nodes, log_weights = nodes.to(x.device), log_weights.to(x.device)
        logits = nodes @ self.design.double().mT  # [G, N]
        prior = torch.distributions.Normal(torch.zeros_like(log_weights[:1]), self.prior_scale)
        # log p(y | z) = yᵀ logits − Σ log(1 + e^logits), of which the second term has no y.
        rest = log_weights + prior.log_prob(nodes).sum(1) - F.softplus(logits).sum(1)
        joint = (logits @ rows.double().mT + rest.unsqueeze(1) for rows in x.split(_ROWS))
        return torch.cat([block.logsumexp(0) for block in joint])
