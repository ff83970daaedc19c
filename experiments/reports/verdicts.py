"""Which guide, or which model, is better: paired differences on the same data, with verdicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from evidence.experiments.reports.fits import by_label
from evidence.experiments.reports.report import markdown, plus_minus
from evidence.experiments.reports.shortfall import share_a_model
from evidence.experiments.setup.estimators import ESTIMATORS, Estimator
from evidence.experiments.setup.labels import shortened
from evidence.experiments.storage import per_datum
from evidence.experiments.storage.records import Bound, BracketRecord, Row
from evidence.inference import (
    Comparison,
    Difference,
    Evidence,
    compare_elbos,
    compare_estimates,
    compare_evidences,
)
from evidence.inference.estimation.bidirectional import likely_gap

_PAIRS_SHOWN = 6


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Every pair of labels: by ELBO on one and the same model, by evidence for models of their own.

    Where data share latents, the guides of one model estimate one number, log p(x) of the data set:
    whether their estimates agree comes last.

    The fits of a label, one row each, are judged together. How far an estimate of the evidence lies
    below it is taken from the brackets of the rows, if all have one made with the same options.

    Raises:
        ValueError: the rows were evaluated on different data.
    """
    fits = by_label(rows)
    if len(fits) < 2:
        return []
    records = _records(rows)
    if share_a_model(rows):
        found = compare_elbos(_all_of(records, "elbo"))
        weighed = [n for n in _shared(records) if _is_weighed(ESTIMATORS[n])]
        if rows[0].is_of_data_set and weighed:
            found += compare_estimates(_all_of(records, weighed[0]))
        return found
    name = _nearest(records)
    found = {label: [_gap(row, name) for row in rows] for label, rows in fits.items()}
    known = {label: [gap for gap in gaps if gap is not None] for label, gaps in found.items()}
    gaps = {label: max(gaps) for label, gaps in known.items() if len(gaps) == len(found[label])}
    return compare_evidences(_all_of(records, name), gaps=gaps)


ByFit = dict[str, list[dict[str, Evidence]]]


def _nearest(records: ByFit) -> str:
    """The estimator nearest to log p(x) that all have, and if possible all reliably."""
    every, shared = [fit for fits in records.values() for fit in fits], _shared(records)
    reliable = (
        n for n in shared if not any(getattr(fit[n], "not_reliable", None) for fit in every)
    )
    return next(reliable, shared[0])


def _is_weighed(estimator: Estimator) -> bool:
    return estimator.is_evidence and not estimator.is_exact


def _shared(records: ByFit) -> list[str]:
    """The estimators that every fit has, the nearest to log p(x) first."""
    every = [fit for fits in records.values() for fit in fits]
    return [name for name in ESTIMATORS if all(name in fit for fit in every)]


def _all_of(records: ByFit, name: str) -> dict[str, list[Evidence]]:
    return {label: [fit[name] for fit in fits] for label, fits in records.items()}


def _records(rows: Sequence[Row]) -> ByFit:
    """The records by estimator of every fit, by label."""
    found: ByFit = {}
    data: dict[str, list[int]] = {}
    for row in rows:
        chosen, records = per_datum.read(Path(row.folder))
        for estimate in row.estimates:  # reasons of other kinds than the weights show again
            name = estimate.estimator
            if not estimate.reliable:
                records[name] = replace(records[name], caveat=estimate.reason)
        first = next(iter(data), row.label)
        if chosen != data.setdefault(first, chosen):
            raise ValueError(
                f"{first} and {row.label} were evaluated on different data: evaluate both with "
                "the same --num_data"
            )
        found.setdefault(row.label, []).append(records)
    return found


def _gap(row: Row, name: str) -> float | None:
    """The most that an estimate is likely to lie below log p(x): mean + 2 SE on simulated data."""
    found = row.bracket
    if found is None:
        return None
    part: BracketRecord | Bound | None
    if name == "ais":
        part = found if row.annealing is not None and found.is_like(row.annealing) else None
    else:
        bound: Bound | None = getattr(found, name, None)
        counts = {str(e.estimator): e.num_particles for e in row.estimates}
        part = bound if bound is not None and bound.num_particles == counts[name] else None
    if part is None or part.gap_se is None:
        return None
    return likely_gap(part.gap, part.gap_se)


def to_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons as results.json has them."""
    return [
        {
            "first": one.first,
            "second": one.second,
            "quantity": one.quantity,
            "difference": one.difference.mean,
            "mc_se": one.difference.mc_se,
            "data_se": one.difference.data_se,
            "fit_se": one.difference.fit_se,
            "num_fits": one.difference.num_fits,
            "interval_95": list(one.difference.interval()),
            "gap": one.gap,
            "winner": one.winner,
            "reliable": one.not_reliable is None,
            "verdict": one.verdict,
        }
        for one in found
    ]


def verdict_table(found: Sequence[Comparison]) -> str:
    """The Markdown tables of the pairs: which guide is better, and whether estimates agree."""
    better = [one for one in found if not one.is_of_one_number]
    same = [one for one in found if one.is_of_one_number]
    tables = [_table(part) for part in (better, same) if part]
    return "\n\n".join([*tables, *_advice(better)])


def _table(found: Sequence[Comparison]) -> str:
    """Of the pairs, of very many only those with the first label."""
    shown = [c for c in found if len(found) <= _PAIRS_SHOWN or c.first == found[0].first]
    short = shortened(label for one in found for label in (one.first, one.second))
    lines = [
        {
            "difference": f"{short[one.first]} − {short[one.second]}",
            _unit(found): _with_errors(one.difference),
            "95% interval": interval_words(one.difference),
            "verdict": _in_short(one.verdict, short),
        }
        for one in shown
    ]
    text = markdown(lines, left=["verdict"])
    return f"{_caption(found, len(shown))}\n\n{text}"


def _unit(found: Sequence[Comparison]) -> str:
    return "nats" if found[0].difference.is_of_data_set else "nats per datum"


def _caption(found: Sequence[Comparison], num_shown: int) -> str:
    """What the numbers of the table are."""
    fits, of_one = found[0].difference.num_fits, found[0].difference.is_of_data_set
    errors = ("" if of_one else " ± data SE") + (" ± fit SE" if fits > 1 else "")
    if found[0].is_of_one_number:
        return (
            f"Two estimates of one number: {found[0].quantity}. ± Monte Carlo SE of the difference,"
            " which is zero but for that."
        )
    beyond = "0" if found[0].gap == 0 else "both estimators' gaps"
    rest = "" if num_shown == len(found) else f" All {len(found)} pairs are in results.json."
    allows = [*([] if of_one else ["skewed differences"]), *(["few fits"] if fits > 1 else [])]
    allowing = f", which allows for {' and '.join(allows)}," if allows else ""
    return (
        f"{'For the data set' if of_one else 'Paired by datum'}: {found[0].quantity}. ± Monte "
        f"Carlo SE{errors}. A beats B if the 95% interval{allowing} lies beyond {beyond}.{rest}"
    )


def _advice(found: Sequence[Comparison]) -> list[str]:
    """What would tell more."""
    advice = []
    if any(math.isnan(one.gap) for one in found):
        advice.append(
            "How far the lower bounds lie below is measured by `--estimator bdmc`, on data "
            "simulated from the models."
        )
    if found[0].difference.num_fits == 1:
        advice.append(
            "These are single fits, and others differ: the same command with `--seeds 3` fits "
            "everything twice more, and then judges for all fits there might be."
        )
    return advice


def _in_short(verdict: str, short: Mapping[str, str]) -> str:
    for label in sorted(short, key=len, reverse=True):
        verdict = verdict.replace(label, short[label])
    return verdict


def _with_errors(difference: Difference) -> str:
    errors = [difference.mc_se]
    errors += [] if difference.is_of_data_set else [difference.data_se]
    errors += [difference.fit_se] if difference.num_fits > 1 else []
    return f"{difference.mean:+.3f} ± {plus_minus(*errors)}"


def interval_words(difference: Difference) -> str:
    """The 95% interval, or that there is none."""
    low, high = difference.interval()
    return f"{low:+.3f} to {high:+.3f}" if math.isfinite(high - low) else "?"
