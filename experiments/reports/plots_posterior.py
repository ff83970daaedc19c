"""Pictures of posteriors beside what they should be: calibration, and guides over the truth.

Every function returns a matplotlib `Figure`; `plots.save` writes it. Every curve has a colour and a
line style of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from evidence.experiments.reports.plots import COLOURS, STYLES, line_style
from evidence.experiments.setup.labels import PICTURE_WIDTH, shortened, wrapped
from evidence.inference.diagnostics.calibration import LOG_P_X, LOG_Q_Z, Calibration

_FONT = {"size": 13}
_WORST = 4  # latents drawn
_CELLS = 400  # along a smoothed density


def calibration(found: Calibration, document: Mapping[str, Any]) -> Figure:
    """Left, how far ranks are from uniform, with the simultaneous band; right, coverage.

    Args:
        found: the ranks.
        document: calibration.json, the worst latent first.
    """
    figure = Figure(figsize=(12.5, 5.8), layout="constrained")
    ranks, covered = figure.subplots(1, 2, width_ratios=(1.25, 1))
    level = document["level_of_each"]
    _rank_panel(ranks, found, document, level)
    _coverage_panel(covered, found, level)
    figure.suptitle(
        f"{document['label']}: {found.num_simulations:,} simulations, {found.num_draws} draws each",
        fontsize=14,
    )
    return figure


def _rank_panel(axes: Axes, found: Calibration, document: Mapping[str, Any], level: float) -> None:
    points = np.arange(1, found.num_draws + 1) / (found.num_draws + 1)
    lower, upper = found.band(level)
    axes.fill_between(points, lower - points, upper - points, color="0.85", label="band")
    latents = [q["quantity"] for q in document["quantities"]]
    latents = [name for name in latents if name not in (LOG_P_X, LOG_Q_Z)]
    for number, name in enumerate([*latents[:_WORST], LOG_P_X]):
        last = name == LOG_P_X
        style: dict[str, Any] = {
            "color": "black" if last else COLOURS[number],
            "linestyle": "-" if last else STYLES[number],
            "linewidth": 2.4 if last else 1.8,
        }
        axes.plot(points, found.ecdf(name) - points, label=name, **style)
    axes.axhline(0, color="0.5", linewidth=0.8)
    outside = sum(not q["inside"] for q in document["quantities"] if q["quantity"] in latents)
    which = f"the worst {_WORST} shown" if len(latents) > _WORST else "all shown"
    axes.set_title(
        f"ranks: {outside} of {len(latents)} latents outside the band; {which}", fontdict=_FONT
    )
    axes.set_xlabel("rank of the truth among the guide's draws, as a share", fontdict=_FONT)
    axes.set_ylabel("share of smaller ranks − uniform share", fontdict=_FONT)
    axes.set_xlim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3, fontsize=12)


def _coverage_panel(axes: Axes, found: Calibration, level: float) -> None:
    points = np.arange(1, found.num_draws + 1) / (found.num_draws + 1)
    title = "coverage: below the band too narrow\nor misplaced, above it too wide"
    axes.set_title(title, fontdict=_FONT)
    axes.set_xlabel("mass of the guide's region of highest density", fontdict=_FONT)
    axes.set_ylabel("share of truths inside", fontdict=_FONT)
    axes.grid(alpha=0.3)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    if LOG_Q_Z not in found.ranks:
        axes.text(0.5, 0.5, "the guide scores no given z", ha="center", fontsize=13)
        return
    lower, upper = found.band(level)
    axes.fill_between(points, lower, upper, color="0.85", label="band")
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=0.8)
    coverage = found.coverage(points)
    axes.plot(
        coverage.nominal, coverage.estimate, color=COLOURS[0], linewidth=2.2, label="coverage"
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=12)


@dataclass(frozen=True)
class Contours:
    """One density in the plane: its logarithm on a square grid, and at which levels to cut it.

    Args:
        log_density: up to a constant, `[size, size]`, z₂ upwards.
        levels: of the log-density, around 90% and 50% of the mass, in this order.
    """

    log_density: np.ndarray
    levels: tuple[float, float]


@dataclass(frozen=True)
class Panel:
    """One datum of a model in the plane: the posterior, and every guide by label, on one square."""

    title: str
    bounds: tuple[tuple[float, float], tuple[float, float]]
    truth: Contours
    guides: Mapping[str, Contours]


def contours(panels: Sequence[Panel], *, title: str) -> Figure:
    """Every guide's regions of 50% and 90% of the mass over those of the posterior.

    A row per datum, a column per guide.
    """
    labels = list(panels[0].guides)
    titles = wrapped(labels)
    size = (3.3 * len(labels) + 0.8, 3.3 * len(panels) + 1.4)
    figure = Figure(figsize=(max(size[0], 5.6), size[1]), layout="constrained")
    grid = figure.subplots(len(panels), len(labels), squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        panel, label = panels[row], labels[column]
        _over_the_truth(axes, panel, panel.guides[label])
        if row == 0:
            axes.set_title(titles[label], fontdict=_FONT)
        if row == len(panels) - 1:
            axes.set_xlabel("z₁", fontdict=_FONT)
        if column == 0:
            axes.set_ylabel(f"{panel.title}\nz₂", fontdict=_FONT)
    handles = [
        Line2D([], [], color=COLOURS[0], linewidth=1.5, label="p(z | x)"),
        Line2D([], [], color=COLOURS[1], linewidth=2, linestyle="--", label="q(z | x)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=12)
    figure.suptitle(title, fontsize=14)
    return figure


def _over_the_truth(axes: Axes, panel: Panel, guide: Contours) -> None:
    (left, right), (low, high) = panel.bounds
    size = len(panel.truth.log_density)
    density = np.exp(panel.truth.log_density - panel.truth.log_density.max())
    axes.imshow(density, origin="lower", extent=(left, right, low, high), cmap="Greys", vmax=1.6)
    sides = [np.linspace(*ends, 2 * size + 1)[1::2] for ends in panel.bounds]
    for one, colour, width, style in (  # a level below zero would be dashed by itself
        (panel.truth, COLOURS[0], 1.5, "-"),
        (guide, COLOURS[1], 2, "--"),
    ):
        if one.levels[0] < one.levels[1]:
            heights = one.log_density, one.levels
            axes.contour(*sides, *heights, colors=colour, linewidths=width, linestyles=style)


def marginals(
    truth: Tensor,
    guides: Mapping[str, Tensor],
    names: Sequence[str],
    data: Sequence[str],
    *,
    title: str,
) -> Figure:
    """Densities of single latents: NUTS a histogram, every guide a line; a row per datum.

    Args:
        truth: draws of NUTS `[S, B, K]`.
        guides: draws of every guide `[T, B, K]`, by label.
        names: of the K latents.
        data: names of the B data.
        title: of the figure.
    """
    short = shortened(guides, PICTURE_WIDTH)
    size = (3.4 * len(names) + 0.6, 2.5 * len(data) + 1.5)
    figure = Figure(figsize=(max(size[0], 5.6), size[1]), layout="constrained")
    grid = figure.subplots(len(data), len(names), squeeze=False)
    for (row, column), axes in np.ndenumerate(grid):
        drawn = {short[label]: z[:, row, column].cpu().numpy() for label, z in guides.items()}
        _histograms(axes, truth[:, row, column].cpu().numpy(), drawn)
        if row == len(data) - 1:
            axes.set_xlabel(names[column], fontdict=_FONT)
        if column == 0:
            axes.set_ylabel(f"{data[row]}\ndensity", fontdict=_FONT)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    columns = min(len(labels), 4)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=12)
    figure.suptitle(title, fontsize=14)
    return figure


def _histograms(axes: Axes, truth: np.ndarray, guides: Mapping[str, np.ndarray]) -> None:
    ends = [np.quantile(z, (0.002, 0.998)) for z in (truth, *guides.values())]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    bins = np.linspace(low, high, 31)
    axes.hist(truth, bins.tolist(), density=True, color="0.8", label="NUTS")
    for number, (label, z) in enumerate(guides.items()):
        axes.plot(*smoothed(z, low, high), label=label, **line_style(number))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def smoothed(z: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """The density of draws between two ends, by a Gaussian kernel of Scott's width."""
    heights, edges = np.histogram(z, _CELLS, (low, high))
    width = (high - low) / _CELLS
    bandwidth = z.std() * len(z) ** -0.2
    smooth = gaussian_filter1d(heights / (len(z) * width), bandwidth / width, mode="reflect")
    return 0.5 * (edges[1:] + edges[:-1]), smooth
