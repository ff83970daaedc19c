"""Traces of a pair of Pyro callables: its sites, its plates, and log-probabilities per datum."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from evidence.inference.programs.checks import check_density, check_support, is_deterministic
from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.masks import without_effect
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.supports import zero_outside
from evidence.inference.programs.validation import validated


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


def layout_of(model: Program, guide: Program, x: Batch, *, require_density: bool) -> Layout:
    """Run the pair once, unvectorized, check it and find its plates."""
    with isolated_rng(device=x.device):  # the draws are not used
        traces = checked_traces(model, guide, x)
    if require_density:
        check_density(traces.guide, traces.model)
    outermost = min((frame.dim for frame in _frames(traces)), default=0)
    in_full = without_effect(model, x, traces.model, traces.guide)
    return Layout(_data_dim(model, x, traces), outermost - 1, in_full)


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
    dims = [
        {frame.dim for frame in site["cond_indep_stack"] if frame.vectorized and frame.size == size}
        for trace in traces
        for site in random_sites(trace).values()
    ]
    return set.intersection(*dims) if dims else set()


def _frames(traces: Traces) -> Iterator[CondIndepStackFrame]:
    for trace in traces:
        for site in random_sites(trace).values():
            yield from (frame for frame in site["cond_indep_stack"] if frame.vectorized)


def checked_traces(
    model: Program, guide: Program, x: Batch, *, may_enumerate: bool = False
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
    model: Program, guide: Program, x: Batch, num_particles: int = 1, dim: int | None = None
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
    """The site's unscaled log-probability, summed over all other plates: `[S or 1, M or 1]`."""
    log_p = zero_outside(site, site["fn"].log_prob(site["value"]))
    if site["is_observed"] or site["name"] not in layout.in_full:
        log_p = scale_and_mask(log_p, 1.0, site["mask"])
    depth = -layout.particle_dim
    if log_p.ndim > depth:
        raise ValueError(
            f"site {site['name']!r} has log-probabilities of shape {tuple(log_p.shape)}, with "
            "dimensions that belong to no plate: declare them with .to_event()"
        )
    log_p = log_p.reshape((1,) * (depth - log_p.ndim) + log_p.shape)
    kept = {0, layout.data_axis(depth)}
    others = [dim for dim in range(depth) if dim not in kept]
    log_p = log_p.sum(others) if others else log_p
    log_p = log_p.unsqueeze(1) if layout.is_joint else log_p
    num_weights = layout.num_weights(num_data)
    if log_p.shape[0] not in (1, num_particles) or log_p.shape[1] not in (1, num_weights):
        raise ValueError(
            f"site {site['name']!r} did not broadcast over {num_particles} particles and "
            f"{num_data} data: its log-probabilities are of shape {tuple(log_p.shape)}"
        )
    return log_p


@dataclass(frozen=True)
class LogProbs:
    """The terms of log w = log p(x | z) + log p(z) − log q(z | x), each `[S, M]`, in nats."""

    log_p_x: Tensor
    log_p_z: Tensor
    log_q_z: Tensor

    @property
    def log_w(self) -> Tensor:
        """The log importance weights `[S, M]`."""
        return self.log_p_x + self.log_p_z - self.log_q_z


def terms_of(traces: Traces, num_particles: int, num_data: int, layout: Layout) -> LogProbs:
    """The terms of log w of one run of the pair, each `[S, M]`."""
    log_p_x = log_p_z = log_q_z = torch.zeros(())

    def per_datum(site: dict) -> Tensor:
        return log_prob_per_datum(site, num_particles, num_data, layout)

    for site in random_sites(traces.model).values():
        if site["is_observed"]:
            log_p_x = log_p_x + per_datum(site)
        else:
            log_p_z = log_p_z + per_datum(site)
    for site in random_sites(traces.guide).values():
        log_q_z = log_q_z + per_datum(site)
    shape = num_particles, layout.num_weights(num_data)
    return LogProbs(log_p_x.expand(shape), log_p_z.expand(shape), log_q_z.expand(shape))


def random_sites(trace: Trace) -> dict[str, dict]:
    """The sample sites that have a density, by name; neither subsamples nor deterministic ones."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)
    }
