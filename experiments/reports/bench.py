"""What trials of estimators on known problems say: a table, and a picture of both errors."""

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.experiments.reports.plots import COLOURS
from evidence.experiments.reports.report import markdown
from evidence.experiments.setup.trials import Scorecard

_MARKERS = "os^Dvp*X"
_FONT = {"size": 13}
Cards = Mapping[tuple[str, str], Scorecard]


def bench_table(cards: Cards) -> str:
    """The Markdown table of every estimator on every problem, under what its numbers are."""
    counts = {len(card.trials) for card in cards.values()}
    seeds = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    caption = (
        f"{seeds} seeds. Error: root mean square, nats of all data. Claimed: the median SE. Bias "
        "in SE, and the share of ± 2 SE that holds the exact value, 95% if it is true: of the runs "
        "that say nothing against themselves, whose share is reliable. Missed: so many of these "
        "are off by more than 4 SE. Evaluations of the log joint and seconds: medians."
    )
    rows = [_cells(*key, card) for key, card in cards.items()]
    return f"{caption}\n\n{markdown(rows)}"


def _cells(problem: str, estimator: str, card: Scorecard) -> dict[str, str]:
    return {
        "problem": problem,
        "estimator": estimator,
        "exact": f"{card.trials[0].exact:,.3f}",
        "error": _number(card.rmse, ".3f"),
        "claimed": _number(card.claimed, ".3f"),
        "bias": _number(card.bias, "+.1f"),
        "within 2 SE": _number(card.coverage, ".0%"),
        "reliable": f"{card.share_reliable:.0%}",
        "missed": str(card.silent_misses),
        "evaluations": _number(card.num_evaluations, ",.0f"),
        "seconds": f"{card.seconds:.1f}",
    }


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "?"


def claimed_against_true(cards: Cards) -> Figure:
    """Every trial: the error as claimed, and as it is. Hollow where it is not relied on."""
    estimators = list(dict.fromkeys(name for _, name in cards))
    figure = Figure(figsize=(8.5, 6.5), layout="constrained")
    axes = figure.subplots()
    points: list[tuple[float, float]] = []
    for number, name in enumerate(estimators):
        style: dict[str, Any] = {
            "color": COLOURS[number % len(COLOURS)],
            "marker": _MARKERS[number % 8],
        }
        trials = [one for key, card in cards.items() if key[1] == name for one in card.trials]
        for is_reliable in (True, False):
            shown = [
                (one.claimed, abs(one.error))
                for one in trials
                if (one.not_reliable is None) is is_reliable and one.claimed > 0 and one.error != 0
            ]
            shown = [point for point in shown if all(map(math.isfinite, point))]
            points += shown
            if shown:
                face: dict[str, Any] = {} if is_reliable else {"facecolors": "none"}
                axes.scatter(*zip(*shown, strict=True), s=34, alpha=0.75, linewidths=1.2,
                             edgecolors=style["color"], **style, **face)  # fmt: skip
        axes.scatter([], [], label=name, **style)
    axes.scatter([], [], facecolors="none", edgecolors="0.4", label="NOT RELIABLE")
    _guide_lines(axes, [claimed for claimed, _ in points])
    axes.set_xlabel("standard error as claimed, nats", fontdict=_FONT)
    axes.set_ylabel("error as it is, |estimate − exact|, nats", fontdict=_FONT)
    problems = len({problem for problem, _ in cards})
    axes.set_title(f"Is the ± true? {problems} problems with known evidence", fontdict=_FONT)
    axes.legend(fontsize=11, loc="lower right")
    axes.grid(alpha=0.3)
    return figure


def _guide_lines(axes: Axes, claimed: list[float]) -> None:
    low, high = (min(claimed), max(claimed)) if claimed else (1e-3, 1.0)
    ends = [low / 2, high * 2]
    for factor, line in ((1, "-"), (2, "--"), (4, ":")):
        axes.plot(ends, [factor * end for end in ends], line, color="0.5", linewidth=1)
        axes.annotate(f"{factor} SE", (ends[1], factor * ends[1]), fontsize=11, color="0.4")
    axes.set(xscale="log", yscale="log", xlim=(ends[0], ends[1] * 1.6))
