"""Meng and Wong's optimal bridge, as pure functions of the log-ratios at two sets of draws.

l = log p(x, u) − log q(u) at posterior draws, `[C, N, M]` by chain and draw, and at draws of a
proposal q, `[S, M]`; for each of M data, in nats.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from evidence.inference.paths.chains import mean_ess
from evidence.inference.programs import estimators

_NUM_HALVINGS = 64


@dataclass(frozen=True)
class OptimalBridge:
    """The bridge's estimate of log p(x), and the terms that it is made of.

    With p = p(x, u)/p(x) and shares s₁ + s₂ = 1, the terms are s₂q/(s₁p + s₂q) at the posterior's
    draws and s₁p/(s₁p + s₂q) at those of q: the probabilities with which a draw would be taken for
    one of the other side. None is above one, so that their variances are finite, however heavy the
    tails of p/q and q/p.

    Args:
        log_px: the estimate of log p(x) `[M]`.
        at_posterior: log-terms of the posterior's draws `[C, N, M]`.
        at_proposal: log-terms of the proposal's draws `[S, M]`.
    """

    log_px: Tensor
    at_posterior: Tensor
    at_proposal: Tensor

    @cached_property
    def weights(self) -> tuple[Tensor, Tensor]:
        """The terms of both sides, each over its mean."""
        means = log_mean(self.at_posterior.flatten(0, 1)), log_mean(self.at_proposal)
        return (self.at_posterior - means[0]).exp(), (self.at_proposal - means[1]).exp()

    @cached_property
    def posterior_ess(self) -> Tensor:
        """Independent draws that the posterior's are worth for the mean of their terms `[M]`."""
        return mean_ess(self.weights[0])

    @property
    def variance(self) -> Tensor:
        """Relative mean squared error of p̂(x), the variance of its log, `[M]`.

        Of both means, that of the posterior's draws with their autocorrelation.

        Reference: S. Frühwirth-Schnatter, "Estimating marginal likelihoods for mixture and Markov
        switching models using bridge sampling techniques", 2004,
        https://doi.org/10.1111/j.1368-423X.2004.00125.x, section 3.
        """
        of_posterior = self.weights[0].flatten(0, 1).var(0) / self.posterior_ess
        return of_posterior + self.weights[1].var(0) / len(self.weights[1])

    @property
    def ess(self) -> Tensor:
        """Effective sample size of the terms, of the side that has fewer: `[M]`."""
        of_posterior = self.at_posterior.flatten(0, 1)
        share = self.posterior_ess / len(of_posterior)
        return torch.minimum(
            estimators.ess(of_posterior) * share.clamp(max=1), estimators.ess(self.at_proposal)
        )

    @property
    def k_hat(self) -> Tensor:
        """Pareto tail shape of the terms, of the side with the heavier tail: `[M]`.

        Draws so far from the other side that no term comes near one are plain weights, with their
        faults. There is no tail, 0, where one does, so that unseen terms are hardly larger, nor
        where the largest is near the mean.
        """
        shapes = []
        for side in (self.at_posterior.flatten(0, 1), self.at_proposal):
            largest, shape = side.amax(0), estimators.k_hat(side).to(side)
            is_flat = largest < log_mean(side) + math.log(2)
            shapes.append(torch.where((largest > -math.log(2)) | is_flat, 0.0, shape))
        return torch.maximum(*shapes)


def optimal_bridge(of_posterior: Tensor, of_proposal: Tensor) -> OptimalBridge:
    """The bridge of smallest error, n₁ counted as the number of independent draws it is worth.

    References: X.-L. Meng, W. H. Wong, "Simulating ratios of normalizing constants via a simple
    identity", 1996, https://www3.stat.sinica.edu.tw/statistica/oldpdf/A6n44.pdf; Q. F. Gronau et
    al., "A tutorial on bridge sampling", 2017, https://arxiv.org/abs/1703.05984.

    Args:
        of_posterior: log-ratios at the posterior's draws `[C, N, M]`.
        of_proposal: log-ratios at the proposal's draws `[S, M]`.
    """
    of_posterior, of_proposal = of_posterior.double(), of_proposal.double()
    num_draws = torch.full_like(of_proposal[0], of_posterior[..., 0].numel())
    first = _bridge(of_posterior, of_proposal, num_draws)
    return _bridge(of_posterior, of_proposal, first.posterior_ess)


def _bridge(of_posterior: Tensor, of_proposal: Tensor, num_draws: Tensor) -> OptimalBridge:
    """With s₁ from so many draws of the posterior `[M]`."""
    share = num_draws / (num_draws + len(of_proposal))
    log_px = _root(of_posterior.flatten(0, 1), of_proposal, share)
    terms = _terms(of_posterior, of_proposal, share, log_px)
    return OptimalBridge(log_px, terms[0] + torch.log1p(-share), terms[1] + share.log())


def _terms(
    of_posterior: Tensor, of_proposal: Tensor, share: Tensor, log_px: Tensor
) -> tuple[Tensor, Tensor]:
    """Log q/(s₁p + s₂q) at posterior draws `[..., M]` and log p/(s₁p + s₂q) at the proposal's."""
    log_s1, log_s2 = share.log(), torch.log1p(-share)
    of_posterior, of_proposal = of_posterior - log_px, of_proposal - log_px
    at_posterior = -torch.logaddexp(log_s1 + of_posterior, log_s2)
    return at_posterior, of_proposal - torch.logaddexp(log_s1 + of_proposal, log_s2)


def _root(of_posterior: Tensor, of_proposal: Tensor, share: Tensor) -> Tensor:
    """The log r at which both means of the terms are equal, `[M]`.

    The fixed point of Meng and Wong's iteration. The mean at the posterior's draws rises with r,
    the other falls: there is one root, between the smallest and the largest ratio.
    """
    both = torch.cat([of_posterior, of_proposal])
    low = torch.where(both.isfinite(), both, torch.inf).amin(0)
    high = torch.where(both.isfinite(), both, -torch.inf).amax(0)
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        at_posterior, at_proposal = _terms(of_posterior, of_proposal, share, middle)
        is_above = log_mean(at_posterior) > log_mean(at_proposal)
        low, high = torch.where(is_above, low, middle), torch.where(is_above, middle, high)
    return (low + high) / 2


def log_mean(log_terms: Tensor) -> Tensor:
    """Log of the mean of exponentials: `[S, M] -> [M]`."""
    return estimators.iwae(log_terms)
