"""Which guide, or which model, is better: paired differences on the same data, with verdicts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import per_datum
from experiments.config import ANNEALING
from experiments.numbers import json_number
from experiments.report import Row, markdown
from inference import Comparison, Evidence, compare_elbos, compare_evidences

_PAIRS_SHOWN = 6


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Every pair of rows: by ELBO on one and the same model, by evidence for models of their own.

    How far an estimate of the evidence lies below it is taken from the bracket of the row, if it
    has one that was made with the same options.

    Raises:
        ValueError: the rows were evaluated on different data.
    """
    if len(rows) < 2:
        return []
    records = _records(rows)
    if rows[0]["decoder"] == "frozen" or rows[0]["num_model_parameters"] == 0:
        return compare_elbos({label: found["elbo"] for label, found in records.items()})
    name = next(n for n in ("exact", "ais", "iw", "elbo") if all(n in r for r in records.values()))
    gaps = {row["label"]: gap for row in rows if (gap := _gap(row, name)) is not None}
    return compare_evidences({label: found[name] for label, found in records.items()}, gaps=gaps)


def _records(rows: Sequence[Row]) -> dict[str, Mapping[str, Evidence]]:
    """Every row's records by estimator, by label."""
    read = {row["label"]: per_datum.read(Path(row["folder"])) for row in rows}
    (first, data), *others = ((label, chosen) for label, (chosen, _) in read.items())
    for label, chosen in others:
        if chosen != data:
            raise ValueError(
                f"{first} and {label} were evaluated on different data: evaluate both with the "
                "same --num_data"
            )
    return {label: records for label, (_, records) in read.items()}


def _gap(row: Row, name: str) -> float | None:
    """The most that an estimate is likely to lie below log p(x): mean + 2 SE on simulated data."""
    found = row["bracket"]
    if found is None:
        return None
    part: Mapping[str, Any] | None = found.get(name)
    if name == "ais":
        same = all(found[option] == row["annealing"][option] for option in ANNEALING)
        part = found if same else None
    elif part is not None:
        counts = {e["estimator"]: e["num_particles"] for e in row["estimates"]}
        part = part if part["num_particles"] == counts[name] else None
    if part is None or part["gap_se"] is None:
        return None
    return max(part["gap"], 0.0) + 2 * part["gap_se"]


def to_json(found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The comparisons as results.json has them."""
    return [
        {
            "first": one.first,
            "second": one.second,
            "quantity": one.quantity,
            "difference": one.difference.mean,
            "mc_se": json_number(one.difference.mc_se),
            "data_se": json_number(one.difference.data_se),
            "interval_95": [json_number(end) for end in one.difference.interval()],
            "gap": json_number(one.gap),
            "winner": one.winner,
            "verdict": one.verdict,
        }
        for one in found
    ]


def verdict_table(found: Sequence[Comparison]) -> str:
    """The Markdown table of the pairs, of very many only those with the first label."""
    shown = [c for c in found if len(found) <= _PAIRS_SHOWN or c.first == found[0].first]
    lines = [
        {
            "difference": f"{one.first} − {one.second}",
            "nats per datum": _with_errors(one),
            "95% interval": _interval(one),
            "verdict": one.verdict,
        }
        for one in shown
    ]
    text = markdown(lines, left=["verdict"])
    rest = "" if len(shown) == len(found) else f" All {len(found)} pairs are in results.json."
    return (
        f"Paired by datum: {found[0].quantity}. ± Monte Carlo SE ± data SE. A beats B if the "
        f"difference exceeds both estimators' gaps and 2 SE.{rest}\n\n{text}"
    )


def _with_errors(one: Comparison) -> str:
    difference = one.difference
    errors = (difference.mc_se, difference.data_se)
    return " ± ".join([f"{difference.mean:+.3f}", *(_number(error) for error in errors)])


def _interval(one: Comparison) -> str:
    low, high = one.difference.interval()
    return "?" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "?"
