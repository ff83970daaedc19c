"""Whether a pair may be run on many particles at once: a probe, before any number is made of it.

Programs that index from the left (`z[:, 0]`), reduce a dim by its number (`sum(1)`), multiply by
matrices (`X @ w`) or squeeze mean other dims under a batch of particles than without it. Some then
fail; by chance of sizes others go on, and their numbers are wrong.
"""

import warnings

import torch
from torch import Tensor

from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.scoring import LogProbs, terms_of
from evidence.inference.programs.sites import is_subsample, latent_sites, random_sites, sites_of
from evidence.inference.programs.traces import Layout, Program, Traces, trace_pair
from evidence.inference.programs.unconstrained import Given, is_point

_NUM_PROBED = 3


def broadcasts(
    model: Program,
    guide: Program,
    x: Batch,
    size: int,
    layout: Layout,
    *,
    num_data: int | None = None,
) -> Traces | None:
    """The pair under a plate of particles, if that is the same as one particle after another.

    Some of the particles are scored once more by themselves, by the guide and by the model.
    `num_data` is the size of the plate over the data, where that is not the batch's.
    """
    num_data = len(x) if num_data is None else num_data
    try:
        traces = trace_pair(model, guide, x, size, layout.particle_dim)
        together = terms_of(traces, size, num_data, layout)
    except Exception:  # whatever a program raises that was not written for it
        return None
    with isolated_rng(device=x.device):
        alone = trace_pair(model, guide, x)
        for row in {0, size // 2, size - 1} if size > _NUM_PROBED else range(size):
            values = values_of_particle(traces, alone, row, layout)
            if values is None:
                return None
            with Given(values):
                single = terms_of(trace_pair(model, guide, x), 1, num_data, layout)
            if not _agree(together, row, single):
                return None
    return traces


def values_of_particle(
    traces: Traces, alone: Traces, row: int, layout: Layout
) -> dict[str, Tensor] | None:
    """The latents of one particle, as a run of one has them; None if they do not fit.

    And the data that a program draws of all by itself. What the guide makes of its other draws
    (`Delta`) it makes anew: repeated, it would have to be the same to the last bit.
    """
    values: dict[str, Tensor] = {}
    made = {name for name, site in random_sites(traces.guide).items() if is_point(site)}
    for trace, single in zip(traces, alone, strict=True):
        values |= {
            name: site["value"]
            for name, site in sites_of(trace).items()
            if site["type"] == "sample" and is_subsample(site)
        }
        shapes = {name: site["value"].shape for name, site in latent_sites(single).items()}
        for name, site in latent_sites(trace).items():
            if name in made:
                continue
            value, event_dim = site["value"], site["fn"].event_dim
            if value.ndim - event_dim == -layout.particle_dim and value.shape[0] > 1:
                value = value[row]
            if name not in shapes or value.numel() != shapes[name].numel():
                return None
            values[name] = value.reshape(shapes[name])
    return values


def _agree(together: LogProbs, row: int, alone: LogProbs) -> bool:
    """Whether every term of a particle is what it is alone."""
    terms = ("log_p_x", "log_p_z", "log_q_z")
    return all(agree(getattr(together, name)[row], getattr(alone, name)[0]) for name in terms)


def agree(together: Tensor, alone: Tensor) -> bool:
    """Whether log-probabilities are equal to the rounding of their dtype.

    These may be two: torch lets no scalar decide, which a latent is alone, and not beside others.
    """
    relative = 1e-4 if torch.float32 in (together.dtype, alone.dtype) else 1e-8
    together, alone = together.double(), alone.double()
    scale = 1 + torch.nan_to_num(alone.abs(), posinf=0.0).max().item()
    return torch.allclose(together, alone, rtol=relative, atol=relative * scale, equal_nan=True)


def warn_one_by_one() -> None:
    """Say that it takes longer."""
    warnings.warn(
        "the pair does not broadcast over particles: they are drawn one by one, which is slower "
        "(count dims from the right, for latents of shape [..., B, Z])",
        stacklevel=2,
    )
