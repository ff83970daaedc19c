"""Particles of sequential Monte Carlo: weighed, resampled, and moved without waste.

Particles are laid out `[P, C, b]`: P steps of C chains, of b data. The chains of an island stand
side by side, and islands one after the other; nothing that happens in one touches another.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.paths import hmc
from evidence.inference.paths.log_joint import AbstractPath
from evidence.inference.programs.precision import in_double

_MOST_UNKNOWN = 0.01


class Particles(NamedTuple):
    """Where particles are, and what the terms of the path are there.

    Args:
        z: positions `[P, C, b, Z]`.
        log_probs: the two terms of the path `[2, P, C, b]`, in nats.
    """

    z: Tensor
    log_probs: Tensor


def drawn(path: AbstractPath, num_steps: int, num_chains: int) -> Particles:
    """Independent draws from where the path begins."""
    z = [path.sample(num_chains) for _ in range(num_steps)]
    return Particles(torch.stack(z), torch.stack([torch.stack(list(path(row))) for row in z], 1))


def changes_at_start(path: AbstractPath, cloud: Particles) -> tuple[Tensor, Tensor]:
    """Log f_1 − log f_0 of draws from f_0, and whether these are where their dtype ends.

    That is on the edge of a support, or where the log joint is no number, as where a heavy tail
    overflows. Of so few draws it counts as zero there.

    Returns:
        `[P, C, b]` each.

    Raises:
        ValueError: it is NaN for more than one draw in a hundred, or +inf.
    """
    changes = path.log_ratio(cloud.log_probs)
    is_unknown, is_infinite = changes.isnan(), changes == torch.inf
    if is_unknown.double().mean() > _MOST_UNKNOWN or is_infinite.any():
        step, chain, _ = (is_unknown | is_infinite).nonzero()[0].tolist()
        site = path.unsound_site(cloud.z[step, chain].unsqueeze(0))
        by = "" if site is None else f", by site {site!r}"
        raise ValueError(
            f"the log joint is NaN or +inf at draws from where the path begins{by}: the model or "
            "the guide is not a density here. Where a logarithm underflows, as log(cdf(x)) does, "
            "write the function that does not, such as torch.special.log_ndtr; or else "
            f"{in_double(cloud.z.dtype)}"
        )
    on_edge = torch.stack([path.on_edge(z) for z in cloud.z]) | is_unknown
    return torch.where(is_unknown, -torch.inf, changes), on_edge


def by_island(values: Tensor, num_islands: int) -> Tensor:
    """`[P, C, b] -> [R, N, b]`, all N particles of an island, chain after chain."""
    steps, chains, num_data = values.shape
    values = values.reshape(steps, num_islands, chains // num_islands, num_data)
    return values.permute(1, 2, 0, 3).flatten(1, 2)


def systematic(log_w: Tensor, count: int) -> Tensor:
    """So many of the particles of each island, in proportion to their weights.

    `[R, N, b] -> [R, count, b]`, their places among the N. One uniform number for each island and
    datum decides; every particle comes up as often as is expected, rounded up or down. Where all
    weights are zero, all count alike: such an island has no evidence any more.

    Reference: R. Douc, O. Cappé, E. Moulines, "Comparison of Resampling Schemes for Particle
    Filtering", 2005, https://arxiv.org/abs/cs/0507025.
    """
    shares = log_w.softmax(1).nan_to_num(nan=1 / log_w.shape[1])
    reached = shares.cumsum(1).movedim(1, -1).contiguous()  # [R, b, N]
    reached = reached / reached[..., -1:]
    start = torch.rand(*reached.shape[:-1], 1, dtype=reached.dtype, device=reached.device)
    levels = (start + torch.arange(count, device=reached.device)) / count
    found = torch.searchsorted(reached, levels.contiguous(), right=True)
    return found.clamp(max=log_w.shape[1] - 1).movedim(-1, 1)


def resampled(particles: Particles, log_w: Tensor, count: int) -> Tensor:
    """Positions `[R · count, b, Z]` of the particles that stand for the weights `[R, N, b]`."""
    num_islands, _, num_data = log_w.shape
    places = systematic(log_w, count)
    columns = torch.arange(num_data, device=places.device)
    rows = torch.arange(num_islands, device=places.device).reshape(-1, 1, 1)
    steps, chains = particles.z.shape[:2]
    per_island = chains // num_islands
    chain = rows * per_island + places // steps
    return particles.z[places % steps, chain, columns].flatten(0, 1)


def moved(
    path: AbstractPath,
    ancestors: Tensor,
    num_steps: int,
    transition: Callable[[hmc.State, int], hmc.State],
) -> Particles:
    """Every position of chains from ancestors `[C, b, Z]`, these being the first.

    Args:
        path: whose terms are to be known.
        ancestors: where the chains begin.
        num_steps: P.
        transition: gives the next state, and is told the number of the step, from 0.
    """
    state = path.state(ancestors)
    z, log_probs = [state.z], [state.log_probs]  # not the gradients, which are larger than both
    for number in range(num_steps - 1):
        state = transition(state, number)
        z.append(state.z)
        log_probs.append(state.log_probs)
    return Particles(torch.stack(z), torch.stack(log_probs, 1))
