"""What a pass of sequential Monte Carlo says, as pure functions of log f_1 − log f_0.

`changes` `[T + 1, R, N, b]` are of the N particles, chain after chain, of R islands at each of the
inverse temperatures `betas` `[T + 1]`; see `smc.Passed`. Everything is in nats and float64.
"""

import math

import torch
import torch.nn.functional as F
from scipy.stats import t as student_t
from torch import Tensor

from evidence.inference.annealing.particles import by_island
from evidence.inference.programs import estimators


def log_weights(betas: Tensor, changes: Tensor) -> Tensor:
    """Of the particles at every temperature but the last `[T, R, N, b]`."""
    return betas.diff().reshape(-1, 1, 1, 1) * changes[:-1]


def log_evidence(log_w: Tensor) -> Tensor:
    """Of each island, from its weights `[T, R, N, b]`: the sum of the logs of their means `[R, b]`.

    This is the stepping-stone estimate, too: W. Xie, P. O. Lewis, Y. Fan, L. Kuo, M.-H. Chen,
    "Improving Marginal Likelihood Estimation for Bayesian Phylogenetic Model Selection", 2011,
    https://doi.org/10.1093/sysbio/syq085.
    """
    return _log_means(log_w).sum(0)


def chain_variance(log_w: Tensor, num_steps: int) -> Tensor:
    """Variance of the log-evidence of all islands, if errors did not add up: `[b]`.

    As Dau and Chopin (2022, section 4) have it, one temperature after the other, but from the
    spread of the means of whole chains within their island, which holds all the autocovariances
    that they estimate by a window. NaN for islands of a single chain.

    Args:
        log_w: `[T, R, K · P, b]`.
        num_steps: P.
    """
    weights = (log_w - _log_means(log_w).unsqueeze(2)).exp().nan_to_num(nan=1.0)
    chains = weights.unflatten(2, (-1, num_steps)).mean(3)  # [T, R, K, b]
    num_islands, num_chains = chains.shape[1:3]
    if num_chains < 2:
        return torch.full_like(chains[0, 0, 0], math.nan)
    return chains.var(2).mean(1).sum(0) / (num_islands * num_chains)


def effective_shares(log_w: Tensor) -> Tensor:
    """ESS over the number of particles of all islands, at every temperature: `[T, b]`."""
    together = log_w.flatten(1, 2)
    ess = [estimators.ess(row).nan_to_num(nan=0.0) for row in together]
    return torch.stack(ess) / together.shape[1]


def r_hat(values: Tensor) -> Tensor:
    """Potential scale reduction of C chains, the largest of the V values: `[P, C, b, V] -> [b]`.

    Reference: A. Gelman, D. B. Rubin, "Inference from Iterative Simulation Using Multiple
    Sequences", 1992, https://doi.org/10.1214/ss/1177011136.
    """
    values = values.double()
    within, between = values.var(0).mean(0), values.mean(0).var(0)
    share = (len(values) - 1) / len(values)
    return (share + between / within).sqrt().nan_to_num(nan=1.0).max(-1).values


def drift(betas: Tensor, changes: Tensor, positions: Tensor) -> Tensor:
    """How likely chains are to move on as they do if they began in equilibrium: `[b]`, 0 to 1.

    Particles of an island, weighted by its evidence so far, average to the density at their
    temperature, be they the ancestors or where HMC has taken these. Where a part of the density is
    missing because chains hardly ever find into it, they go on finding into it, and the second half
    of their steps differs from the first. Tested are the ranks of the change at every temperature,
    and of all latents at the last; Student's t over the islands, times the number of tests.

    Args:
        betas: `[T + 1]`.
        changes: `[T + 1, R, N, b]`.
        positions: of the last particles `[P, C, b, Z]`.
    """
    num_steps, num_islands = len(positions), changes.shape[1]
    log_z = F.pad(_log_means(log_weights(betas, changes)).cumsum(0), (0, 0, 0, 0, 1, 0))
    at_end = by_island(positions.flatten(2), num_islands)  # [R, N, b · Z]
    at_end = at_end.unflatten(2, positions.shape[2:]).movedim(-1, 0)
    tests = [_drift_t(changes[t], log_z[t], num_steps) for t in range(1, len(changes))]
    tests += [_drift_t(latent, log_z[-1], num_steps) for latent in at_end]
    largest = torch.stack(tests).abs().max(0).values
    tail = 2 * student_t.sf(largest.cpu().numpy(), num_islands - 1)
    return torch.as_tensor(len(tests) * tail).clamp(max=1.0).to(changes)


def _drift_t(values: Tensor, log_z: Tensor, num_steps: int) -> Tensor:
    """T statistic of the later half of chains against the earlier: `[R, N, b], [R, b] -> [b]`."""
    ranks = _ranks(values.flatten(0, 1)).reshape(values.shape).unflatten(1, (-1, num_steps))
    half = num_steps // 2
    moved = (ranks[:, :, -half:].mean(2) - ranks[:, :, :half].mean(2)).mean(1)  # [R, b]
    weighted = log_z.softmax(0).nan_to_num(nan=1 / len(log_z)) * moved
    t = weighted.mean(0) / weighted.std(0) * math.sqrt(len(weighted))
    return t.nan_to_num(nan=0.0)


def _ranks(values: Tensor) -> Tensor:
    """Shares of the values below, those alike by half: `[N, b] -> [N, b]`."""
    rows = values.mT.contiguous()
    order = rows.sort(-1).values
    below, up_to = (torch.searchsorted(order, rows, right=side) for side in (False, True))
    return (below + up_to).mT / (2.0 * len(values))


def thermodynamic(betas: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
    """The integral of the mean of the changes over β, by corrected trapezoids: `[R, b]` each.

    The slope of the mean is the variance, which takes off the error of second order.

    Reference: N. Friel, M. Hurn, J. Wyse, "Improving power posterior estimation of statistical
    evidence", 2014, https://arxiv.org/abs/1209.3198.

    Returns:
        The integral, and by how much it was corrected. Not finite where the likelihood of some
        draws from the start is zero.
    """
    widths, means, variances = betas.diff().reshape(-1, 1, 1), changes.mean(2), changes.var(2)
    trapezoids = (widths * (means[1:] + means[:-1]) / 2).sum(0)
    correction = -(widths.square() / 12 * variances.diff(dim=0)).sum(0)
    return trapezoids + correction, correction


def _log_means(log_w: Tensor) -> Tensor:
    """`[T, R, N, b] -> [T, R, b]`."""
    return log_w.logsumexp(2) - math.log(log_w.shape[2])
