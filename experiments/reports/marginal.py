"""Marginal likelihoods in words, as tables, and as a picture."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evidence.experiments.config import Marginal
from evidence.experiments.reports.plots import COLOURS
from evidence.experiments.reports.report import markdown
from evidence.experiments.setup.estimators import ESTIMATORS
from evidence.experiments.setup.labels import shortened, wrapped
from evidence.inference import (
    BayesFactor,
    MarginalLikelihood,
    bayes_factor,
    model_probabilities,
)
from evidence.inference.model_choice.bayes_factors import total

Found = MarginalLikelihood
Grid = Mapping[float, Mapping[str, Found]]
_FONT = {"size": 13}


def marginal_table(found: Mapping[str, Found], data: str, num_data: int) -> str:
    """The Markdown table of all models, and why a number is not to be relied on."""
    size = f"{num_data:,} data" if num_data else "no data"
    caption = (
        f"log p(x) of {data} ({size}) in nats ± its Monte Carlo standard error; beside it the "
        "estimates of other kinds, and how far they are apart in standard errors. Evaluations of "
        "the log joint."
    )
    short = shortened(found)
    probabilities = {}
    if len(found) > 1 and all(math.isfinite(one.log_ml) for one in found.values()):
        probabilities = model_probabilities({name: one.evidence for name, one in found.items()})
    rows = []
    for name, one in found.items():
        first, *others = one.estimates
        row = {
            "model": short[name],
            "log p(x)": _number(one.log_ml, one.se, reliable=one.not_reliable is None),
            "by": first,
            "beside it": ", ".join(_beside(other, one) for other in others),
            "apart": f"{one.apart:.1f} SE" if math.isfinite(one.apart) else "?",
            "evaluations": f"{one.num_evaluations:,}",
            "seconds": f"{one.seconds:.1f}",
        }
        if probabilities:
            p = probabilities[name]
            row["P(model)"] = f"{p.probability:.3f} ({p.low:.3f} to {p.high:.3f})"
        rows.append(row)
    reasons = [f"- {short[n]}: {one.not_reliable}" for n, one in found.items() if one.not_reliable]
    return "\n\n".join([caption, markdown(rows), *reasons])


def _number(log_ml: float, se: float, *, reliable: bool) -> str:
    return f"{log_ml:.3f} ± {se:.3f}" if reliable else f"{log_ml:.3f} NOT RELIABLE"


def _beside(name: str, one: Found) -> str:
    estimate = one.estimates[name]
    log_ml, se = total(estimate)
    bar = f"± {se:.3f}" if estimate.not_reliable is None else "NOT RELIABLE"
    return f"{log_ml:.3f} {bar} ({name})"


def factors(found: Mapping[str, Found]) -> list[BayesFactor]:
    """Of every two models, the better one first."""
    best = sorted(found, key=lambda name: -found[name].log_ml)
    short = shortened(found)
    return [
        bayes_factor(found[a].evidence, found[b].evidence, names=(short[a], short[b]))
        for a, b in itertools.combinations(best, 2)
    ]


def factors_text(found: Mapping[str, Found]) -> str:
    """A line for every two models."""
    return "\n".join(f"- {one.names[0]} over {one.names[1]}: {one}" for one in factors(found))


def scale_table(site: str, grid: Grid) -> str:
    """Log p(x) of all models along the factors of a prior's scale, and the first Bayes factor."""
    rows = []
    for factor, at in grid.items():
        short = shortened(at)
        row = {f"scale of {site}": f"× {factor:g}"}
        row |= {
            short[name]: _number(one.log_ml, one.se, reliable=one.not_reliable is None)
            for name, one in at.items()
        }
        if len(at) > 1:
            first, second = list(at)[:2]
            one = bayes_factor(at[first].evidence, at[second].evidence)
            reliable = one.not_reliable is None
            row[f"log BF, {short[first]} over {short[second]}"] = (
                f"{one.log_bf:+.3f} ± {one.se:.3f}" if reliable else "NOT RELIABLE"
            )
        rows.append(row)
    return f"Prior sensitivity: the prior of {site} stretched.\n\n{markdown(rows)}"


def to_json(
    found: Mapping[str, Found], *, data: str, num_data: int, sha256: str, config: Marginal
) -> list[dict[str, Any]]:
    """The rows of results.json."""
    return [
        {
            "model": name,
            "data": data,
            "split": "all",
            "data_sha256": sha256,
            "seed": config.seed,
            "log_ml": one.log_ml,
            "se": one.se,
            "not_reliable": one.not_reliable,
            "apart": one.apart,
            "num_evaluations": one.num_evaluations,
            "seconds": one.seconds,
            "estimates": [
                {
                    "estimator": estimator,
                    "nats": estimate.mean,
                    "unit": estimate.unit,
                    "mc_se": estimate.mc_se,
                    "num_particles": estimate.num_particles,
                    "num_data": num_data,
                    "not_reliable": estimate.not_reliable,
                }
                for estimator, estimate in one.estimates.items()
            ],
        }
        for name, one in found.items()
    ]


def picture(found: Mapping[str, Found], stretched: Mapping[str, Grid]) -> Figure:
    """Every estimate of every model with its error bar, and what stretched priors do to them."""
    count = 1 + len(stretched)
    height = max(0.7 * len(found), 1.6) + 2.0
    figure = Figure(figsize=(6.5 * count, max(height, 4.2 if stretched else 0)),
                    layout="constrained")  # fmt: skip
    panels = figure.subplots(1, count, squeeze=False)[0]
    _estimates(panels[0], found)
    for axes, (site, grid) in zip(panels[1:], stretched.items(), strict=True):
        _along(axes, site, grid)
    return figure


def _estimates(axes: Axes, found: Mapping[str, Found]) -> None:
    names = list(dict.fromkeys(name for one in found.values() for name in one.estimates))
    for number, name in enumerate(names):
        style: dict[str, Any] = {
            "color": ESTIMATORS[name].colour,
            "marker": ESTIMATORS[name].marker,
        }
        for place, one in enumerate(found.values()):
            if name in one.estimates:
                estimate = one.estimates[name]
                log_ml, se = total(estimate)
                reliable = estimate.not_reliable is None
                axes.errorbar(
                    log_ml,
                    place + 0.16 * (number - (len(names) - 1) / 2),
                    xerr=2 * se if reliable else None,
                    markerfacecolor=style["color"] if reliable else "none",
                    capsize=3,
                    linestyle="",
                    **style,
                )
        axes.plot([], [], linestyle="", label=ESTIMATORS[name].legend.split(",")[0], **style)
    labels = wrapped(found)
    axes.set_yticks(range(len(found)), [labels[name] for name in found], fontsize=12)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("log p(x), nats; bars are ± 2 SE, hollow is NOT RELIABLE", fontdict=_FONT)
    axes.set_title("marginal likelihood, by estimates of several kinds", fontdict=_FONT)
    axes.legend(fontsize=11)
    axes.grid(axis="x", alpha=0.3)


def _along(axes: Axes, site: str, grid: Grid) -> None:
    first = next(iter(grid.values()))
    labels = shortened(first)
    for number, name in enumerate(first):
        shown = [(k, at[name]) for k, at in grid.items() if at[name].not_reliable is None]
        axes.errorbar(
            [factor for factor, _ in shown],
            [one.log_ml for _, one in shown],
            yerr=[2 * one.se for _, one in shown],
            color=COLOURS[number % len(COLOURS)],
            marker="osD^"[number % 4],
            capsize=3,
            label=labels[name],
        )
    axes.set_xscale("log")
    axes.set_xticks(list(grid), [f"× {factor:g}" for factor in grid])
    axes.minorticks_off()
    axes.set_xlabel(f"scale of the prior of {site}", fontdict=_FONT)
    axes.set_ylabel("log p(x), nats (± 2 SE)", fontdict=_FONT)
    axes.set_title("prior sensitivity", fontdict=_FONT)
    axes.legend(fontsize=11)
    axes.grid(alpha=0.3)
