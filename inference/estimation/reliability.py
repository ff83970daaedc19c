"""Whether the weights behind an estimate support it: what they show, in words, and what helps."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evidence.inference.programs import estimators

if TYPE_CHECKING:
    from evidence.inference.estimation.evidence import Evidence

# The share of the data whose weights may fail to support their estimates, beyond what noise in k̂
# alone brings about.
MOST_UNSUPPORTED = 0.05
# 1/ESS − 1/S of weights that one of them dominates: an effective sample of fewer than four.
_DOMINATED = 0.25

# k̂ above which no number of weights is large enough (Vehtari et al. 2024, section 3.2.4).
_LARGEST = 0.7
# k̂ above which weights have no variance: then a single estimate has no error bar that holds. In
# trials with tails of 0.6, a fifth of the estimates with a k̂ below 0.7 were off by more than 2 SE.
_LARGEST_OF_ONE = 0.5

_REMEDIES = {
    "iw": "use a guide closer to the posterior, many more particles, or --estimator ais "
    "(annealed_evidence)",
    "psis": "use a guide closer to the posterior, many more particles, or annealed_evidence",
    "ais": "anneal more slowly (num_temperatures), then with more chains (num_chains)",
    "smc": "use more chains in each island (num_chains), then longer ones (num_steps)",
    "bridge": "use a guide closer to the posterior, or more draws of both",
    "nested": "use more live points (num_live)",
}
_BY_GUIDE = ("iw", "psis")
_DEFENCE = (
    "weigh a mixture with wider tails than the guide (importance_weighted_evidence with "
    "defensive=0.2, --defensive 0.2), or ask marginal_likelihood (evidence marginal), which needs "
    "no guide"
)
_WITHOUT_TAIL = ("smc", "nested")  # whose weights are made alike by temperatures, or by levels
# Chance of the drift of chains in equilibrium, below which it is none.
_DRIFT_BY_CHANCE = 1e-2
_OTHERWISE = "write narrow latents as scale × standard normal (non-centred), or begin from a guide"
# The least effective share of islands: below it, few of them have found what counts most.
_LEAST_ISLANDS = 0.7
# Nats by which the largest likelihood of many draws may fall from one temperature to the next.
_LARGEST_LOSS = 2.0


def k_hat_threshold(evidence: "Evidence", num_particles: int) -> float:
    """The largest trustworthy k̂ of so many particles; of one estimate for a data set, 0.5."""
    threshold = estimators.k_hat_threshold(num_particles)
    return min(threshold, _LARGEST_OF_ONE) if _is_of_one(evidence) else threshold


def _is_of_one(evidence: "Evidence") -> bool:
    """Whether the weights of a guide are behind one number, which no others make up for."""
    return evidence.data_set_size is not None and evidence.estimator in _BY_GUIDE


def dominated(evidence: "Evidence") -> Tensor:
    """Whether one weight is most of the sum, for every datum `[B]`."""
    counts = evidence.particles_per_datum.to(evidence.ess).clamp(min=1)
    return (1 / evidence.ess - 1 / counts > _DOMINATED) | evidence.log_px_variance.isinf()


def unsupported(evidence: "Evidence") -> Tensor:
    """Whether a datum's own weights speak against its estimate `[B]`.

    They do where k̂ is above its threshold, where one weight dwarfs the sum of all others, and
    where all are zero. Of fewer than 30 weights there is no k̂, and heavy tails do not show: only
    the second sign is left. A mean of log w, the ELBO, needs no such support.
    """
    infinite = ~evidence.log_px.isfinite()
    if evidence.estimator not in _REMEDIES:
        return infinite
    return infinite | (_excess(evidence) > 0) | dominated(evidence)


def reason(evidence: "Evidence") -> str | None:
    """Why the mean over the data is not to be relied on, and what would help; None if it is.

    k̂ of few weights is noisy: the share of data above the threshold counts only as far as that
    noise does not explain it. A datum that hangs on one weight does, as its error has no bound.
    """
    if infinite := int((~evidence.log_px.isfinite()).sum()):
        which = "the estimate" if evidence.num_data == 1 else f"{infinite} of the estimates"
        remedy = _REMEDIES.get(evidence.estimator, "look at these data")
        return f"{which} is not finite, as all weights are zero: {remedy}"
    if evidence.caveat is not None:
        return evidence.caveat
    if evidence.estimator not in _REMEDIES:
        return None
    hang, is_heavy = dominated(evidence), _too_many_heavy(evidence)
    several = hang.double().mean() > MOST_UNSUPPORTED or (hang & ~evidence.k_hat.isnan()).any()
    what = []
    if is_heavy:
        heavy = int((_excess(evidence) > 0).sum())
        what.append(f"k̂ is too large{_of(heavy, evidence)}")
    if several:
        what.append(f"a single weight dominates{_of(int(hang.sum()), evidence)}")
    return f"{' and '.join(what)}: {_remedy(evidence)}" if what else None


def _remedy(evidence: "Evidence") -> str:
    """What helps; the cheapest first, where it has not been tried."""
    remedy = _REMEDIES[evidence.estimator]
    if _is_of_one(evidence) and not evidence.defensive:
        return f"{_DEFENCE}; or {remedy}"
    return remedy


def _too_many_heavy(evidence: "Evidence") -> bool:
    """Whether more k̂ are too large than their noise about the median explains."""
    excess = _excess(evidence)
    excess = excess[~excess.isnan()]
    if not len(excess):
        return False
    by_noise = torch.special.ndtr(excess.median())
    return bool((excess > 0).double().mean() > min(MOST_UNSUPPORTED + by_noise, 0.5))


def _excess(evidence: "Evidence") -> Tensor:
    """How far k̂ is above what speaks against an estimate, in its standard errors: `[B]`.

    That is the threshold and one standard error, 0.7 at the most: the threshold for few weights
    is lower than the noise that few weights leave in k̂. NaN where there is no k̂. Of one estimate
    for a data set it is what leaves a variance: no other data make up for its error.
    """
    counts = evidence.particles_per_datum.to(evidence.k_hat)
    tail = torch.minimum(0.2 * counts, 3 * counts.sqrt())
    # (1 + k)/√M for a tail of M weights, shrunk as the fit's prior worth ten weights does.
    noise = (1 + evidence.k_hat.clamp(0, 1)) * tail.sqrt() / (tail + 10)
    thresholds = evidence.k_hat_thresholds()
    if _is_of_one(evidence):
        return (evidence.k_hat - thresholds) / noise
    limit = torch.clamp(thresholds + noise, max=_LARGEST)
    return (evidence.k_hat - limit) / noise


def _of(count: int, evidence: "Evidence") -> str:
    return "" if evidence.num_data == 1 else f" for {count} of {evidence.num_data} data"


def diagnostics(evidence: "Evidence") -> str:
    """ESS and k̂ in words; empty for a record without weights."""
    if evidence.estimator not in _REMEDIES or evidence.num_particles < 2:
        return ""
    text = f"ESS {_median(evidence.ess):,.0f}"
    if evidence.estimator in _WITHOUT_TAIL:
        return text
    if evidence.k_hat.isnan().all():
        return f"{text}, no k̂ (so few weights would not show heavy tails)"
    text += f", k̂ {_median(evidence.k_hat):.2f}"
    if evidence.num_data == 1:
        return text
    share = evidence.share_bad
    return f"{text} (medians), above {evidence.k_hat_threshold:.2f} for {share:.1%} of the data"


def edge_caveat(on_edge: Tensor, mc_se: float, dtype: torch.dtype | None) -> str | None:
    """What to say where the mass on the edge of supports `[B]` makes for more than the error bar.

    What lies there is not told from its neighbours: about −log(1 − share) nats are lost.
    """
    share = on_edge.mean().item()
    if not share > 1 - math.exp(-max(1e-3, mc_se)):  # in this order NaN counts for nothing
        return None
    remedy = "let the model draw it on an unconstrained scale"
    if dtype != torch.float64:
        remedy = "compute in double (model.double(), guide.double(), x.double(); --dtype float64)"
    number = "its precision" if dtype is None else str(dtype).removeprefix("torch.")
    return f"{share:.1%} of the draws are on the edge of a support, where {number} ends: {remedy}"


def smc_caveat(log_px: Tensor, drift: Tensor, lost_peak: Tensor) -> str | None:
    """What to say where chains and islands of sequential Monte Carlo speak against its estimate.

    Args:
        log_px: of every island `[R, B]`.
        drift: see `smc_readings.drift` `[B]`.
        lost_peak: see `smc_readings.lost_peak` `[B]`.
    """
    drifting = drift < _DRIFT_BY_CHANCE
    if drifting.double().mean() > MOST_UNSUPPORTED:
        return (
            "chains still move to where the particles have not been, and a part of the posterior "
            f"is missing (p = {drift.min():.0e} without): {_OTHERWISE}"
        )
    ess = estimators.ess(log_px).nan_to_num(nan=0.0)
    if (ess < _LEAST_ISLANDS * len(log_px)).double().mean() > MOST_UNSUPPORTED:
        return (
            f"the islands vary too widely (ESS {_median(ess):.1f} of {len(log_px)}), as where few "
            f"of them find a mode: {_REMEDIES['smc']}; or {_OTHERWISE}"
        )
    if (lost_peak > _LARGEST_LOSS).double().mean() > MOST_UNSUPPORTED:
        return (
            f"a mode was lost, whose likelihood is {lost_peak.max():.1f} nats above all that is "
            f"left: {_REMEDIES['smc']}"
        )
    return None


def _median(values: Tensor) -> float:
    """Of the entries that are not NaN."""
    return values.double().nanmedian().item()
