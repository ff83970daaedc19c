"""The pictures of a comparison: estimates, shortfalls and paired differences; and the two gaps.

Every function returns a matplotlib `Figure`; `plots.save` writes it. Guides stand one below the
other, so that their labels can be read.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evidence.experiments.reports.shortfall import Shortfall, shortfalls
from evidence.experiments.setup.estimators import ESTIMATORS
from evidence.experiments.setup.labels import wrapped
from evidence.experiments.storage.records import Estimate, Row
from evidence.inference import Comparison

_FONT = {"size": 13}
_DIFFERENT, _ALIKE = "#0072B2", "0.6"


def evidence_bars(rows: Sequence[Row], found: Sequence[Comparison] = ()) -> Figure:
    """ELBO and evidence per guide, what the ELBO lacks, and the differences to the first guide.

    The estimates share their data, so that the bars of the first panel say nothing about their
    differences: those are the third panel's, paired by datum, with the intervals of the verdicts.
    What is not reliable is drawn hollow, without a bar.

    Args:
        rows: rows of results.json, one per label.
        found: the comparisons of the rows, if there are any.
    """
    lacking = shortfalls(rows)
    first_label = rows[0].label
    paired = [one for one in found if one.first == first_label and not one.is_of_one_number]
    count = 1 + (lacking is not None) + bool(paired)
    size = (4.6 * count + 2.2, max(0.62 * len(rows), 1.6) + 2.4)
    figure = Figure(figsize=size, layout="constrained")
    panels = iter(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    first = next(panels)
    _values(first, rows)
    if lacking is not None:
        _shortfalls(next(panels), lacking, _unit(rows))
    if paired:
        _differences(next(panels), paired, [row.label for row in rows], _unit(rows))
    labels = wrapped(row.label for row in rows)
    first.set_yticks(range(len(rows)), [labels[row.label] for row in rows], fontsize=12)
    first.set_ylim(len(rows) - 0.4, -0.6)
    for axes in figure.axes:
        axes.grid(axis="x", alpha=0.3)
        axes.tick_params(axis="y", length=0)
    return figure


def _values(axes: Axes, rows: Sequence[Row]) -> None:
    estimates = [{e.estimator: e for e in row.estimates} for row in rows]
    shown = [name for name in ESTIMATORS if any(name in by_name for by_name in estimates)]
    hollow = False
    for number, name in enumerate(shown):
        offset = 0.18 * (number - (len(shown) - 1) / 2)
        style: dict[str, Any] = {
            "color": ESTIMATORS[name].colour,
            "marker": ESTIMATORS[name].marker,
        }
        for place, by_name in enumerate(estimates):
            if name in by_name and by_name[name].nats is not None:
                _estimate(axes, place + offset, by_name[name], style)
                hollow |= not by_name[name].reliable
        axes.plot([], [], linestyle="", label=ESTIMATORS[name].legend, **style)
    if hollow:
        axes.plot([], [], "o", color="0.4", markerfacecolor="none", label="NOT RELIABLE")
    bars = "± 2 SE of the test set,\nwhich all guides share"
    if rows[0].is_of_data_set:
        bars = "± 2 Monte Carlo SE"
    unit = _unit(rows, rows[0].split)
    _title(axes, f"estimates; {bars}", f"{unit}, larger is better")
    _legend(axes, len(shown) + hollow)


def _estimate(axes: Axes, place: float, estimate: Estimate, style: dict[str, Any]) -> None:
    """One estimate with its bar; hollow and without one if it is not reliable."""
    assert estimate.nats is not None
    if not estimate.reliable:
        axes.plot(estimate.nats, place, markerfacecolor="none", **style)
        return
    bar = estimate.mc_se if estimate.unit == "data set" else estimate.data_se
    error = 2 * (bar or 0.0)
    axes.errorbar(estimate.nats, place, xerr=error, capsize=4, **style)


def _title(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontdict=_FONT)
    axes.set_xlabel(unit, fontdict=_FONT)


def _unit(rows: Sequence[Row], split: str = "") -> str:
    if rows[0].is_of_data_set:
        return f"nats, all {rows[0].num_train:,} data together"
    return f"nats per {split} datum" if split else "nats per datum"


def _legend(axes: Axes, num_entries: int) -> None:
    assert isinstance(axes.figure, Figure)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2 * 5 / max(axes.figure.get_figheight(), 4)),
        ncols=min(num_entries, 2),
        fontsize=11,
    )


def _shortfalls(axes: Axes, found: Sequence[Shortfall], unit: str) -> None:
    for place, one in enumerate(found):
        doubtful = one.reason is not None
        axes.barh(
            place,
            one.nats,
            height=0.5,
            color="white" if doubtful else "#56B4E9",
            edgecolor="#0072B2",
            hatch="//" if doubtful else None,
            xerr=None if doubtful else 2 * one.mc_se,
            capsize=4,
        )
        bound = "" if ESTIMATORS[one.judge].is_exact else "≥ "
        text = "  NOT RELIABLE" if doubtful else f"  {bound}{one.nats:.3f}"
        end = max(one.nats, 0.0) + (0.0 if doubtful else 2 * one.mc_se)
        axes.annotate(text, (end, place), va="center", fontsize=11)
    judges = dict.fromkeys(ESTIMATORS[one.judge].legend for one in found)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.45)
    _title(axes, f"log p(x) − ELBO, smaller is better;\nlog p(x): {' or '.join(judges)}", unit)


def _differences(axes: Axes, found: Sequence[Comparison], labels: Sequence[str], unit: str) -> None:
    """B − A for the first label A and every other B, with the 95% interval."""
    for one in found:
        place, mean = labels.index(one.second), -one.difference.mean
        high, low = (-end for end in one.difference.interval())
        colour = _DIFFERENT if one.winner is not None else _ALIKE
        hollow: dict[str, Any] = {"markerfacecolor": "none"} if one.not_reliable is not None else {}
        axes.plot(mean, place, "o", color=colour, markersize=7, **hollow)
        if math.isfinite(high - low) and not hollow:
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2)
    axes.plot(0, 0, "|", color="black", markersize=16, markeredgewidth=2.5)
    axes.plot([], [], "o-", color=_DIFFERENT, label="shown by the 95% interval")
    axes.plot([], [], "o-", color=_ALIKE, label="no difference shown")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.margins(x=0.15)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    fits = found[0].difference.num_fits
    scope = f"data and {fits} fits" if fits > 1 else "data, for these fits"
    first = wrapped(labels)[labels[0]].replace("\n", "")
    what = found[0].quantity.split()[0]  # "ELBO", or "evidence"
    how = "paired by datum"
    if found[0].difference.is_of_data_set:
        how, scope = "for the data set", f"Monte Carlo{f' and {fits} fits' if fits > 1 else ''}"
    title = f"{what} − {first}'s, {how};\n95% intervals over {scope}"
    _title(axes, title, f"{unit}, larger is better")
    _legend(axes, 2)


def gap_bars(rows: Sequence[Row]) -> Figure:
    """Approximation and amortization gap per guide, stacked, ± 2 Monte Carlo SE.

    Args:
        rows: rows of results.json, with gaps.
    """
    figure = Figure(figsize=(9.5, max(0.7 * len(rows), 1.4) + 2.0), layout="constrained")
    axes = figure.subplots()
    base = np.zeros(len(rows))
    for number, part in enumerate(("approximation", "amortization")):
        found = [getattr(row.gaps, part) for row in rows]
        widths = np.array([one.nats for one in found])
        errors = [2 * (one.mc_se or 0.0) for one in found]
        label = f"{part} gap: the {('family', 'encoder')[number]}"
        style: dict[str, Any] = {"height": 0.55, "color": ("#0072B2", "#E69F00")[number]}
        axes.barh(range(len(rows)), widths, left=base, xerr=errors, capsize=5, label=label, **style)
        base = base + widths
    labels = wrapped(row.label for row in rows)
    axes.set_yticks(range(len(rows)), [_marked(row, labels) for row in rows], fontsize=12)
    axes.invert_yaxis()
    axes.set_xlabel("nats per datum, smaller is better", fontdict=_FONT)
    axes.set_title("log p(x) − ELBO and its two parts; ± 2 Monte Carlo SE", fontdict=_FONT)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=12)
    return figure


def _marked(row: Row, labels: Mapping[str, str]) -> str:
    """The label, with a warning if the log p(x) of the gaps is not reliable."""
    reliable = row.gaps is None or row.gaps.evidence.reliable
    return labels[row.label] + ("" if reliable else "\nlog p(x) NOT RELIABLE")
