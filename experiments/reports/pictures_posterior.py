"""What `evidence reference` draws: guides over the posterior, or single latents."""

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from pyro.distributions import constraints
from torch import Tensor, nn

from evidence.experiments.reports import plots_posterior
from evidence.experiments.reports.plots_posterior import Contours, Panel
from evidence.guides import AbstractPosterior
from evidence.inference.diagnostics.discrepancy import guide_draws, side_by_side
from evidence.inference.paths.reference import Reference
from evidence.inference.programs.random_state import isolated_rng
from evidence.models import AbstractModel

_DATA = 4  # drawn at the most
_LATENTS = 4
_DRAWS = 20_000  # of every guide
_SIZE = 200  # cells along a side


@torch.no_grad()
def draw_reference(
    model: nn.Module,
    guides: Mapping[str, nn.Module],
    reference: Reference,
    rows: Sequence[int],
    *,
    seed: int,
) -> Figure:
    """Guides beside the draws of NUTS, for the first data: in the plane if z is, else by latent."""
    x, rows = reference.x[:_DATA], rows[:_DATA]
    truth = reference.draws.flatten(0, 1)[:, :_DATA]  # [S, B, Z]
    drawn = {}
    for label, guide in guides.items():
        with isolated_rng(seed, x.device):
            drawn[label] = side_by_side(guide_draws(model, guide, x, _DRAWS))
    names = [f"datum {row}" for row in rows]
    warning = "" if reference.converged else "\nNUTS has NOT CONVERGED"
    of_suite = {n: guide for n, guide in guides.items() if isinstance(guide, AbstractPosterior)}
    is_of_suite = len(of_suite) == len(guides) and isinstance(model, AbstractModel)
    if is_of_suite and isinstance(x, Tensor) and _in_the_plane(model):
        panels = [
            _panel(model, of_suite, x[[i]], truth[:, i], {n: z[:, i] for n, z in drawn.items()}, of)
            for i, of in enumerate(names)
        ]
        title = f"lines hold 50% and 90% of the mass{warning}"
        return plots_posterior.contours(panels, title=title)
    shown = min(_LATENTS, truth.shape[2])
    labels = [f"{site}[{i}]" for site, entries in reference.sites.items() for i in range(entries)]
    which = "all latents" if shown == len(labels) else f"{shown} of {len(labels)} latents"
    return plots_posterior.marginals(
        truth[..., :shown],
        {label: z[..., :shown] for label, z in drawn.items()},
        labels[:shown],
        names,
        title=f"{which}, as NUTS and the guides draw them{warning}",
    )


def _in_the_plane(model: AbstractModel) -> bool:
    """Whether log p(x, z) can be had on a square of z."""
    if model.plane is not None:
        return True
    return list(model.latents.values()) == [(2, constraints.real_vector)]


def _panel(
    model: AbstractModel,
    guides: Mapping[str, AbstractPosterior],
    x: Tensor,
    truth: Tensor,
    drawn: Mapping[str, Tensor],
    title: str,
) -> Panel:
    """Posterior and guides of one datum `[1, D]`, given draws of each, `[S, 2]`."""
    bounds = _square([truth, *drawn.values()])
    sides = [torch.linspace(*ends, 2 * _SIZE + 1)[1::2] for ends in bounds]  # centres of cells
    z2, z1 = torch.meshgrid(sides[1], sides[0], indexing="ij")
    grid = torch.stack([z1, z2], -1).reshape(-1, 1, 2).to(truth)

    def cut(log_density: Tensor, at_draws: Tensor) -> Contours:
        """A region of highest density holds 90% of the draws if its level is their 10% quantile."""
        low, high = at_draws.double().flatten().quantile(at_draws.new_tensor([0.1, 0.5]).double())
        values = log_density.reshape(_SIZE, _SIZE).double().cpu().numpy()
        return Contours(values, (low.item(), high.item()))

    posterior = cut(model.log_joint(x, grid), model.log_joint(x, truth.unsqueeze(1)))
    densities = {label: guide.posterior(x) for label, guide in guides.items()}
    of_guides = {
        label: cut(q.log_prob(grid), q.log_prob(drawn[label].unsqueeze(1)))
        for label, q in densities.items()
    }
    return Panel(title, bounds, posterior, of_guides)


def _square(samples: Sequence[Tensor]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Ends of z₁ and of z₂ that hold nearly all draws `[S, 2]` of every sample, of one length."""
    ends = torch.stack([z.double().cpu().quantile(_ENDS, dim=0) for z in samples])  # [K, 2, 2]
    low, high = ends[:, 0].min(0).values, ends[:, 1].max(0).values
    centre, half = (low + high) / 2, 0.6 * (high - low).max()
    first, second = (((c - half).item(), (c + half).item()) for c in centre)
    return first, second


_ENDS = torch.tensor([0.002, 0.998], dtype=torch.float64)
