"""The evidence upper bound of a guide and its forward KL, at draws from the posterior."""

from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.bridging.bridge import log_ratios
from evidence.inference.bridging.checks import Bridged, caveat_of
from evidence.inference.bridging.posterior_draws import PosteriorDraws
from evidence.inference.estimation.evidence import Evidence
from evidence.inference.paths.chains import mean_ess
from evidence.inference.paths.guide_path import GuidePath


class Mean(NamedTuple):
    """A mean over draws and its standard error, each `[M]`."""

    mean: Tensor
    se: Tensor


class UpperBound(NamedTuple):
    """What a guide loses at draws from the posterior, in nats.

    Args:
        eubo: E_p[log p(x, z) − log q(z | x)], at or above log p(x).
        forward_kl: KL(p(z | x) ‖ q(z | x)) = EUBO − log p(x).
        log_q_z: E_p[log q(z | x)], of densities in the model's own space.
        caveat: what speaks against the log p(x) that is taken off, or None.
    """

    eubo: Mean
    forward_kl: Mean
    log_q_z: Mean
    caveat: str | None

    @classmethod
    def unknown(cls, like: Tensor, caveat: str) -> "UpperBound":
        """Of a guide that cannot score what it did not draw; `like` is `[M]`."""
        nothing = Mean(*[torch.full_like(like, torch.nan, dtype=torch.float64)] * 2)
        return cls(nothing, nothing, nothing, caveat)


def upper_bound(
    path: GuidePath,
    draws: PosteriorDraws,
    u: Tensor,
    *,
    evidence: Evidence | None = None,
    rows: int = 4096,
) -> UpperBound:
    """The EUBO and the forward KL of a path's guide.

    An ELBO is a mean over the guide's own draws, and shows nothing of a mode that these never
    visit; the EUBO is a mean over the posterior's. Its error bar knows their autocorrelation. The
    log p(x) that is taken off for the KL comes from Meng and Wong's bridge between the same draws
    and as many of the guide, unless there is a better one; both errors of the bridge's side of the
    posterior are of the same draws, and partly cancel, which the error bar of the KL knows.

    Reference: D. Blessing, X. Jia, J. Esslinger, F. Vargas, G. Neumann, "Beyond ELBOs: A
    Large-Scale Evaluation of Variational Methods for Sampling", 2024,
    https://arxiv.org/abs/2406.07423, section 3.

    Args:
        path: from the guide, inside `annealing_mode`.
        draws: from the posterior.
        u: where they are on the path, `[C, N, B, Z]`.
        evidence: of the same data, independent of the draws; None to bridge them.
        rows: draws that are scored at a time.

    Raises:
        ValueError: an evidence of other data, or log-ratios that are NaN.
    """
    shape = u.shape[:2]
    log_w = log_ratios(path, u.flatten(0, 1), rows).unflatten(0, shape)  # [C, N, M]
    log_q = _log_joint(path, draws, rows).unflatten(0, shape) - log_w
    if evidence is None:
        kl, bridged = _off_a_bridge(path, u, log_w, rows)
        caveat = caveat_of([bridged], draws.of_chains_that_mix(u))
    else:
        kl, caveat = _off(evidence, log_w), evidence.not_reliable
    return UpperBound(mean_of_chains(log_w), kl, mean_of_chains(log_q), caveat)


def mean_of_chains(values: Tensor) -> Mean:
    """The mean of `[C, N, M]`, and its standard error that knows the autocorrelation."""
    flat = values.flatten(0, 1)
    return Mean(flat.mean(0), (flat.var(0) / mean_ess(values)).sqrt())


def _log_joint(path: GuidePath, draws: PosteriorDraws, rows: int) -> Tensor:
    """Log p(x, z) of all draws `[C · N, M]`."""
    flat = {name: value.flatten(0, 1) for name, value in draws.values.items()}
    parts = [v.split(rows) for v in flat.values()]
    log_p = [
        path.log_joint(dict(zip(flat, some, strict=True))) for some in zip(*parts, strict=True)
    ]
    return torch.cat(log_p).double()


def _off(evidence: Evidence, log_w: Tensor) -> Mean:
    """The EUBO less an evidence."""
    if evidence.log_px.shape != log_w.shape[2:]:
        raise ValueError(
            f"expected an evidence of the same data, {log_w.shape[2]} estimates of log p(x), got "
            f"{len(evidence.log_px)}"
        )
    eubo = mean_of_chains(log_w)
    log_px = evidence.log_px.to(eubo.mean)
    se = (eubo.se.square() + evidence.log_px_variance.to(eubo.se)).sqrt()
    return Mean(eubo.mean - log_px, se)


def _off_a_bridge(path: GuidePath, u: Tensor, log_w: Tensor, rows: int) -> tuple[Mean, Bridged]:
    """The EUBO less the log p(x) of a bridge from the same draws, with one error bar for both.

    A draw of the posterior moves the EUBO by its log w over the mean, and the bridge's log p(x) by
    minus its term over the mean; to first order the error is that of the mean of their sum.
    """
    of_guide = path.sample(log_w[..., 0].numel())
    bridged = Bridged.between(u, log_w, of_guide, log_ratios(path, of_guide, rows))
    of_posterior, of_proposal = bridged.bridge.weights
    joint = mean_of_chains(log_w + of_posterior)
    variance = joint.se.square() + of_proposal.var(0) / len(of_proposal)
    mean = log_w.flatten(0, 1).mean(0) - bridged.bridge.log_px
    return Mean(mean, variance.sqrt()), bridged
