"""Which pictures a run leaves in its folder."""

from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from evidence.experiments.reports import plots, plots_comparison
from evidence.experiments.reports.plane import plane_of
from evidence.experiments.setup.assembly import Assembly, has_prior
from evidence.experiments.storage.records import Row
from evidence.experiments.storage.spec import Spec
from evidence.guides import AbstractPosterior
from evidence.inference import Comparison, History
from evidence.inference.programs.random_state import isolated_rng
from evidence.models import AbstractModel, ConditionalVAE

_SHOWN = 12
_CODES = 2000


@torch.no_grad()
def draw_run(folder: Path, assembly: Assembly, history: History) -> None:
    """Reconstructions, samples, latent space and training curves of a trained pair."""
    shape = assembly.dataset.image_shape
    names = (Spec.parse(spec).name for spec in (assembly.config.model, assembly.config.guide))
    label = " with ".join(name.removeprefix("pyro.infer.autoguide.") for name in names)
    with isolated_rng(assembly.config.seed):
        total = len(assembly.x_train) if assembly.is_joint else None
        figure = plots.training_curves({label: history}, total=total)
        plots.save(figure, folder / "training_curves.png")
        if assembly.of_the_suite is None:
            return
        model, guide, x_test = assembly.of_the_suite
        codes = guide.posterior_mean(x_test[:_CODES])
        title = f"posterior means of {assembly.config.split} data, {label}"
        labels = assembly.dataset.y_test[: len(codes)]
        plots.save(plots.latent_codes(codes, labels, title=title), folder / "latent_codes.png")
        if shape is None:
            return
        shown = x_test[:_SHOWN]
        decoded = _decoded(model, codes[: len(shown)], shown)
        size = decoded.shape[1]  # without labels
        binarized = assembly.config.binarize != "none"
        figure = plots.reconstructions(
            shown[:, :size],
            decoded,
            shape,
            title=f"{label}: reconstructions from the posterior mean",
            originals=assembly.dataset.vectors[1][:_SHOWN, :size] if binarized else None,
        )
        plots.save(figure, folder / "reconstructions.png")
        if has_prior(model):
            title = f"{label}: decoded means of draws from the prior"
            figure = plots.gallery(prior_means(model, 100), shape, title=title)
            plots.save(figure, folder / "samples.png")
            if model.latent_dim == 2 and not model.labelled:
                plots.save(plots.manifold(model, shape), folder / "manifold.png")


def draw_comparison(
    folder: Path, rows: list[Row], found: list[Comparison], histories: dict[str, History]
) -> None:
    """Evidence per guide, paired differences, and the training curves of all guides."""
    plots.save(plots_comparison.evidence_bars(rows, found), folder / "evidence.png")
    total = rows[0].num_train if rows[0].is_of_data_set else None
    figure = plots.training_curves(histories, total=total)
    plots.save(figure, folder / "training_curves.png")


def draw_planes(
    folder: Path,
    pairs: dict[str, tuple[AbstractModel, AbstractPosterior, Tensor]],
    datum: str | None,
) -> None:
    """The posterior of one datum beside what every guide makes of it, for models in the plane.

    Args:
        folder: where to.
        pairs: model, guide and datum `[1, D]` by label; the truth is drawn from the first.
        datum: which datum it is, in words; None for a density without data.
    """
    planes = {label: plane_of(*pair) for label, pair in pairs.items()}
    first = next(iter(planes.values()))
    panels = {"posterior": first.log_p_xz.squeeze(1)}
    panels |= {label: plane.log_q_z.squeeze(1) for label, plane in planes.items()}
    of = "p(z) and q(z)" if datum is None else f"p(z | x) and q(z | x) of {datum}"
    title = f"{of}; lines hold 50% and 90% of the mass"
    figure = plots.densities({"": panels}, first.bounds, title=title)
    plots.save(figure, folder / "densities.png")


def prior_means(model: AbstractModel, num_samples: int) -> torch.Tensor:
    """E[x | z] for z drawn from the prior: `[num_samples, D]`."""
    z = model.prior().sample(torch.Size([num_samples]))
    if _is_labelled(model):  # every class in turn, column by column
        classes = torch.arange(num_samples, device=z.device) % model.num_classes
        return model.decode(z, model.one_hot(classes)).mean
    return model.likelihood(z).mean


def _is_labelled(model: AbstractModel) -> TypeGuard[ConditionalVAE]:
    return model.labelled


def _decoded(model: AbstractModel, z: Tensor, x: Tensor) -> Tensor:
    """E[x | z], for a labelled model of images with the labels of `x`."""
    if _is_labelled(model):
        return model.decode(z, x[:, model.image_dim :]).mean
    return model.likelihood(z).mean
