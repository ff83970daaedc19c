"""Per-datum importance weights of any Pyro pair: the one quantity behind every estimate."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.checks import check_data, check_support
from inference.evaluation import evaluation_mode
from inference.soundness import expect_sound_pair
from inference.traces import (
    Layout,
    Program,
    Traces,
    layout_of,
    log_prob_per_datum,
    random_sites,
    trace_pair,
)

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
            missing data plate, a guide that is a point mass, or a pair whose weights do not average
            to p(x); see `soundness.expect_sound_pair`.
    """
    expect_sound_pair(model, guide, x)
    return unchecked_log_weights(
        model,
        guide,
        x,
        num_particles,
        vectorize_particles=vectorize_particles,
        chunk_size=chunk_size,
    )


def unchecked_log_weights(
    model: Program,
    guide: Program,
    x: Tensor,
    num_particles: int = 1,
    *,
    vectorize_particles: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> Tensor:
    """`log_weights` of a pair that has been checked: its loop over data and particles."""
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
        layout = layout_of(model, guide, x[:chunk_size], require_density=require_density)
        refuse_new_parameters()
        for columns in slices(len(x), data_per_call):
            for rows in slices(num_particles, particles_per_call):
                size = rows.stop - rows.start
                traces = trace_pair(model, guide, x[columns], size, layout.particle_dim)
                if rows.start == 0:
                    check_support(traces.model)
                put(rows, columns, terms_of(traces, size, len(x[columns]), layout))


def slices(total: int, size: int) -> Iterator[slice]:
    """`total` rows, `size` at a time."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def terms_of(traces: Traces, num_particles: int, num_data: int, layout: Layout) -> LogProbs:
    """The terms of log w of one run of the pair, each `[S, B]`."""
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
    shape = num_particles, num_data
    return LogProbs(log_p_x.expand(shape), log_p_z.expand(shape), log_q_z.expand(shape))
