"""Weighted draws from about every peak of a posterior that climbers reach."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.hmc import weighted_sum
from evidence.inference.paths.log_joint import AbstractPath, PriorPath, Way
from evidence.inference.paths.peaks import Peaks, peaks_of

_MADS_PER_SD = 1.4826
_FEWEST_DEGREES = 5  # of freedom
_NUMBERS_AT_WORK = 2**17  # rows × data


class Found(NamedTuple):
    """Draws from about the peaks, whose weights average to p(x).

    Args:
        z: in the path's coordinates `[n, Z]`.
        log_p_xz: log p(x, u) `[n]`, in float64 and nats, as all others.
        log_q_z: log q(u) under the guide `[n]`; −inf where the path has none.
        log_proposal: log of the density that they are from `[n]`.
    """

    z: Tensor
    log_p_xz: Tensor
    log_q_z: Tensor
    log_proposal: Tensor

    @property
    def log_w(self) -> Tensor:
        """Log-weights `[n]`, whose exponentials average to p(x)."""
        return (self.log_p_xz - self.log_proposal).nan_to_num(nan=-math.inf)

    @property
    def log_ratio(self) -> Tensor:
        """Log p(x, u) − log q(u), the log-weights that the guide would have there: `[n]`."""
        return self.log_p_xz - self.log_q_z


class _Effort(NamedTuple):
    """How much is done: less where a row, or a draw of the prior, costs much."""

    num_starts: int
    num_screened: int
    num_draws: int
    rows: int  # at a time

    @classmethod
    def of(cls, path: AbstractPath) -> "_Effort":
        if path.way is Way.ONE_BY_ONE:
            return cls(16, 64, 400, 1000)
        rows = max(1, _NUMBERS_AT_WORK // len(path.x))
        num_starts = min(max(rows, 16), 64)
        num_screened = (16 if path.way is Way.PLATE else 4) * num_starts
        return cls(num_starts, num_screened, min(max(4 * rows, 400), 2000), min(rows, 1000))


def search(path: AbstractPath, prior: PriorPath, level: float) -> "StudentMixture | None":
    """Climb log p(x, u) from draws of the prior and about the guide; what to draw about the peaks.

    Args:
        path: of a model whose data share latents; from its prior, or from a guide.
        prior: the path from the prior of the same model.
        level: the log-ratio above which the guide comes seldom, which is looked at more.

    Returns:
        None where the density has no peak.
    """
    effort = _Effort.of(path)
    starts, spread, widest = _starts(path, prior, effort, level)
    peaks = peaks_of(lambda z: _scored(path, z, effort.rows)[0], starts, spread, widest)
    return StudentMixture(peaks) if len(peaks.z) else None


def weighed(path: AbstractPath, proposal: "StudentMixture", times: int = 1) -> Found:
    """Draws about the peaks with their weights; some `times` as many as is usual."""
    effort = _Effort.of(path)
    num_each = math.ceil(times * effort.num_draws / len(proposal.locs))
    z = proposal.sample(num_each).to(path.x.device, proposal.dtype)
    log_p_xz, log_q_z = _scored(path, z, effort.rows)
    return Found(z, log_p_xz.double(), log_q_z.double(), proposal.log_prob(z))


def _scored(path: AbstractPath, z: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """`_terms`, so many rows at a time."""
    parts = zip(*(_terms(path, rows) for rows in z.split(num_rows)), strict=True)
    log_p, log_q = map(torch.cat, parts)
    return log_p, log_q


def _terms(path: AbstractPath, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x, u) and log q(u), or −inf without a guide, at `z` `[C, Z]`: `[C]` and `[C]`."""
    terms = torch.stack(list(path(z.unsqueeze(1)))).squeeze(-1)
    log_p = weighted_sum(path.weights(1.0), terms)
    return log_p, terms[0] if isinstance(path, GuidePath) else torch.full_like(log_p, -math.inf)


def _starts(
    path: AbstractPath, prior: PriorPath, effort: _Effort, level: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Where to climb from `[C, Z]`, and how wide guide and prior are, each `[Z]`.

    Half of them are draws of the prior, others the highest of many more, of those where the guide
    comes seldom: a narrow mode is all but hidden in a wide prior.
    """
    of_prior = prior.sample(effort.num_screened)[:, 0]
    few = effort.num_starts // 8
    about: list[Tensor] = []
    if isinstance(path, GuidePath):
        draws = path.sample(effort.num_starts)[:, 0]
        center, spread = _about(draws)
        of_prior = _located(path, of_prior, center, spread)
        about = [draws[:few], center + 3 * spread * torch.randn_like(draws[:few])]
        widest = torch.maximum(_about(of_prior)[1], spread)
    else:
        spread = widest = _about(of_prior)[1]
    log_p, log_q = _scored(path, of_prior, effort.rows)
    highest = torch.where(log_p - log_q > level, log_p, -math.inf).topk(effort.num_starts // 2)
    screened = of_prior[highest.indices[highest.values > -math.inf]]
    return torch.cat([of_prior[: effort.num_starts // 2], screened, *about]), spread, widest


def _about(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The median and the spread, by median absolute deviations, of draws `[C, Z]`."""
    center = draws.nanmedian(0).values
    spread = _MADS_PER_SD * (draws - center).abs().nanmedian(0).values
    return center, torch.where(spread > 0, spread, 1.0)


def _located(path: GuidePath, latents: Tensor, center: Tensor, spread: Tensor) -> Tensor:
    """The guide's coordinates of a model's latents `[C, Z]`, as if one were linear in the other.

    It mostly is; and where climbers start need not be exact.
    """
    offsets = torch.cat([spread.diag(), -spread.diag(), torch.zeros_like(spread).unsqueeze(0)])
    ahead, behind, at = (
        path.model_latents((center + offsets).unsqueeze(1))[:, 0]
        .double()
        .tensor_split((len(center), 2 * len(center)))
    )
    slopes = (ahead - behind) / (2 * spread.double()).unsqueeze(-1)  # of latents by coordinates
    off = (latents.double() - at) @ torch.linalg.pinv(slopes.nan_to_num(0.0, 0.0, 0.0))
    return (center.double() + off).to(center)


class StudentMixture:
    """Student's t over every peak, each as likely as all others.

    Args:
        peaks: their places and covariances.
    """

    def __init__(self, peaks: Peaks) -> None:
        self.locs, self.factors = peaks.z.double(), peaks.factors
        self.dtype = peaks.z.dtype  # of the path that they are of
        # As many as dimensions: the radius then varies no more than that of a Gaussian.
        self.degrees = max(_FEWEST_DEGREES, self.locs.shape[1])

    def sample(self, num_each: int) -> Tensor:
        """So many draws of every peak: `[K · num_each, Z]`."""
        num_peaks, dim = self.locs.shape
        noise = self.locs.new_empty(num_peaks, num_each, dim).normal_()
        chi2 = torch.distributions.Chi2(self.locs.new_tensor(float(self.degrees)))
        radius = (chi2.sample((num_peaks, num_each, 1)) / self.degrees).rsqrt()
        return (self.locs.unsqueeze(1) + radius * noise @ self.factors.mT).flatten(0, 1)

    def log_prob(self, z: Tensor) -> Tensor:
        """At `z` `[n, Z]`: `[n]`, in nats."""
        dim, degrees = self.locs.shape[1], self.degrees
        logs = []
        for loc, factor in zip(self.locs, self.factors, strict=True):
            off = torch.linalg.solve_triangular(factor, (z.double() - loc).mT, upper=False)
            log_det = factor.diagonal().abs().log().sum()
            logs.append(-log_det - (degrees + dim) / 2 * (off.square().sum(0) / degrees).log1p())
        norm = math.lgamma((degrees + dim) / 2) - math.lgamma(degrees / 2)
        norm -= dim / 2 * math.log(degrees * math.pi) + math.log(len(logs))
        return norm + torch.stack(logs).logsumexp(0)
