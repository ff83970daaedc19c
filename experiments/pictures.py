"""Which pictures a run leaves in its folder."""

from pathlib import Path

import torch

from experiments import plots
from experiments.assembly import Assembly
from experiments.report import Row
from inference import History
from inference.random_state import isolated_rng
from models import AbstractModel, Autoencoder

_SHOWN = 12
_CODES = 2000


@torch.no_grad()
def draw_run(folder: Path, assembly: Assembly, history: History) -> None:
    """Reconstructions, samples, latent space and training curves of a trained pair."""
    model, guide, shape = assembly.model, assembly.guide, assembly.dataset.image_shape
    label = f"{type(model).__name__} with {type(guide).__name__}"
    with isolated_rng(assembly.config.seed):
        codes = guide.posterior_mean(assembly.x_test[:_CODES])
        title = f"posterior means of {assembly.config.split} data, {label}"
        labels = assembly.dataset.y_test[: len(codes)]
        plots.save(plots.latent_codes(codes, labels, title=title), folder / "latent_codes.png")
        plots.save(plots.training_curves({label: history}), folder / "training_curves.png")
        if shape is None:
            return
        decoded = model.likelihood(codes[:_SHOWN]).mean
        originals = assembly.x_test[: len(decoded)]
        title = f"{label}: reconstructions from the posterior mean"
        figure = plots.reconstructions(originals, decoded, shape, title=title)
        plots.save(figure, folder / "reconstructions.png")
        if not isinstance(model, Autoencoder):
            title = f"{label}: decoded means of draws from the prior"
            figure = plots.gallery(prior_means(model, 100), shape, title=title)
            plots.save(figure, folder / "samples.png")
            if model.latent_dim == 2:
                plots.save(plots.manifold(model, shape), folder / "manifold.png")


def draw_comparison(folder: Path, rows: list[Row], histories: dict[str, History]) -> None:
    """Evidence per guide with error bars, and the training curves of all guides."""
    if any(row["estimates"] for row in rows):
        plots.save(plots.evidence_bars(rows), folder / "evidence.png")
    plots.save(plots.training_curves(histories), folder / "training_curves.png")


def prior_means(model: AbstractModel, num_samples: int) -> torch.Tensor:
    """E[x | z] for z drawn from the prior: `[num_samples, D]`."""
    z = model.prior().sample(torch.Size([num_samples]))
    return model.likelihood(z).mean
