"""Paired comparison of guides or models on the same data, with a verdict that can be defended."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evidence.inference.estimation.difference import Difference, fits_of, paired_difference
from evidence.inference.estimation.evidence import Evidence
from evidence.inference.estimation.mean_interval import MIN_DATA

_AGREEING = 3.0  # standard errors of a difference that is zero

# One record per label, or one per fit: a label's estimates on the same data after several fits.
Records = Mapping[str, Evidence | Sequence[Evidence]]


@dataclass(frozen=True)
class Comparison:
    """Two labels, what was compared, their difference, and what it shows.

    Args:
        first: label of A.
        second: label of B.
        quantity: what is compared, in words.
        difference: A − B.
        gap: how far either estimate may lie below what it estimates, in nats; NaN if unknown.
        winner: the label that was shown to be better, or None.
        is_of_one_number: whether A and B are estimates of one and the same number.
        not_reliable: which estimate its own diagnostics do not support, and why; or None.
    """

    first: str
    second: str
    quantity: str
    difference: Difference
    gap: float
    winner: str | None
    not_reliable: str | None = None
    is_of_one_number: bool = False

    @property
    def verdict(self) -> str:
        """One sentence: who beats whom, or that no difference was shown, and why.

        Of two estimates of one number: whether they agree.
        """
        if self.is_of_one_number:
            return self._agreement()
        if self.winner is not None:
            loser = self.second if self.winner == self.first else self.first
            fits = "" if self.difference.num_fits > 1 else ", for these fits"
            return f"{self.winner} beats {loser}{fits}"
        return f"no difference shown: {self._reason()}"

    def _agreement(self) -> str:
        if self.not_reliable is not None:
            return f"nothing to tell: {self.not_reliable.partition(' (')[0]}"  # the rest is said
        z_score = self.difference.mean / self.difference.mc_se
        if math.isnan(z_score):
            return "nothing to tell: there is no standard error"
        if abs(z_score) <= _AGREEING:
            return f"they agree ({z_score:+.1f} SE)"
        return (
            f"they DISAGREE by {abs(z_score):.1f} SE: one guide at least misses a part of the "
            "posterior, and so does its error bar"
        )

    def _reason(self) -> str:
        if self.not_reliable is not None:
            return self.not_reliable
        if math.isnan(self.gap):
            return "how far the lower bounds lie below is unknown"
        if math.isnan(self.difference.se):
            return "there is no standard error"
        if self.difference.num_data < MIN_DATA and not self.difference.is_of_data_set:
            return (
                f"{self.difference.num_data} data are too few for an interval that holds for "
                f"skewed differences: {MIN_DATA} at least"
            )
        if self.gap == 0:
            return "the 95% interval holds 0"
        return f"not more than the gap of {self.gap:.4f} by the 95% interval"

    def __str__(self) -> str:
        low, high = self.difference.interval()
        interval = "" if math.isnan(low) else f", 95% interval {low:+.4f} to {high:+.4f}"
        return (
            f"{self.quantity}, {self.first} − {self.second}: {self.difference}{interval}: "
            f"{self.verdict}"
        )


def compare_elbos(records: Records) -> list[Comparison]:
    """Every pair of guides *of one model*, by their ELBOs on the same data.

    The evidence is the same for all and cancels: ELBO_A − ELBO_B = KL(q_B ‖ p) − KL(q_A ‖ p), with
    no bound between the numbers and their meaning: A beats B where the 95% interval excludes 0.

    Args:
        records: "elbo" records by label; of the same data, in the same order. One fit tells
            nothing of the next: pass a sequence of records, one per training seed, for verdicts
            that hold for other fits too.

    Raises:
        ValueError: a record of another estimator, fewer than two, or as `paired_difference`.
    """
    for label, fits in records.items():
        for record in fits_of(fits):
            if record.estimator != "elbo":
                raise ValueError(f'expected "elbo" records, got "{record.estimator}" for {label!r}')
    quantity = "ELBO of guides of one model (closeness to its posterior)"
    return _compare_all(records, quantity, dict.fromkeys(records, 0.0))


def compare_evidences(
    records: Records, *, gaps: float | Mapping[str, float] | None = None
) -> list[Comparison]:
    """Every pair of models, by their evidence on the same data.

    Estimates of the evidence are lower bounds, and how far below differs from model to model: A
    beats B if the 95% interval of the difference lies beyond both gaps. Where a gap is unknown, or
    an estimate is not reliable, nothing can be shown; exact records have no gap. The ELBO counts as
    an estimate too, with a gap of its own.

    Pairs are judged one by one: among many labels one pair of equals in twenty differs by chance.

    Args:
        records: records by label, one or a sequence of one per fit; of the same data, in the same
            order.
        gaps: bound on log p(x) − E[log p̂(x)], in nats per datum, for all or by label, such as that
            of bidirectional Monte Carlo.

    Raises:
        ValueError: a gap that is negative or of no label, fewer than two records, or as
            `paired_difference`.
    """
    return _compare_all(records, "evidence of models", _gaps_by_label(records, gaps))


def compare_estimates(records: Records) -> list[Comparison]:
    """Every pair of estimates of *one number*: log p(x) of one model and data set, by two guides.

    Their difference is zero but for the Monte Carlo errors of both, so that more than three
    standard errors of it show that an error bar is wrong.

    Args:
        records: by label, each of the one data set whose latents are shared.

    Raises:
        ValueError: fewer than two records, or as `paired_difference`.
    """
    found = _compare_all(records, "log p(x) of one model, estimated twice", {})
    return [replace(one, is_of_one_number=True) for one in found]


def _gaps_by_label(records: Records, gaps: float | Mapping[str, float] | None) -> dict[str, float]:
    """The gap of every label; NaN where it is unknown."""
    given = gaps if isinstance(gaps, Mapping) else dict.fromkeys(records, gaps)
    if odd := sorted(given.keys() - records.keys()):
        raise ValueError(f"expected gaps of {sorted(records)}, got one of {odd[0]!r}")
    by_label = {}
    for label, fits in records.items():
        exact = all(record.estimator == "exact" for record in fits_of(fits))
        gap = 0.0 if exact else given.get(label)
        if gap is not None and not gap >= 0:
            raise ValueError(f"expected a gap of at least 0 nats, got {gap} for {label!r}")
        by_label[label] = math.nan if gap is None else gap
    return by_label


def _compare_all(records: Records, quantity: str, gaps: Mapping[str, float]) -> list[Comparison]:
    if len(records) < 2:
        raise ValueError(f"expected at least two records to compare, got {len(records)}")
    comparisons = []
    for first, second in itertools.combinations(records, 2):
        difference = paired_difference(records[first], records[second])
        both = [gaps.get(label, math.nan) for label in (first, second)]
        gap = math.nan if any(map(math.isnan, both)) else max(both)
        not_reliable = _not_reliable(records, first) or _not_reliable(records, second)
        winner = None if not_reliable else _winner(first, second, difference, gap)
        comparisons.append(
            Comparison(first, second, quantity, difference, gap, winner, not_reliable)
        )
    return comparisons


def _not_reliable(records: Records, label: str) -> str | None:
    """What is wrong with the estimates of a label, by their own diagnostics."""
    for record in fits_of(records[label]):
        if reason := record.not_reliable:
            return f"{label} is NOT RELIABLE ({reason})"
    return None


def _winner(first: str, second: str, difference: Difference, gap: float) -> str | None:
    """Who is better by more than the gap, at 95%; a NaN among them shows nothing."""
    low, high = difference.interval()
    if low > gap:
        return first
    return second if high < -gap else None
