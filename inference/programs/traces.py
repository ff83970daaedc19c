"""Traces of a pair of Pyro callables: its sites, its plates, and log-probabilities per datum."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from evidence.inference.programs.checks import check_density, check_support
from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.enumeration import trace_summed_out
from evidence.inference.programs.masks import without_effect
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import (
    advice_on_discrete,
    dim_of,
    latent_sites,
    plates_of,
    random_sites,
)
from evidence.inference.programs.validation import validated

PARTICLES = "_particles"  # the name of their plate


class Traces(NamedTuple):
    """One run of a guide, and of the model replayed against it."""

    guide: Trace
    model: Trace


@dataclass(frozen=True)
class Layout:
    """Where the data and the particles are among the batch dimensions, counted from the right.

    Every random site inside a plate over the data has a weight for each of them: M = N weights per
    draw, per datum. A site outside of it, a latent that all data share, leaves one joint weight,
    M = 1, that of the data set.

    Args:
        data_dim: of the plate over the data; None for a joint weight.
        particle_dim: left of all plates.
        in_full: latents that are scored as if the model did not mask them; see `masks`.
    """

    data_dim: int | None
    particle_dim: int
    in_full: frozenset[str] = frozenset()

    @property
    def is_joint(self) -> bool:
        """Whether there is one weight for all data."""
        return self.data_dim is None

    def num_weights(self, num_data: int) -> int:
        """M, the weights of a draw for so many data."""
        return 1 if self.is_joint else num_data

    def data_axis(self, depth: int) -> int | None:
        """Which of `depth` batch dimensions is that of the data; None for a joint weight."""
        return None if self.data_dim is None else depth + self.data_dim

    def align(self, per_weight: Tensor, num_dims: int) -> Tensor:
        """`[S, M]` in so many batch dimensions of the pair, of size 1 where there is no weight."""
        shape = [1] * -self.particle_dim
        shape[self.particle_dim] = -1
        if self.data_dim is not None:
            shape[self.data_dim] = per_weight.shape[1]
        aligned = per_weight.reshape(shape)
        return aligned.reshape(aligned.shape[aligned.ndim - num_dims :])


def layout_of(
    model: Program,
    guide: Program,
    x: Batch,
    *,
    require_density: bool,
) -> Layout:
    """Run the pair once, unvectorized, check it and find its plates."""
    with isolated_rng(device=x.device):  # the draws are not used
        traces = checked_traces(model, guide, x)
        if require_density:
            again = partial(poutine.trace(guide).get_trace, x)
            check_density(traces.guide, traces.model, again=again)
    in_full = without_effect(model, x, traces.model, traces.guide)
    return Layout(_data_dim(model, x, traces), outermost_dim(traces) - 1, in_full)


def _data_dim(model: Program, x: Batch, traces: Traces) -> int | None:
    """The dim of the plate over the data that all sites are in, or None if there is no such plate.

    A plate of another kind may have as many entries by chance: it does not grow with the data.
    """
    dims = common_dims(traces, len(x))
    if not dims:
        return None
    larger = trace_of_one_more(model, x)
    if larger is not None:
        dims &= common_dims([larger], len(x) + 1)
    if len(dims) > 1:
        raise ValueError(
            f"expected one plate over the {len(x)} data, got {len(dims)} of them, one in another"
        )
    return next(iter(dims), None)


@torch.no_grad()
def trace_of_one_more(model: Program, x: Batch) -> Trace | None:
    """A run of the model on one datum more, the first again: which of its plates grow along?

    None of a model for so many data and no others, or one whose prior cannot be drawn from.
    """
    rows = torch.arange(len(x) + 1, device=x.device) % len(x)
    with isolated_rng(device=x.device):
        try:
            return poutine.trace(model).get_trace(x[rows])
        except Exception:  # whatever a program raises
            return None


def common_dims(traces: Iterable[Trace], size: int) -> set[int]:
    """The dims of plates of this size that all sites are in; they may have different names."""
    return {dim for dim, its_size in _in_common(traces, _dim_and_size) if its_size == size}


def common_plate(traces: Traces) -> CondIndepStackFrame | None:
    """The outermost plate that all random sites are in, as the model has it, or None.

    A training step has no time to see, as `layout_of` does, which plates grow with the data: those
    of different names in one program are different plates here.
    """
    in_both = _in_common(traces, _dim_and_size)
    frames: set[CondIndepStackFrame] = _in_common([traces.model], lambda frame: frame)
    shared = [f for f in frames if _dim_and_size(f) in in_both and f.name != PARTICLES]
    return min(shared, key=dim_of, default=None)


def outermost_dim(traces: Iterable[Trace]) -> int:
    """The leftmost dim of all plates, but for that of particles; 0 if there are none."""
    sites = [site for trace in traces for site in random_sites(trace).values()]
    frames = [f for s in sites for f in (*plates_of(s), *s["infer"].get("summed_plates", ()))]
    return min((dim_of(frame) for frame in frames if frame.name != PARTICLES), default=0)


def _in_common(traces: Iterable[Trace], key: Callable[[CondIndepStackFrame], Any]) -> set:
    """What the plates of all random sites have in common."""
    sites = [site for trace in traces for site in random_sites(trace).values()]
    return set.intersection(*({key(f) for f in plates_of(s)} for s in sites)) if sites else set()


def _dim_and_size(frame: CondIndepStackFrame) -> tuple[int, int]:
    return dim_of(frame), frame.size


def checked_traces(model: Program, guide: Program, x: Batch) -> Traces:
    """Run the pair once under validation, and check its data, its shapes and its sites."""
    with validated(x):
        traces = trace_pair(model, guide, x)
    check_support(traces.model, lambda: trace_pair(model, guide, x).model)
    check_batch_shapes(traces)
    check_sites(traces)
    return traces


def check_batch_shapes(traces: Iterable[Trace]) -> None:
    """Check that the batch dimensions of every site are those of its plates, as Pyro's ELBOs do.

    A mean `[B, 1]` against data `[B]` has log-probabilities `[B, B]`, of every datum under every
    other one's mean, whose sum means nothing.

    Raises:
        ValueError: names the site.
    """
    for trace in traces:
        for name, site in random_sites(trace).items():
            fn, value = site["fn"], site["value"]
            batch = fn.batch_shape, value.shape[: value.ndim - fn.event_dim]
            plates = {f.dim: f.size for f in site["cond_indep_stack"] if f.vectorized}
            if not _are_of_plates(batch, plates):
                raise ValueError(
                    f"site {name!r} has a distribution of batch shape {tuple(batch[0])} and a "
                    f"value of {tuple(batch[1])}, with dimensions that belong to no plate: declare "
                    "them with .to_event(), or give both the shape of their plates "
                    f"{_shape_of(plates)}"
                )


def _are_of_plates(shapes: tuple[torch.Size, torch.Size], plates: dict[int, int]) -> bool:
    """Whether the shapes, broadcast, are those of plates by dim; between plates any may be."""
    try:
        shape = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        return False
    outermost = min(plates, default=0)
    sizes = {dim: shape[dim] for dim in range(-len(shape), 0)}
    return all(
        size == plates.get(dim, 1 if dim < outermost else size) for dim, size in sizes.items()
    ) and all(sizes.get(dim, 1) == size for dim, size in plates.items())


def _shape_of(plates: dict[int, int]) -> tuple[int, ...]:
    return tuple(plates.get(dim, 1) for dim in range(min(plates, default=0), 0))


def check_sites(traces: Traces) -> None:
    """Check that the guide samples the model's latent sites and, but for auxiliary ones, no others.

    Raises:
        ValueError: it does not.
    """
    latents, guided = latent_sites(traces.model), random_sites(traces.guide)
    auxiliary = {name for name, site in guided.items() if site["infer"].get("is_auxiliary")}
    if missing := sorted(latents.keys() - guided.keys()):
        advice = advice_on_discrete(latents[name] for name in missing)
        raise ValueError(f"the guide does not sample the model's latent sites {missing}{advice}")
    if extra := sorted(guided.keys() - latents.keys() - auxiliary):
        raise ValueError(
            f"the guide samples {extra}, which are no latent sites of the model: rename them, or "
            "give the model sites of these names too, of any density given the latents and x"
        )


def takes_subsamples(model_trace: Trace, batch: Batch) -> bool:
    """Whether the model draws some rows of the batch by itself, so that one run misses others."""
    return any(
        frame.full_size == len(batch) != frame.size
        for site in random_sites(model_trace).values()
        for frame in site["cond_indep_stack"]
    )


def particle_plate(num_particles: int, dim: int | None) -> AbstractContextManager:
    """The plate of so many particles, left of all others; none if it has no dim."""
    return nullcontext() if dim is None else pyro.plate(PARTICLES, num_particles, dim=dim)


def trace_pair(
    model: Program,
    guide: Program,
    x: Batch,
    num_particles: int = 1,
    dim: int | None = None,
    *,
    show: Callable[[Trace], Trace] | None = None,
) -> Traces:
    """Trace the guide, and the model replayed against it, or what `show` makes of it.

    Under a plate of particles if `dim` and there are several.
    """
    with particle_plate(num_particles, None if num_particles == 1 else dim):
        guide_trace = poutine.trace(guide).get_trace(x)
        seen = guide_trace if show is None else show(guide_trace)
        model_trace = trace_summed_out(model, x, seen)
    return Traces(guide_trace, model_trace)
