"""The joint posterior of latents that the data share: marginals and pairs, guides over NUTS.

Colours are those of Okabe and Ito; every guide has a line style of its own too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from scipy.ndimage import gaussian_filter
from torch import Tensor

from evidence.experiments.reports.plots import line_style
from evidence.experiments.reports.plots_posterior import smoothed
from evidence.experiments.setup.labels import PICTURE_WIDTH, shortened

MOST = 6  # entries drawn

_FONT = {"size": 12}
_FEW = 3  # guides
_CELLS = 80  # along a side of a pair
_ENDS = (0.003, 0.993)


def corner(
    reference: Tensor | None, guides: Mapping[str, Tensor], names: Sequence[str], *, title: str
) -> Figure:
    """Marginals on the diagonal, pairs below it: NUTS in grey, every guide in lines over it.

    Lines of pairs hold 50% and 90% of the mass, of many guides 90% alone.

    Args:
        reference: draws of NUTS `[S, K]`, if there are any.
        guides: draws of every guide `[T, K]`, by label.
        names: of the K entries.
        title: of the figure.
    """
    size, samples = len(names), {label: z.double().cpu().numpy() for label, z in guides.items()}
    truth = None if reference is None else reference.double().cpu().numpy()
    side = max(2.1 * size, 4.2)
    figure = Figure(figsize=(side + 0.8, side + 1.6), layout="constrained")
    grid = figure.subplots(size, size, squeeze=False)
    limits = [
        _limits([*samples.values(), *([] if truth is None else [truth])], k) for k in range(size)
    ]
    for (row, column), axes in np.ndenumerate(grid):
        if column > row:
            axes.axis("off")
        elif column == row:
            _marginal(axes, truth, samples, row, limits[row])
        else:
            _pair(axes, truth, samples, (column, row), (limits[column], limits[row]))
        _label(axes, row, column, names)
    _legend(figure, samples, has_reference=truth is not None)
    figure.suptitle(title, fontsize=13)
    return figure


def _limits(samples: Sequence[np.ndarray], entry: int) -> tuple[float, float]:
    ends = [np.quantile(z[:, entry], _ENDS) for z in samples]
    low, high = min(end[0] for end in ends), max(end[1] for end in ends)
    margin = 0.04 * (high - low) or 1.0
    return float(low - margin), float(high + margin)


def _marginal(
    axes: Axes,
    truth: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    entry: int,
    ends: tuple[float, float],
) -> None:
    if truth is not None:
        axes.hist(truth[:, entry], np.linspace(*ends, 31).tolist(), density=True, color="0.8")
    for number, z in enumerate(samples.values()):
        axes.plot(*smoothed(z[:, entry], *ends), **_style(number))
    axes.set_ylim(bottom=0)
    axes.set_xlim(*ends)
    axes.set_yticks([])


def _pair(
    axes: Axes,
    truth: np.ndarray | None,
    samples: Mapping[str, np.ndarray],
    entries: tuple[int, int],
    ends: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    """One entry along x, another along y."""
    if truth is not None:
        density = _density(truth[:, entries], ends)
        extent = (*ends[0], *ends[1])
        highest = 1.6 * density.max()
        axes.imshow(
            density, origin="lower", extent=extent, cmap="Greys", vmax=highest, aspect="auto"
        )
        plain = {"color": "0.3", "linestyle": "-", "linewidth": 0.8}
        _outline(axes, density, ends, plain, masses(len(samples)))
    for number, z in enumerate(samples.values()):
        density = _density(z[:, entries], ends)
        _outline(axes, density, ends, _style(number), masses(len(samples)))
    axes.set_xlim(*ends[0])
    axes.set_ylim(*ends[1])


def masses(num_guides: int) -> tuple[float, ...]:
    """Of the regions that are outlined: lines of many guides would hide each other."""
    return (0.9, 0.5) if num_guides <= _FEW else (0.9,)


def _outline(
    axes: Axes,
    density: np.ndarray,
    ends: Sequence[tuple[float, float]],
    style: dict[str, Any],
    shares: Sequence[float],
) -> None:
    """Where so much of the mass is."""
    levels = _levels(density, shares)
    if levels[0] > 0 and levels == sorted(set(levels)):
        axes.contour(
            *(np.linspace(*end, 2 * _CELLS + 1)[1::2] for end in ends),
            density,
            levels,
            colors=style["color"],
            linestyles=[style["linestyle"]],
            linewidths=style["linewidth"],
        )


def _density(z: np.ndarray, ends: Sequence[tuple[float, float]]) -> np.ndarray:
    """Masses of cells `[size, size]`, the second entry upwards, smoothed as by Scott's rule."""
    masses, *_ = np.histogram2d(z[:, 0], z[:, 1], _CELLS, ends)
    scales = [(end[1] - end[0]) / _CELLS for end in ends]
    # Spreads from quantiles: a heavy tail is not to blur the middle.
    spreads = np.subtract(*np.quantile(z, (0.84, 0.16), axis=0)) / 2
    widths = spreads * len(z) ** (-1 / 6) / np.array(scales)
    smooth = gaussian_filter(masses, widths, mode="nearest").T
    return smooth / max(smooth.sum(), 1e-300)


def _levels(density: np.ndarray, shares: Sequence[float]) -> list[float]:
    """Heights above which these shares of the mass are."""
    descending = np.sort(density, axis=None)[::-1]
    places = np.searchsorted(descending.cumsum(), shares)
    return [float(descending[min(place, descending.size - 1)]) for place in places]


def _style(number: int) -> dict[str, Any]:
    return line_style(number) | {"linewidth": 1.6}


def _label(axes: Axes, row: int, column: int, names: Sequence[str]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(labelsize=9)
    if column < row:
        axes.yaxis.set_major_locator(MaxNLocator(3))
    if row == len(names) - 1:
        axes.set_xlabel(names[column], fontdict=_FONT)
    else:
        axes.set_xticklabels([])
    if column == 0 and row > 0:
        axes.set_ylabel(names[row], fontdict=_FONT)
    elif column > 0:
        axes.set_yticklabels([])
    if column == row == 0:
        axes.set_ylabel("density", fontdict=_FONT)


def _legend(figure: Figure, guides: Mapping[str, np.ndarray], *, has_reference: bool) -> None:
    short = shortened(guides, PICTURE_WIDTH)
    handles: list[Any] = [Patch(color="0.7", label="NUTS")] if has_reference else []
    handles += [
        Line2D([], [], label=short[label], **_style(number)) for number, label in enumerate(guides)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=11)
