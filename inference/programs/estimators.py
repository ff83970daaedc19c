"""Estimates of log p(x) and their diagnostics, as pure functions of the log-weights `[S, B]`.

Everything is per datum and in nats; `log_w` comes from `log_weights`.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from evidence.inference.programs.pareto import smooth_tails

_FEWEST_FOR_A_TAIL = 30  # as ArviZ 1.x wants
_ROUNDINGS = 450  # of a log-weight, in units of its dtype's precision: sums of many terms


def elbo(log_w: Tensor) -> Tensor:
    """Evidence lower bound, the mean of log w: `[S, B] -> [B]`."""
    return _expect_weights(log_w).mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """Importance-weighted bound L_S = logsumexp(log w) − log S: `[S, B] -> [B]`.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, eq. 8.
    """
    return _expect_weights(log_w).logsumexp(0) - math.log(len(log_w))


def iwae_curve(log_w: Tensor, ks: Sequence[int]) -> Tensor:
    """L_k for each k, averaged over ⌊S/k⌋ disjoint blocks: `[S, B] -> [len(ks), B]`.

    In expectation it rises with k, from the ELBO (k = 1) towards log p(x).

    Raises:
        ValueError: a k outside 1..S.
    """
    _expect_weights(log_w)
    num_particles, num_data = log_w.shape
    for k in ks:
        if not 1 <= k <= num_particles:
            raise ValueError(f"expected every k between 1 and S = {num_particles}, got {k}")
    blocks = (log_w[: num_particles // k * k].reshape(-1, k, num_data) for k in ks)
    return torch.stack([(b.logsumexp(1) - math.log(b.shape[1])).mean(0) for b in blocks])


def jackknife(log_w: Tensor) -> Tensor:
    """L_S without its bias of order 1/S, from the same weights: `[S, B] -> [B]`.

    S·L_S − (S − 1)·mean_i L_{S−1}^{(−i)}, with L^{(−i)} the bound without particle i. No longer a
    lower bound.

    Reference: S. Nowozin, "Debiasing Evidence Approximations: On Importance-Weighted Autoencoders
    and Jackknife Variational Inference", 2018, https://openreview.net/forum?id=HyZoi-WRb, eq. 14.
    """
    return iwae(log_w) - log_mean_bias(log_w)


def log_mean_bias(log_w: Tensor) -> Tensor:
    """Bias of L_S to order 1/S, by the jackknife: `[S, B] -> [B]`, negative.

    (S − 1)·(mean_i L_{S−1}^{(−i)} − L_S); see `jackknife`.
    """
    num_particles = len(_expect_several(log_w))
    without = _leave_one_out_logsumexp(log_w) - math.log(num_particles - 1)
    return (num_particles - 1) * (without.mean(0) - iwae(log_w))


def _leave_one_out_logsumexp(log_w: Tensor) -> Tensor:
    """Log Σ_{j≠i} w_j for every i: `[S, B] -> [S, B]`."""
    share = log_w.softmax(0)
    without = log_w.logsumexp(0) + torch.log1p(-share)
    # Where one weight is nearly the whole sum, 1 − share cancels: leave out the largest directly.
    largest = log_w.argmax(0, keepdim=True)  # [1, B]
    rest = log_w.scatter(0, largest, -math.inf).logsumexp(0, keepdim=True)
    return without.scatter(0, largest, rest)


def ess(log_w: Tensor) -> Tensor:
    """Effective sample size (Σw)² / Σw², between 1 and S: `[S, B] -> [B]`.

    Reference: A. B. Owen, "Monte Carlo theory, methods and examples", 2013,
    https://artowen.su.domains/mc/, eq. 9.13.
    """
    _expect_weights(log_w)
    return (2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp()


def log_mean_variance(log_w: Tensor) -> Tensor:
    """Monte Carlo variance of L_S, by the jackknife: `[S, B] -> [B]`.

    (S − 1)/S · Σ_i (L^{(−i)} − mean_j L^{(−j)})². For many weights of finite variance this is the
    delta method's 1/ESS − 1/S; unlike that, it holds for few weights, and it has no upper end: one
    weight that dwarfs all others gives an SE of the order of their distance.

    Reference: B. Efron, C. Stein, "The Jackknife Estimate of Variance", 1981,
    https://doi.org/10.1214/aos/1176345462.
    """
    num_particles = len(_expect_several(log_w))
    without = _leave_one_out_logsumexp(log_w)
    variance = (without - without.mean(0)).square().sum(0) * ((num_particles - 1) / num_particles)
    # Where all weights but one are zero, leaving that one out leaves nothing.
    return torch.where(without.isneginf().any(0), math.inf, variance)


def share_within(log_w: Tensor, counts: Sequence[int]) -> Tensor:
    """Share of the weights' variance that is within strata, `[S, B] -> [B]`; 1 where there is none.

    Of draws of which a fixed number comes from each component of a mixture, in this order, it is
    the share by which the variance of their mean is smaller than that of as many draws of the
    mixture. A single draw has no spread to be known by, and counts with its distance from the mean
    of all.

    Reference: A. B. Owen, "Monte Carlo theory, methods and examples", 2013,
    https://artowen.su.domains/mc/, section 8.4.
    """
    shares = _expect_weights(log_w).softmax(0).nan_to_num(nan=1 / len(log_w))
    off = shares - 1 / len(log_w)
    total, within = off.square().sum(0), torch.zeros_like(off[0])
    for part in off.split(list(counts)):
        count = len(part)
        squares = (part if count == 1 else part - part.mean(0)).square().sum(0)
        within = within + squares * (count / max(count - 1, 1))
    return torch.where(total > 0, within / total, 1.0).clamp(max=1.0)


def k_hat(log_w: Tensor) -> Tensor:
    """Shape of the generalized Pareto tail of the weights: `[S, B] -> [B]`, float64.

    Above `k_hat_threshold(S)` the weights' tail is too heavy for L_S and its error bar to be
    trusted. Where the largest weights are all equal, up to the rounding of their dtype, there is no
    tail: 0; where all are zero: inf. With fewer than 30 particles there are not enough to fit a
    tail: NaN.

    Reference: A. Vehtari, D. Simpson, A. Gelman, Y. Yao, J. Gabry, "Pareto Smoothed Importance
    Sampling", 2024, https://jmlr.org/papers/v25/19-556.html, section 3.
    """
    return pareto_smoothed(log_w)[1]


def pareto_smoothed(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """Log-weights whose largest are quantiles of the tail fitted to them, and k̂.

    Where no tail can be fitted, see `k_hat`, weights stay what they are.

    Returns:
        The log-weights, `[S, B] -> [S, B]`, and k̂ `[B]`, both in float64 on the CPU.
    """
    num_particles = len(_expect_weights(log_w))
    precision = torch.finfo(log_w.dtype).eps
    log_w = log_w.detach().cpu().double()
    if num_particles < _FEWEST_FOR_A_TAIL:
        return log_w, torch.full((log_w.shape[1],), math.nan, dtype=torch.float64)
    largest = log_w.max(0).values
    relative = log_w - largest
    tail_size = math.ceil(min(0.2 * num_particles, 3 * math.sqrt(num_particles)))
    rounding = _ROUNDINGS * precision * (1 + largest.abs())
    has_tail = relative.topk(tail_size, dim=0).values[-1] < -rounding
    shapes, smoothed = torch.zeros(log_w.shape[1], dtype=torch.float64), log_w.clone()
    if has_tail.any():
        tails, shapes[has_tail] = smooth_tails(relative[:, has_tail], tail_size)
        # Where all weights but zeros are tail, no smallest one shows where it begins.
        is_part = (~log_w[:, has_tail].isneginf()).sum(0) > tail_size
        smoothed[:, has_tail] = torch.where(is_part, tails + largest[has_tail], log_w[:, has_tail])
    return smoothed, torch.where(largest > -math.inf, shapes, math.inf)


def k_hat_threshold(num_particles: int) -> float:
    """The largest trustworthy k̂, min(1 − 1/log₁₀ S, 0.7) (Vehtari et al. 2024, section 3.2.4)."""
    return min(1 - 1 / math.log10(max(num_particles, 2)), 0.7)


def active_units(means: Tensor, mean_variances: Tensor, *, threshold: float = 0.01) -> Tensor:
    """Which latents tell data apart, Var_x(E_q[z | x]) > threshold: `[B, Z], [B, Z] -> [Z]`, bool.

    The variance over the data of *estimated* means is too large by the estimates' own variance,
    which alone would pass the threshold at 100 draws from a prior of unit scale; it is taken out.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, section 5.2.

    Args:
        means: estimates of E_q[z | x].
        mean_variances: the Monte Carlo variances of these estimates; zeros if they are exact.
        threshold: in the units of z².

    Raises:
        ValueError: fewer than two data, or shapes that differ.
    """
    if means.ndim != 2 or len(means) < 2 or means.shape != mean_variances.shape:
        raise ValueError(
            "expected means and mean_variances of one shape (B, Z) with B of at least 2, got "
            f"{tuple(means.shape)} and {tuple(mean_variances.shape)}"
        )
    return means.double().var(0) - mean_variances.double().mean(0) > threshold


def _expect_several(log_w: Tensor) -> Tensor:
    if len(_expect_weights(log_w)) < 2:
        raise ValueError("expected at least 2 particles for the jackknife, got 1")
    return log_w


def _expect_weights(log_w: Tensor) -> Tensor:
    if log_w.ndim != 2 or not len(log_w):
        raise ValueError(f"expected log_w of shape (S, B), got {tuple(log_w.shape)}")
    return log_w
