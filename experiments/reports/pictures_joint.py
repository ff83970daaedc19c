"""Draws from the guides of one model whose latents the data share, beside those of NUTS."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from evidence.experiments.reports.plots_joint import MOST, corner, masses
from evidence.experiments.setup.assembly import Assembly
from evidence.inference.diagnostics.discrepancy import guide_draws, side_by_side
from evidence.inference.paths.reference import Reference
from evidence.inference.programs.random_state import isolated_rng

_DRAWS = 10_000  # of every guide


@torch.no_grad()
def draw_joint(pairs: Mapping[str, Assembly], reference: Reference | None, *, seed: int) -> Figure:
    """Marginals and pairs of the first few entries, of every guide and of NUTS if there is any.

    Args:
        pairs: trained guides of one model, by label.
        reference: draws of NUTS.
        seed: decides the guides' draws.
    """
    drawn: dict[str, Tensor] = {}
    names: list[str] = []
    for label, pair in pairs.items():
        with isolated_rng(seed, pair.x_test.device):
            sites = guide_draws(pair.model, pair.guide, pair.x_test, _DRAWS)
        names = entry_names({name: value.shape[2:] for name, value in sites.items()})
        drawn[label] = side_by_side(sites)[:, 0]
    chosen = _first_entries(names)
    truth = None if reference is None else reference.draws.flatten(0, 1)[:, 0, chosen]
    which = "all latents" if len(chosen) == len(names) else f"{len(chosen)} of {len(names)} latents"
    held = " and ".join(f"{share:.0%}" for share in sorted(masses(len(pairs))))
    title = f"{which}; lines hold {held} of the mass"
    if reference is not None and not reference.converged:
        title += "\nNUTS has NOT CONVERGED"
    guides = {label: z[:, chosen] for label, z in drawn.items()}
    return corner(truth, guides, [names[entry] for entry in chosen], title=title)


def entry_names(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """A name for every entry of the sites side by side, such as `mu`, `theta[3]` and `w[0, 2]`."""
    names = []
    for site, shape in shapes.items():
        sizes = [size for size in shape if size > 1]
        places = np.ndindex(*sizes)
        names += [f"{site}[{', '.join(map(str, place))}]" if place else site for place in places]
    return names


def _first_entries(names: list[str]) -> list[int]:
    """As many as can be drawn: the first of every site, then the second, and so on."""
    seen: dict[str, int] = {}
    ranks = []
    for entry, name in enumerate(names):
        site = name.partition("[")[0]
        ranks.append((seen.setdefault(site, 0), entry))
        seen[site] += 1
    return sorted(entry for _, entry in sorted(ranks)[:MOST])
