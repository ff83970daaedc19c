"""Per-datum importance weights of any Pyro pair: the one quantity behind every estimate."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from inference.checks import check_data, check_density, check_support, is_deterministic
from inference.parameters import evaluation_store
from inference.random_state import isolated_rng

Program = Callable[..., Any]  # a Pyro model or guide, called with a batch x

DEFAULT_CHUNK_SIZE = 2048


@dataclass(frozen=True)
class LogProbs:
    """The terms of log w = log p(x | z) + log p(z) − log q(z | x), each `[S, B]`, in nats."""

    log_p_x: Tensor
    log_p_z: Tensor
    log_q_z: Tensor

    @property
    def log_w(self) -> Tensor:
        """The log importance weights `[S, B]`."""
        return self.log_p_x + self.log_p_z - self.log_q_z


def log_weights(
    model: Program,
    guide: Program,
    x: Tensor,
    num_particles: int = 1,
    *,
    vectorize_particles: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> Tensor:
    """Log w = log p(x, z) − log q(z | x) with z ~ q(z | x), per particle and per datum.

    Any Pyro pair will do, with any site names and any number of latent sites, as long as all sites
    are inside one plate over the data. Log-probabilities are taken unscaled: neither subsampling
    nor `poutine.scale` changes them; masks do apply.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`.
        num_particles: S, draws per datum.
        vectorize_particles: draw many particles in one call, as a batch dimension left of the
            model's plates. False for programs that cannot be broadcast: one call per particle.
        chunk_size: particles × data in one call; bounds the memory beyond the result's.

    Returns:
        log w `[S, B]` in nats, without gradients.

    Raises:
        ValueError: bad data, data outside the likelihood's support, sites that do not match, a
            missing data plate, or a guide that is a point mass.
    """
    log_w: list[Tensor] = []  # the result, made when its type is known

    def put(rows: slice, columns: slice, terms: LogProbs) -> None:
        if not log_w:
            log_w.append(terms.log_w.new_empty(num_particles, len(x)))
        log_w[0][rows, columns] = terms.log_w

    _visit_chunks(
        model,
        guide,
        x,
        num_particles,
        put,
        vectorize_particles=vectorize_particles,
        chunk_size=chunk_size,
        require_density=True,
    )
    return log_w[0]


def log_prob_terms(
    model: Program,
    guide: Program,
    x: Tensor,
    num_particles: int = 1,
    *,
    vectorize_particles: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> LogProbs:
    """The terms of `log_weights` one by one, each `[S, B]`; a point-mass guide is let through."""
    whole: list[LogProbs] = []

    def put(rows: slice, columns: slice, terms: LogProbs) -> None:
        parts = (terms.log_p_x, terms.log_p_z, terms.log_q_z)
        if not whole:
            whole.append(LogProbs(*(part.new_empty(num_particles, len(x)) for part in parts)))
        results = (whole[0].log_p_x, whole[0].log_p_z, whole[0].log_q_z)
        for result, part in zip(results, parts, strict=True):
            result[rows, columns] = part

    _visit_chunks(
        model,
        guide,
        x,
        num_particles,
        put,
        vectorize_particles=vectorize_particles,
        chunk_size=chunk_size,
        require_density=False,
    )
    return whole[0]


@torch.no_grad()
def _visit_chunks(
    model: Program,
    guide: Program,
    x: Tensor,
    num_particles: int,
    put: Callable[[slice, slice, LogProbs], None],
    *,
    vectorize_particles: bool,
    chunk_size: int,
    require_density: bool,
) -> None:
    """Run the pair on some particles of some data at a time, and hand over each block of terms."""
    check_data(x)
    for name, value in (("num_particles", num_particles), ("chunk_size", chunk_size)):
        if value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}")
    # Many particles of few data: each call encodes its data anew, and that costs least so.
    particles_per_call = min(num_particles, chunk_size) if vectorize_particles else 1
    data_per_call = chunk_size // particles_per_call
    with evaluation_mode(model, guide) as refuse_new_parameters:
        layout = _inspect(model, guide, x[:chunk_size], require_density=require_density)
        refuse_new_parameters()
        for columns in _slices(len(x), data_per_call):
            for rows in _slices(num_particles, particles_per_call):
                size = rows.stop - rows.start
                traces = _trace_pair(model, guide, x[columns], size, layout.particle_dim)
                if rows.start == 0:
                    check_support(traces.model)
                put(rows, columns, _terms(traces, size, len(x[columns]), layout))


def _slices(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


class _Traces(NamedTuple):
    guide: Trace
    model: Trace


@dataclass(frozen=True)
class _Layout:
    """Where the data and the particles are among the batch dimensions, counted from the right."""

    data_dim: int
    particle_dim: int


def _inspect(model: Program, guide: Program, x: Tensor, *, require_density: bool) -> _Layout:
    """Run the pair once, unvectorized, check it and find its plates."""
    with isolated_rng(device=x.device):  # the draws are not used
        traces = _trace_pair(model, guide, x)
    check_support(traces.model)
    _check_sites(traces)
    if require_density:
        check_density(traces.guide)
    dims = _data_dims(traces, len(x))
    if len(dims) > 1:  # a plate of another kind has this size by chance: it will not grow along
        with isolated_rng(device=x.device):
            larger = _trace_pair(model, guide, torch.cat([x, x[:1]]))
        dims &= _data_dims(larger, len(x) + 1)
    if len(dims) != 1:
        raise ValueError(
            f"expected one plate over the {len(x)} data, got {len(dims)} of this size: put the "
            'sites of model and guide inside `with pyro.plate("data", len(x)):`'
        )
    (data_dim,) = dims
    return _Layout(data_dim, min(frame.dim for frame in _frames(traces)) - 1)


def _data_dims(traces: _Traces, size: int) -> set[int]:
    """The dims of plates of this size. Model and guide may name the plate differently."""
    return {frame.dim for frame in _frames(traces) if frame.size == size}


def _frames(traces: _Traces) -> Iterator[CondIndepStackFrame]:
    for trace in traces:
        for site in _random_sites(trace).values():
            yield from (frame for frame in site["cond_indep_stack"] if frame.vectorized)


def _check_sites(traces: _Traces) -> None:
    sites = _random_sites(traces.model)
    latents = {name for name, site in sites.items() if not site["is_observed"]}
    guided = set(_random_sites(traces.guide))
    auxiliary = {n for n in guided if traces.guide.nodes[n]["infer"].get("is_auxiliary")}
    if missing := sorted(latents - guided):
        raise ValueError(f"the guide does not sample the model's latent sites {missing}")
    if extra := sorted(guided - latents - auxiliary):
        raise ValueError(
            f"the guide samples {extra}, which are no latent sites of the model: rename them, or "
            'mark them with infer={"is_auxiliary": True}'
        )


def _trace_pair(
    model: Program, guide: Program, x: Tensor, num_particles: int = 1, dim: int | None = None
) -> _Traces:
    """Trace the guide, and the model replayed against it; under a plate of particles if `dim`."""
    if dim is None or num_particles == 1:
        guide_trace = poutine.trace(guide).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    else:
        with pyro.plate("_particles", num_particles, dim=dim):
            guide_trace = poutine.trace(guide).get_trace(x)
            model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(x)
    return _Traces(guide_trace, model_trace)


def _terms(traces: _Traces, num_particles: int, num_data: int, layout: _Layout) -> LogProbs:
    log_p_x = log_p_z = log_q_z = torch.zeros(())

    def per_datum(site: dict) -> Tensor:
        return _per_datum(site, num_particles, num_data, layout)

    for site in _random_sites(traces.model).values():
        if site["is_observed"]:
            log_p_x = log_p_x + per_datum(site)
        else:
            log_p_z = log_p_z + per_datum(site)
    for site in _random_sites(traces.guide).values():
        log_q_z = log_q_z + per_datum(site)
    shape = num_particles, num_data
    return LogProbs(log_p_x.expand(shape), log_p_z.expand(shape), log_q_z.expand(shape))


def _per_datum(site: dict, num_particles: int, num_data: int, layout: _Layout) -> Tensor:
    """The site's unscaled log-probability, summed over all other plates: `[S or 1, B or 1]`."""
    if layout.data_dim not in {frame.dim for frame in site["cond_indep_stack"]}:
        raise ValueError(
            f"site {site['name']!r} is outside the plate over the data: all data share it, so "
            "there is no weight per datum; move it inside the plate"
        )
    log_p = scale_and_mask(site["fn"].log_prob(site["value"]), 1.0, site["mask"])
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


def _random_sites(trace: Trace) -> dict[str, dict]:
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site) and not is_deterministic(site)
    }


@contextmanager
def evaluation_mode(*programs: Program) -> Iterator[Callable[[], None]]:
    """No validation, modules in evaluation mode and with their parameters to themselves.

    Yields:
        The check of `evaluation_store`.
    """
    training = [
        module
        for program in programs
        if isinstance(program, nn.Module)
        for module in program.modules()
        if module.training
    ]
    try:
        for module in training:
            module.training = False
        with pyro.validation_enabled(False), evaluation_store() as refuse_new_parameters:
            yield refuse_new_parameters
    finally:
        for module in training:
            module.training = True
