"""Meng and Wong's optimal bridge, as pure functions of the log-ratios at two sets of draws.

l = log p(x, u) − log q(u) at posterior draws, `[C, N, M]` by chain and draw, and at draws of a
proposal q, `[S, M]`; for each of M data, in nats.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.inference.annealing.reference import diagnostic
from evidence.inference.programs import estimators

_NUM_HALVINGS = 64


@dataclass(frozen=True)
class OptimalBridge:
    """The bridge's estimate of log p(x), and the terms that it is made of.

    With r = p(x), shares s₁ + s₂ = 1 and the density p = p(x, u)/r, the terms are q/(s₁p + s₂q) at
    the posterior's draws and p/(s₁p + s₂q) at those of q. Both have the mean ∫pq/(s₁p + s₂q), the
    overlap of p and q between 0 and 1, and no term is larger than 1/s₂ or 1/s₁: however heavy the
    tails of p/q and q/p, the variances are finite.

    Args:
        log_px: the estimate of log p(x) `[M]`.
        at_posterior: the log-terms of the posterior's draws, less the log of their mean
            `[C, N, M]`.
        at_proposal: likewise, of the proposal's draws `[S, M]`.
        overlap: the mean of the terms `[M]`.
    """

    log_px: Tensor
    at_posterior: Tensor
    at_proposal: Tensor
    overlap: Tensor

    @property
    def posterior_ess(self) -> Tensor:
        """How many independent draws the posterior's are worth for the mean of their terms."""
        return mean_ess(self.at_posterior.exp())

    @property
    def variance(self) -> Tensor:
        """Relative mean squared error of p̂(x), the variance of its log, `[M]`.

        Of both means, that of the posterior's draws with their autocorrelation.

        Reference: S. Frühwirth-Schnatter, "Estimating marginal likelihoods for mixture and Markov
        switching models using bridge sampling techniques", 2004,
        https://doi.org/10.1111/j.1368-423X.2004.00125.x, section 3.
        """
        of_posterior = self.at_posterior.exp().flatten(0, 1).var(0) / self.posterior_ess
        return of_posterior + self.at_proposal.exp().var(0) / len(self.at_proposal)

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

        Terms are bounded. A heavy tail is that of draws so far from the other side that none of
        them reaches the bound: then the estimate is that of plain weights, with their faults.
        """
        sides = self.at_posterior.flatten(0, 1), self.at_proposal
        shapes = [estimators.k_hat(side).to(side.device) for side in sides]
        return torch.maximum(*shapes)

    @classmethod
    def average(cls, parts: Sequence["OptimalBridge"]) -> "OptimalBridge":
        """Of bridges from consecutive draws of the same chains, each with a proposal of its own.

        To first order the choice of a proposal has no part in a bridge's error, so that the terms
        side by side are those of the average.
        """
        return cls(
            torch.stack([part.log_px for part in parts]).mean(0),
            torch.cat([part.at_posterior for part in parts], dim=1),
            torch.cat([part.at_proposal for part in parts]),
            torch.stack([part.overlap for part in parts]).mean(0),
        )


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
    at_posterior, at_proposal = _terms(of_posterior, of_proposal, share, log_px)
    log_means = [log_mean(at_posterior.flatten(0, 1)), log_mean(at_proposal)]
    relative = at_posterior - log_means[0], at_proposal - log_means[1]
    return OptimalBridge(log_px, *relative, log_means[1].exp())


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


def mean_ess(values: Tensor) -> Tensor:
    """Independent draws that chains `[C, N, M]` are worth for the mean of a function: `[M]`.

    The spectral density at zero, by Geyer's initial sequences over split chains.
    """
    ess = diagnostic("ess", values.unsqueeze(-1), method="mean").squeeze(-1)
    num_draws = values[..., 0].numel()
    is_constant = values.flatten(0, 1).var(0) == 0
    return torch.where(is_constant | ess.isnan(), float(num_draws), ess.to(values))
