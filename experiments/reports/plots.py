"""The pictures: galleries, latent space, training curves and evidence, legible at slide size.

Every function returns a matplotlib `Figure`; `save` writes it.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from evidence.experiments.setup.labels import wrapped
from evidence.experiments.storage.files import replaced, write
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import History
from evidence.models import AbstractModel

ImageShape = tuple[int, int]
# Colours that the colour-blind can tell apart, by Okabe and Ito; and line styles.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black")
STYLES: tuple[Any, ...] = ("-", "--", "-.", (0, (5, 1)), (0, (3, 1, 1, 1)))
_FONT = {"size": 13}


def gallery(images: Tensor, shape: ImageShape, *, title: str, columns: int = 10) -> Figure:
    """Images `[N, D]` in rows, pixel values 0 (black) to 1 (white)."""
    rows = math.ceil(len(images) / columns)
    figure, axes = _figure(0.8 * columns, 0.8 * rows + 0.6)
    _show(axes, _mosaic(images, shape, columns))
    axes.set_title(title, fontdict=_FONT)
    return figure


def reconstructions(
    data: Tensor,
    reconstructed: Tensor,
    shape: ImageShape,
    *,
    title: str,
    originals: Tensor | None = None,
) -> Figure:
    """Data `[N, D]` in the upper row over their reconstructions `[N, D]` in the lower one.

    Args:
        data: what the model was given.
        reconstructed: what it makes of them.
        shape: of the images.
        title: of the figure.
        originals: the grey images `[N, D]`, in a row above, where the model was given binary ones.
    """
    rows = {"data": data, "reconstruction": reconstructed}
    if originals is not None:
        rows = {"original": originals, "as binarized": data, "reconstruction": reconstructed}
    figure, axes = _figure(max(0.95 * len(data) + 2.2, 5.5), 0.9 + 0.9 * len(rows))
    mosaic = _mosaic(torch.cat([images.cpu() for images in rows.values()]), shape, len(data))
    _show(axes, mosaic)
    middles = [len(mosaic) * (row + 0.5) / len(rows) for row in range(len(rows))]
    axes.set_yticks(middles, list(rows))
    axes.tick_params(left=False, labelsize=13)
    axes.set_title(title, fontdict=_FONT)
    return figure


@torch.no_grad()
def manifold(model: AbstractModel, shape: ImageShape, *, size: int = 15) -> Figure:
    """What a model with two latents decodes over a grid of equal prior mass.

    Raises:
        ValueError: the model has another number of latents.
    """
    if model.latent_dim != 2:
        raise ValueError(f"expected a model with latent_dim 2, got {model.latent_dim}")
    quantiles = (torch.arange(size) + 0.5) / size
    ticks = torch.distributions.Normal(0.0, 1.0).icdf(quantiles)
    z1, z2 = torch.meshgrid(ticks, ticks.flip(0), indexing="xy")  # z2 grows upwards
    grid = torch.stack([z1, z2], -1).reshape(-1, 2).to(model.standard_normal().mean)
    figure, axes = _figure(7, 7.4)
    mosaic = _mosaic(model.likelihood(grid).mean, shape, size)
    _show(axes, mosaic)
    places = (quantiles[:: size // 4] * len(mosaic)).tolist()
    labels = [f"{tick:.1f}" for tick in ticks[:: size // 4].tolist()]
    axes.set_xticks(places, labels)
    axes.set_yticks([len(mosaic) - place for place in places], labels)
    axes.set_xlabel("z₁", fontdict=_FONT)
    axes.set_ylabel("z₂", fontdict=_FONT)
    axes.set_title("decoded means over quantiles of the prior", fontdict=_FONT)
    return figure


def latent_codes(codes: Tensor, labels: Tensor, *, title: str) -> Figure:
    """Codes `[N, Z]` coloured by label `[N]`; more than two dimensions by their two main axes.

    Each point is its label: ten colours are not told apart by every eye, or from the last row.
    Where all have one label, as data without labels do, colours and legend say nothing.
    """
    figure, axes = _figure(7, 6)
    points, names = _in_two_dimensions(codes.cpu().double().numpy())
    classes = np.unique(labels.cpu().numpy())
    for number, label in enumerate(classes):
        chosen = labels.cpu().numpy() == label
        colour = f"C{number}" if len(classes) <= 10 else None
        mark: dict[str, Any] = {"marker": f"${label}$", "s": 42} if len(classes) > 1 else {"s": 9}
        axes.scatter(*points[chosen].T, alpha=0.8, color=colour, label=str(label), **mark)
    axes.set_xlabel(names[0], fontdict=_FONT)
    axes.set_ylabel(names[1], fontdict=_FONT)
    axes.set_title(title, fontdict=_FONT)
    if len(classes) > 1:
        axes.legend(title="label", markerscale=1.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def training_curves(histories: Mapping[str, History], *, total: int | None = None) -> Figure:
    """ELBO, reconstruction and KL on held-out data after each epoch, and the training ELBO.

    Curves are running means, drawn over the values themselves; guides have a colour and a line
    style of their own, and the training ELBO is thin and dotted. Where there are no held-out data,
    it is all that is drawn.

    Args:
        histories: by label.
        total: N, where the ELBO is that of a data set of N data that share latents, and not per
            datum.
    """
    is_tested = any(None not in history.test_loss for history in histories.values())
    figure = Figure(figsize=(13.5 if is_tested else 7, 4.8), layout="constrained")
    panels = figure.subplots(1, 3 if is_tested else 1, squeeze=False)[0]
    labels = wrapped(histories)
    for number, (label, history) in enumerate(histories.items()):
        _history(panels, history, line_style(number), total or 1)
        panels[0].plot([], [], label=labels[label].replace("\n", ""), **line_style(number))
    if is_tested:
        panels[0].plot([], [], color="0.3", linestyle=":", linewidth=1.1, label="training data")
    titles = (
        "ELBO, held-out data" if is_tested else "ELBO while training",
        "reconstruction E[log p(x | z)]",
        "KL(q(z | x) ‖ p(z))",
    )
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontdict=_FONT)
        axes.set_xlabel("epoch", fontdict=_FONT)
        unit = "nats per datum" if total is None else f"nats, all {total:,} data together"
        axes.set_ylabel(unit, fontdict=_FONT)
        axes.grid(alpha=0.3)
    _skip_the_start(panels[0])
    columns = min(len(histories) + is_tested, 4 if is_tested else 2)
    figure.legend(loc="outside lower center", ncols=columns, fontsize=12)
    return figure


def _history(panels: Sequence[Axes], history: History, style: dict[str, Any], size: int) -> None:
    """The curves of one history, `size` times what they are per datum."""
    epochs = [record.epoch for record in history.epochs]
    train = [-size * record.train_loss for record in history.epochs]
    is_alone = len(panels) == 1
    _curve(panels[0], epochs, train, style | ({} if is_alone else _THIN))
    if is_alone or None in history.test_loss:
        return
    parts = (
        [-size * (record.test_loss or 0) for record in history.epochs],
        [size * (record.reconstruction or 0) for record in history.epochs],
        [size * (record.kl or 0) for record in history.epochs],
    )
    for axes, values in zip(panels, parts, strict=True):
        _curve(axes, epochs, values, style)


_THIN = {"linestyle": ":", "linewidth": 1.1}


def line_style(number: int) -> dict[str, Any]:
    """Of the curve with this number: colours of Okabe and Ito, and line styles, in turn."""
    colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
    return {"color": colour, "linestyle": style, "linewidth": 2}


def _curve(
    axes: Axes, epochs: Sequence[int], values: Sequence[float | None], style: dict[str, Any]
) -> None:
    """The running mean of the values, over the values themselves if these are many."""
    raw = np.array(values, dtype=float)
    window = len(raw) // 15
    if window > 1:
        axes.plot(epochs, raw, color=style["color"], linewidth=0.6, alpha=0.35)
    axes.plot(epochs, _running_mean(raw, max(window, 1)), **style)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of `window` values about each one, of fewer at the ends."""
    half = window // 2
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def densities(
    rows: Mapping[str, Mapping[str, Tensor]], bounds: tuple[float, float], *, title: str
) -> Figure:
    """Densities over a square, dark is high, with the regions of 50% and 90% of the mass outlined.

    Args:
        rows: for each row's label, the log-densities `[size²]` by panel; each panel has a scale of
            its own and is normalized by its own sum.
        bounds: low and high end of both axes.
        title: of the figure.
    """
    columns = max(len(panels) for panels in rows.values())
    figure = Figure(figsize=(2.9 * columns + 0.6, 2.9 * len(rows) + 0.6), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    titles = wrapped(name for panels in rows.values() for name in panels)
    for axes_of_row, (label, panels) in zip(grid, rows.items(), strict=True):
        for axes, (name, log_density) in zip(axes_of_row, panels.items(), strict=False):
            _density(axes, log_density, bounds)
            axes.set_title(titles[name], fontdict=_FONT)
        axes_of_row[0].set_ylabel(f"{label}\nz₂" if label else "z₂", fontdict=_FONT)
    for axes in grid[-1]:
        axes.set_xlabel("z₁", fontdict=_FONT)
    figure.suptitle(title, fontsize=14)
    return figure


def _density(axes: Axes, log_density: Tensor, bounds: tuple[float, float]) -> None:
    """One panel: the density, and where 50% and 90% of its mass are."""
    size = math.isqrt(len(log_density))
    masses = log_density.double().softmax(0).reshape(size, size).mT.cpu().numpy()  # z₂ upwards
    descending = np.sort(masses, axis=None)[::-1]
    levels = [descending[np.searchsorted(descending.cumsum(), share)] for share in (0.9, 0.5)]
    # A single ridge of height is not to blank the rest; a Gaussian's peak is twice its 50% level.
    darkest = min(3 * levels[1], descending[0])
    extent = (*bounds, *bounds)
    axes.imshow(masses, origin="lower", extent=extent, cmap="Blues", vmin=0.0, vmax=darkest)
    if levels[0] < levels[1]:
        centres = np.linspace(*bounds, 2 * size + 1)[1::2]
        axes.contour(centres, centres, masses, levels, colors="C1", linewidths=1)


def signal_to_noise(
    ks: Sequence[int], ratios: Mapping[str, Sequence[tuple[float, float]]]
) -> Figure:
    """Signal-to-noise of gradients against the number of particles, ± 2 SE, on two log scales.

    Args:
        ks: numbers of particles.
        ratios: (ratio, SE) at every k, by objective.
    """
    figure, axes = _figure(7, 5)
    for name, row in ratios.items():
        values, errors = zip(*row, strict=True)
        axes.errorbar(ks, values, [2 * e for e in errors], marker="o", capsize=4, label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(ks), [str(k) for k in ks])
    axes.set_xlabel("particles K", fontdict=_FONT)
    axes.set_ylabel("|mean| / standard deviation of the guide's gradient", fontdict=_FONT)
    axes.set_title("signal-to-noise by objective; ± 2 SE", fontdict=_FONT)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG at 150 dpi, in full or not at all."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1)
    write(path, picture.getvalue())


def save_with(figure: Figure, picture: str, folder: RunFolder, name: str, document: Any) -> None:
    """Write a document and its picture into a folder: both, or neither."""
    with replaced(folder.path / picture) as path:
        save(figure, path)
        folder.write_document(name, document)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _mosaic(images: Tensor, shape: ImageShape, columns: int) -> np.ndarray:
    """Images `[N, D]` side by side with a gap of NaN; `[rows · (H + gap), columns · (W + gap)]`."""
    gap = max(1, shape[0] // 14)
    tiles = images.detach().cpu().reshape(-1, *shape)
    tiles = torch.nn.functional.pad(tiles, (0, gap, 0, gap), value=math.nan)
    missing = -len(tiles) % columns
    tiles = torch.cat([tiles, tiles.new_full((missing, *tiles.shape[1:]), math.nan)])
    height, width = tiles.shape[1:]
    rows = tiles.reshape(-1, columns, height, width).transpose(1, 2)
    return rows.reshape(-1, columns * width).numpy()[:-gap, :-gap]


def _show(axes: Axes, mosaic: np.ndarray) -> None:
    axes.imshow(mosaic, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _in_two_dimensions(codes: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    if codes.shape[1] == 1:
        return np.column_stack([codes, np.zeros(len(codes))]), ("z₁", "")
    if codes.shape[1] == 2:
        return codes, ("z₁", "z₂")
    from sklearn.decomposition import PCA  # noqa: PLC0415 (slow to import)

    pca = PCA(n_components=2).fit(codes)
    first, second = 100 * pca.explained_variance_ratio_
    names = (f"principal axis 1 ({first:.0f}% of variance)", f"axis 2 ({second:.0f}%)")
    return pca.transform(codes), names


def _skip_the_start(axes: Axes) -> None:
    """Leave the steep first tenth of the epochs out of view, where it would flatten the rest."""
    curves = [np.asarray(line.get_ydata()) for line in axes.lines]
    shown = np.concatenate([curve[len(curve) // 10 :] for curve in curves])
    low, high = np.quantile(shown, (0.005, 0.995)) if len(shown) > 400 else _ends(shown)
    margin = 0.05 * (high - low) + 1e-9
    axes.set_ylim(low - margin, high + margin)


def _ends(values: np.ndarray) -> tuple[float, float]:
    return values.min(), values.max()
