"""Rows of several fits of one guide, seed by seed, as one row with the spread over the fits."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from evidence.experiments.storage.records import Estimate, Row, as_json

# Averaged over the fits, entry by entry; all else is the first fit's.
_AVERAGED = ("k_hat", "ess", "divergences", "train_seconds", "steps_per_second", "active_units")


def by_label(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The fits of every label, in the order of their seeds."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row)
    return found


def over_fits(rows: Sequence[Row]) -> list[Row]:
    """One row per label: means over its fits, and `fit_se` in each estimate; single fits as is."""
    return [fits[0] if len(fits) == 1 else _joined(fits) for fits in by_label(rows).values()]


def summary(joined: Sequence[Row]) -> list[dict[str, Any]]:
    """What results.json says of the labels, over all of their fits."""
    return [
        {"label": row.label, "num_fits": row.num_fits, "estimates": as_json(row.estimates)}
        for row in joined
    ]


def _joined(fits: Sequence[Row]) -> Row:
    estimates = [
        _estimate([fit.estimates[place] for fit in fits]) for place in range(len(fits[0].estimates))
    ]
    averaged = {name: _mean([getattr(fit, name) for fit in fits]) for name in _AVERAGED}
    return replace(fits[0], **averaged, estimates=estimates, num_fits=len(fits))


def _estimate(fits: Sequence[Estimate]) -> Estimate:
    """The mean of an estimate over fits: what is wrong with one fit is wrong with the mean."""
    count = len(fits)
    nats, mc_se = ([getattr(fit, name) for fit in fits] for name in ("nats", "mc_se"))
    reason = next((fit.reason for fit in fits if not fit.reliable), None)
    return replace(
        _mean(fits),
        mc_se=None if None in mc_se else math.hypot(*mc_se) / count,
        fit_se=None if None in nats else statistics.stdev(nats) / math.sqrt(count),
        num_fits=count,
        reliable=reason is None,
        reason=reason,
    )


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, or of records of them entry by entry; None if one is."""
    first = values[0]
    if any(value is None for value in values):
        return None
    if is_dataclass(first):
        means = {f.name: _mean([getattr(v, f.name) for v in values]) for f in fields(first)}
        return replace(first, **means)
    if not isinstance(first, int | float) or len(set(values)) == 1:
        return first
    return statistics.fmean(values)
