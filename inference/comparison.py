"""Paired comparison of guides or models on the same data, with a verdict that can be defended."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist

import torch
from scipy.stats import t as student_t
from torch import Tensor

from inference.evidence import Evidence


@dataclass(frozen=True)
class Difference:
    """A − B for every datum, in nats; larger is better for A.

    Paired: what makes a datum hard for both sides cancels, so that `data_se` is far below that of
    either side. The two error bars are those of `Evidence`, and never mixed.

    Args:
        per_datum: the differences `[B]`.
        variance: their Monte Carlo variances `[B]`.
    """

    per_datum: Tensor
    variance: Tensor

    @property
    def num_data(self) -> int:
        """B, the number of data."""
        return len(self.per_datum)

    @property
    def mean(self) -> float:
        """Mean over the data, nats per datum."""
        return self.per_datum.double().mean().item()

    @property
    def mc_se(self) -> float:
        """Standard error of `mean` from the finite number of particles, the data held fixed."""
        return math.sqrt(self.variance.double().sum().item()) / self.num_data

    @property
    def data_se(self) -> float:
        """Standard error of `mean` from the finite data, the particles' share taken out.

        NaN for a single datum.
        """
        if self.num_data == 1:
            return math.nan
        spread = self.per_datum.double().var().item() - self.variance.double().mean().item()
        return math.sqrt(max(spread, 0.0) / self.num_data)

    @property
    def se(self) -> float:
        """Standard error of `mean` as an estimate for all data there might be: both together."""
        return math.hypot(self.mc_se, self.data_se)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean over all data there might be, by Student's t.

        Raises:
            ValueError: a level outside of 0..1.
        """
        if not 0 < level < 1:
            raise ValueError(f"expected a level between 0 and 1, got {level}")
        half = self._quantile(0.5 + level / 2) * self.se
        return self.mean - half, self.mean + half

    @property
    def two_se(self) -> float:
        """2 SE, and with few data more: half the 95.4% interval by Student's t."""
        return self._quantile(NormalDist().cdf(2.0)) * self.se

    def _quantile(self, probability: float) -> float:
        return float(student_t.ppf(probability, self.num_data - 1))

    def __str__(self) -> str:
        return (
            f"{self.mean:+.4f} nats per datum, ± {self.mc_se:.4f} (Monte Carlo), "
            f"± {self.data_se:.4f} ({self.num_data} data)"
        )


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
    """

    first: str
    second: str
    quantity: str
    difference: Difference
    gap: float
    winner: str | None

    @property
    def verdict(self) -> str:
        """One sentence: who beats whom, or that no difference was shown, and why."""
        if self.winner is not None:
            loser = self.second if self.winner == self.first else self.first
            return f"{self.winner} beats {loser}"
        if math.isnan(self.gap):
            return "no difference shown: how far the lower bounds lie below is unknown; pass gaps"
        if math.isnan(self.difference.se):
            return "no difference shown: there is no standard error"
        if self.gap == 0:
            return "no difference shown: not more than 2 SE"
        return f"no difference shown: not more than the gap of {self.gap:.4f} and 2 SE"

    def __str__(self) -> str:
        low, high = self.difference.interval()
        return (
            f"{self.quantity}, {self.first} − {self.second}: {self.difference}, "
            f"95% interval {low:+.4f} to {high:+.4f}: {self.verdict}"
        )


def paired_difference(first: Evidence, second: Evidence) -> Difference:
    """`first` − `second`, datum by datum; their particles are taken to be independent.

    Particles with common noise make the Monte Carlo SE too large, not too small, where both sides
    rise and fall together.

    Raises:
        ValueError: records over different numbers of data, or an estimate that is not finite.
    """
    if first.num_data != second.num_data:
        raise ValueError(
            "expected records over the same data, got "
            f"{first.num_data} and {second.num_data} of them"
        )
    for record in (first, second):
        if bad := int((~torch.isfinite(record.log_px)).sum()):
            raise ValueError(
                f"expected finite estimates, got {bad} of {record.num_data} that are not: leave "
                "these data out on both sides"
            )
    return Difference(
        first.log_px.double() - second.log_px.double(),
        first.log_px_variance.double() + second.log_px_variance.double(),
    )


def compare_elbos(records: Mapping[str, Evidence]) -> list[Comparison]:
    """Every pair of guides *of one model*, by their ELBOs on the same data.

    The evidence is the same for all and cancels: ELBO_A − ELBO_B = KL(q_B ‖ p) − KL(q_A ‖ p), with
    no bound between the numbers and their meaning, so A beats B by more than 2 SE.

    Args:
        records: "elbo" records by label; of the same data, in the same order.

    Raises:
        ValueError: a record of another estimator, fewer than two, or as `paired_difference`.
    """
    for label, record in records.items():
        if record.estimator != "elbo":
            raise ValueError(f'expected "elbo" records, got "{record.estimator}" for {label!r}')
    quantity = "ELBO of guides of one model (closeness to its posterior)"
    return _compare_all(records, quantity, dict.fromkeys(records, 0.0))


def compare_evidences(
    records: Mapping[str, Evidence], *, gaps: float | Mapping[str, float] | None = None
) -> list[Comparison]:
    """Every pair of models, by their evidence on the same data.

    Estimates of the evidence are lower bounds, and how far below differs from model to model: A
    beats B if the difference is larger than both gaps by more than 2 SE. Where a gap is unknown
    nothing can be shown; exact records have none. The ELBO counts as an estimate too, with a gap of
    its own.

    Pairs are judged one by one: among many labels a few differences of 2 SE come by chance.

    Args:
        records: records by label; of the same data, in the same order.
        gaps: bound on log p(x) − E[log p̂(x)], in nats per datum, for all or by label, such as that
            of bidirectional Monte Carlo.

    Raises:
        ValueError: a gap that is negative or of no label, fewer than two records, or as
            `paired_difference`.
    """
    return _compare_all(records, "evidence of models", _gaps_by_label(records, gaps))


def _gaps_by_label(
    records: Mapping[str, Evidence], gaps: float | Mapping[str, float] | None
) -> dict[str, float]:
    """The gap of every label; NaN where it is unknown."""
    given = gaps if isinstance(gaps, Mapping) else dict.fromkeys(records, gaps)
    if odd := sorted(given.keys() - records.keys()):
        raise ValueError(f"expected gaps of {sorted(records)}, got one of {odd[0]!r}")
    by_label = {}
    for label, record in records.items():
        gap = 0.0 if record.estimator == "exact" else given.get(label)
        if gap is not None and not gap >= 0:
            raise ValueError(f"expected a gap of at least 0 nats, got {gap} for {label!r}")
        by_label[label] = math.nan if gap is None else gap
    return by_label


def _compare_all(
    records: Mapping[str, Evidence], quantity: str, gaps: Mapping[str, float]
) -> list[Comparison]:
    if len(records) < 2:
        raise ValueError(f"expected at least two records to compare, got {len(records)}")
    comparisons = []
    for first, second in itertools.combinations(records, 2):
        difference = paired_difference(records[first], records[second])
        known = not (math.isnan(gaps[first]) or math.isnan(gaps[second]))
        gap = max(gaps[first], gaps[second]) if known else math.nan
        winner = _winner(first, second, difference, gap)
        comparisons.append(Comparison(first, second, quantity, difference, gap, winner))
    return comparisons


def _winner(first: str, second: str, difference: Difference, gap: float) -> str | None:
    """Who is better by more than the gap and 2 SE; a NaN among them shows nothing."""
    if not abs(difference.mean) - gap > difference.two_se:
        return None
    return first if difference.mean > 0 else second
