"""Traces of a pair of Pyro callables: its sites, its plates, and log-probabilities per datum."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.checks import check_density, check_support, is_deterministic
from inference.random_state import isolated_rng
from inference.supports import zero_outside
from inference.validation import validated

Program = Callable[..., Any]  # a Pyro model or guide, called with a batch x


class Traces(NamedTuple):
    """One run of a guide, and of the model replayed against it."""

    guide: Trace
    model: Trace


@dataclass(frozen=True)
class Layout:
    """Where the data and the particles are among the batch dimensions, counted from the right."""

    data_dim: int
    particle_dim: int


def layout_of(model: Program, guide: Program, x: Tensor, *, require_density: bool) -> Layout:
    """Run the pair once, unvectorized, check it and find its plates."""
    with isolated_rng(device=x.device):  # the draws are not used
        traces = checked_traces(model, guide, x)
    if require_density:
        check_density(traces.guide, traces.model)
    dims = _data_dims(traces, len(x))
    if len(dims) > 1:  # a plate of another kind has this size by chance: it will not grow along
        with isolated_rng(device=x.device):
            larger = trace_pair(model, guide, torch.cat([x, x[:1]]))
        dims &= _data_dims(larger, len(x) + 1)
    if len(dims) != 1:
        raise ValueError(
            f"expected one plate over the {len(x)} data, got {len(dims)} of this size: put the "
            'sites of model and guide inside `with pyro.plate("data", len(x)):`'
        )
    (data_dim,) = dims
    return Layout(data_dim, min(frame.dim for frame in _frames(traces)) - 1)


def _data_dims(traces: Traces, size: int) -> set[int]:
    """The dims of plates of this size. Model and guide may name the plate differently."""
    return {frame.dim for frame in _frames(traces) if frame.size == size}


def _frames(traces: Traces) -> Iterator[CondIndepStackFrame]:
    for trace in traces:
        for site in random_sites(trace).values():
            yield from (frame for frame in site["cond_indep_stack"] if frame.vectorized)


def checked_traces(
    model: Program, guide: Program, x: Tensor, *, may_enumerate: bool = False
) -> Traces:
    """Run the pair once under validation, and check its data, its shapes and its sites."""
    with validated(x):
        traces = trace_pair(model, guide, x)
    check_support(traces.model)
    check_batch_shapes(traces)
    check_sites(traces, may_enumerate=may_enumerate)
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


def check_sites(traces: Traces, *, may_enumerate: bool = False) -> None:
    """Check that the guide samples the model's latent sites and, but for auxiliary ones, no others.

    Args:
        traces: of one run.
        may_enumerate: latents that the model enumerates in parallel need no guide.

    Raises:
        ValueError: it does not.
    """
    sites = random_sites(traces.model)
    latents = {name for name, site in sites.items() if not site["is_observed"]}
    guided = set(random_sites(traces.guide))
    if may_enumerate:
        latents -= {n for n in latents - guided if sites[n]["infer"].get("enumerate") == "parallel"}
    auxiliary = {n for n in guided if traces.guide.nodes[n]["infer"].get("is_auxiliary")}
    if missing := sorted(latents - guided):
        raise ValueError(f"the guide does not sample the model's latent sites {missing}")
    if extra := sorted(guided - latents - auxiliary):
        raise ValueError(
            f"the guide samples {extra}, which are no latent sites of the model: rename them, or "
            "give the model sites of these names too, of any density given the latents and x"
        )


def trace_pair(
    model: Program, guide: Program, x: Tensor, num_particles: int = 1, dim: int | None = None
) -> Traces:
    """Trace the guide, and the model replayed against it; under a plate of particles if `dim`."""
    if dim is None or num_particles == 1:
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    else:
        with pyro.plate("_particles", num_particles, dim=dim):
            guide_trace = poutine.trace(guide).get_trace(x)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    return Traces(guide_trace, model_trace)


def log_prob_per_datum(site: dict, num_particles: int, num_data: int, layout: Layout) -> Tensor:
    """The site's unscaled log-probability, summed over all other plates: `[S or 1, B or 1]`."""
    if layout.data_dim not in {frame.dim for frame in site["cond_indep_stack"]}:
        raise ValueError(
            f"site {site['name']!r} is outside the plate over the data: all data share it, so "
            "there is no weight per datum; move it inside the plate"
        )
    log_p = zero_outside(site, site["fn"].log_prob(site["value"]))
    log_p = scale_and_mask(log_p, 1.0, site["mask"])
    depth = -layout.particle_dim
    if log_p.ndim > depth:
        raise ValueError(
            f"site {site['name']!r} has log-probabilities of shape {tuple(log_p.shape)}, with "
            "dimensions that belong to no plate: declare them with .to_event()"
        )
    log_p = log_p.reshape((1,) * (depth - log_p.ndim) + log_p.shape)
    kept = {0, depth + layout.data_dim}
    others = [dim for dim in range(depth) if dim not in kept]
    log_p = log_p.sum(others) if others else log_p
    if log_p.shape[0] not in (1, num_particles) or log_p.shape[1] not in (1, num_data):
        raise ValueError(
            f"site {site['name']!r} did not broadcast over {num_particles} particles and "
            f"{num_data} data: pass vectorize_particles=False"
        )
    return log_p


def random_sites(trace: Trace) -> dict[str, dict]:
    """The sample sites that have a density, by name; neither subsamples nor deterministic ones."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)
    }
