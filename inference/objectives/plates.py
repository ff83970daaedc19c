"""Which plates a weight belongs to, and sums of log-probabilities over all others."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from evidence.inference.programs.traces import random_sites

PARTICLES = "_particles"

Site = dict[str, Any]


class Run(NamedTuple):
    """The traces of a guide, and of the model replayed against it."""

    guide: Trace
    model: Trace


@dataclass(frozen=True)
class Plates:
    """The plates that all random sites of a pair share: each of their M entries has a weight.

    A model with latents per datum has a weight per datum, M = B; a latent that all data share
    leaves no plate in common, and one joint weight, M = 1.

    Args:
        depth: the number of batch dims, the particles' included, which is the leftmost.
        sizes: the sizes of the shared plates, by dim.
        factor: by how much the shared plates are larger than their subsamples, N / B.
    """

    depth: int
    sizes: dict[int, int]
    factor: float

    def sum_rest(self, site: Site, value: Tensor | None = None) -> Tensor:
        """The log-probability of a site per particle and weight: `[S, M]`, in nats.

        Masks apply, and so does `poutine.scale`; the subsampling of the shared plates does not,
        which multiplies a bound once it is finished.

        Args:
            site: of a trace.
            value: to score instead of the site's own.
        """
        log_p = site["fn"].log_prob(site["value"] if value is None else value)
        scale = site["scale"] / _subsampling(frame for frame in _frames(site) if self._is_in(frame))
        log_p = scale_and_mask(log_p, scale, site["mask"])
        log_p = log_p.reshape((1,) * (self.depth - log_p.ndim) + log_p.shape)
        rest = [d for d in range(1, self.depth) if d - self.depth not in self.sizes]
        log_p = log_p.sum(rest, keepdim=True) if rest else log_p
        return log_p.expand(-1, *self.shape).reshape(len(log_p), -1)

    @property
    def shape(self) -> list[int]:
        """The M weights of a particle by plate; 1 in place of a plate that is not shared."""
        return [self.sizes.get(dim, 1) for dim in range(1 - self.depth, 0)]

    def align(self, per_weight: Tensor, site: Site) -> Tensor:
        """`[S, M]` in the shape of the values of a site, with ones where they differ."""
        plates = per_weight.reshape(-1, *self.shape)
        event_dim = site["fn"].event_dim
        batch_dims = site["value"].ndim - event_dim
        return plates.reshape(plates.shape[self.depth - batch_dims :] + (1,) * event_dim)

    def _is_in(self, frame: CondIndepStackFrame) -> bool:
        return self.sizes.get(frame.dim) == frame.size


def shared_plates(run: Run, particle_dim: int | None) -> Plates:
    """The plates that all random sites share; model and guide may name them differently."""
    depth = nesting(run) + 1 if particle_dim is None else -particle_dim
    model_frames, guide_frames = _in_common(run.model), _in_common(run.guide)
    sizes = {frame.dim: frame.size for frame in model_frames}
    if random_sites(run.guide):
        theirs = {(frame.dim, frame.size) for frame in guide_frames}
        sizes = {dim: size for dim, size in sizes.items() if (dim, size) in theirs}
    return Plates(depth, sizes, _subsampling(f for f in model_frames if f.dim in sizes))


def nesting(run: Run) -> int:
    """How many batch dims the plates take.

    Raises:
        ValueError: a site has more, and they belong to no plate.
    """
    sites = [site for trace in run for site in random_sites(trace).values()]
    deepest = max((-frame.dim for site in sites for frame in _frames(site)), default=0)
    for site in sites:
        batch_shape = site["fn"].batch_shape
        if len(batch_shape) > deepest:
            raise ValueError(
                f"expected every batch dim of site {site['name']!r} to belong to a plate, got "
                f"batch shape {tuple(batch_shape)}: declare it with pyro.plate or .to_event()"
            )
    return deepest


def _in_common(trace: Trace) -> set[CondIndepStackFrame]:
    stacks = [set(_frames(site)) for site in random_sites(trace).values()]
    return set.intersection(*stacks) if stacks else set()


def _frames(site: Site) -> list[CondIndepStackFrame]:
    return [f for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]


def _subsampling(frames: Iterable[CondIndepStackFrame]) -> float:
    return math.prod((frame.full_size or frame.size) / frame.size for frame in frames)


def total_weight(site: Site) -> Tensor:
    """Scale × mask of a site for each of its values, `[*batch]`."""
    value, event_dim = site["value"], site["fn"].event_dim
    # Of the value, for the distribution of a replayed site is not expanded over the particles.
    ones = torch.ones(value.shape[: value.ndim - event_dim]).to(value)
    return scale_and_mask(ones, site["scale"], site["mask"]).expand(ones.shape)
