"""The pictures: what is drawn, and that it can be read."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from evidence.experiments.reports import plots
from evidence.inference import EpochRecord, History
from evidence.models import VAE

DRAWN = True

IMAGES = torch.rand(12, 64, generator=torch.Generator().manual_seed(0))


def mosaic_of(figure):
    (image,) = figure.axes[0].images
    assert image.get_clim() == (0.0, 1.0)
    assert image.get_cmap().name == "gray"
    return np.ma.filled(image.get_array(), np.nan)


def test_a_gallery_shows_every_image_in_order_at_its_own_brightness():
    mosaic = mosaic_of(plots.gallery(0.5 * IMAGES, (8, 8), title="t", columns=5))
    assert mosaic.shape == (3 * 9 - 1, 5 * 9 - 1)
    for number, image in enumerate(0.5 * IMAGES):
        row, column = divmod(number, 5)
        tile = mosaic[9 * row : 9 * row + 8, 9 * column : 9 * column + 8]
        assert np.allclose(tile, image.reshape(8, 8))
    assert np.isnan(mosaic[18:26, 18:]).all()  # three places are left over


def test_reconstructions_stand_below_their_originals():
    figure = plots.reconstructions(IMAGES[:6], IMAGES[6:], (8, 8), title="t")
    mosaic = mosaic_of(figure)
    assert np.allclose(mosaic[:8, 9:17], IMAGES[1].reshape(8, 8))
    assert np.allclose(mosaic[9:, 9:17], IMAGES[7].reshape(8, 8))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["data", "reconstruction"]


def test_grey_originals_stand_above_the_binary_data_that_the_model_was_given():
    binary = (IMAGES[:4] > 0.5).float()
    figure = plots.reconstructions(binary, IMAGES[4:8], (8, 8), title="t", originals=IMAGES[:4])
    mosaic = mosaic_of(figure)
    for row, images in enumerate((IMAGES[:4], binary, IMAGES[4:8])):
        assert np.allclose(mosaic[9 * row : 9 * row + 8, 9:17], images[1].reshape(8, 8))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["original", "as binarized", "reconstruction"]


def test_the_manifold_grows_to_the_right_and_upwards():
    model = VAE(4, 2, hidden_dims=(8,))

    class Coordinates(torch.nn.Module):
        def forward(self, z):
            return torch.stack([z[..., 0], z[..., 1], 0 * z[..., 0], 0 * z[..., 0]], -1)

    model.decoder = Coordinates()
    mosaic = mosaic_of(plots.manifold(model, (2, 2), size=5))
    first, second = mosaic[::3, ::3], mosaic[::3, 1::3]
    assert (np.diff(first, axis=1) > 0).all()
    assert (np.diff(second, axis=0) < 0).all()
    with pytest.raises(ValueError, match="latent_dim 2, got 3"):
        plots.manifold(VAE(4, 3), (2, 2))


@pytest.mark.parametrize("latent_dim", [1, 2, 7])
def test_codes_of_any_size_are_shown_in_two_dimensions(latent_dim):
    codes, labels = torch.randn(50, latent_dim), torch.arange(50) % 10
    figure = plots.latent_codes(codes, labels, title="t")
    (axes,) = figure.axes
    assert sum(len(c.get_offsets()) for c in axes.collections) == 50
    assert len(axes.get_legend().get_texts()) == 10
    shapes = [c.get_paths()[0].vertices.tolist() for c in axes.collections]
    assert all(
        a != b for i, a in enumerate(shapes) for b in shapes[:i]
    )  # told apart without colours
    assert ("variance" in axes.get_xlabel()) == (latent_dim > 2)


def test_data_without_labels_have_no_legend():
    figure = plots.latent_codes(torch.randn(9, 2), torch.zeros(9, dtype=torch.long), title="t")
    assert figure.axes[0].get_legend() is None


def test_one_high_ridge_does_not_blank_a_density():
    """A twentieth of the mass in one cell; planted: the scale that ends at the highest value."""
    grid = torch.linspace(-4, 4, 100)
    z1, z2 = torch.meshgrid(grid, grid, indexing="ij")
    density = torch.exp(-(z1**2 + z2**2) / 2) / (2 * np.pi) * (8 / 99) ** 2
    density[30, 30] = 0.05
    figure = plots.densities({"": {"q": density.log().flatten()}}, (-4.0, 4.0), title="t")
    (image,) = figure.axes[0].images
    _, darkest = image.get_clim()
    middle = image.get_array()[50, 50]
    assert middle > 0.5 * darkest
    assert middle < 0.05 * image.get_array().max()


def record(epoch, test=True):
    terms = (95.0 - epoch, -80.0, 15.0 - epoch) if test else (None, None, None)
    return EpochRecord(epoch, 90.0 - epoch, 1.0, *terms, seconds=1.0, num_steps=3)


def test_curves_show_elbo_reconstruction_and_kl():
    histories = {"A": History([record(e) for e in range(1, 21)]), "B": History([record(1, False)])}
    figure = plots.training_curves(histories)
    train, held_out = figure.axes[0].lines[:2]
    assert train.get_ydata()[-1] == -70.0
    assert held_out.get_ydata()[-1] == -75.0
    low, high = figure.axes[0].get_ylim()
    assert low < -92 < -70 < high
    assert all(axes.get_ylabel() == "nats per datum" for axes in figure.axes)
    json.dumps(histories["A"].to_rows())
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[2].lines}
    assert len(styles) == len(figure.axes[2].lines)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "A",
        "B",
        "training data",
    ]


def test_many_noisy_epochs_are_smoothed_over_their_values():
    """Noise of one nat is shrunk to a third or less, and its mean is kept."""
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0)).tolist()
    history = History([
        EpochRecord(e, 90.0, 1.0, 95.0 + noise[e], -80.0, 15.0, seconds=1.0, num_steps=3)
        for e in range(200)
    ])  # fmt: skip
    figure = plots.training_curves({"A": history})
    curves = [np.asarray(line.get_ydata()) for line in figure.axes[0].lines]
    raw, smooth = (c for c in curves if len(c) and abs(c.mean() + 95) < 1)
    assert raw.std() == pytest.approx(np.std(noise))
    assert smooth.std() < raw.std() / 3
    assert smooth.mean() == pytest.approx(raw.mean(), abs=0.05)


@pytest.mark.parametrize("figure", [
    plots.gallery(IMAGES, (8, 8), title="a title that says what is to be seen", columns=4),
    plots.reconstructions(IMAGES[:3], IMAGES[3:6], (8, 8), title="three only"),
    plots.reconstructions(IMAGES[:3], IMAGES[3:6], (8, 8), title="t", originals=IMAGES[6:9]),
    plots.training_curves({"A": History([record(e) for e in range(1, 5)])}),
])  # fmt: skip
def test_nothing_is_cut_off(figure, tmp_path):
    plots.save(figure, tmp_path / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    for edge in (pixels[:3], pixels[-3:], pixels[:, :3], pixels[:, -3:]):
        assert (edge == 255).all()
