"""Evidence with as many particles per datum as its error bar asks for."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from evidence.inference.estimation.evidence import Evidence, from_log_weights
from evidence.inference.estimation.modes import caveat_of_modes
from evidence.inference.programs import estimators
from evidence.inference.programs.data import Batch, as_rows, in_memory, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE
from evidence.inference.programs.traces import Program
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.inference.soundness.pairs import expect_sound_pair

# Data at work together; the pilot draws for all of them that still need particles.
_DATA_AT_WORK = 1024
# Weights drawn at a time; one datum may have more.
_WEIGHTS_IN_HAND = 2**21

_Draw = Callable[[Batch, int], Tensor]  # log w [S, B] of some data


@dataclass(frozen=True)
class _Rule:
    target_se: float
    max_particles: int
    batch: int

    def __post_init__(self) -> None:
        if not 0 < self.target_se < math.inf:
            raise ValueError(f"expected a finite target_se > 0, got {self.target_se}")
        if not 2 <= self.batch <= self.max_particles:
            raise ValueError(
                "expected a batch between 2 and max_particles, got "
                f"batch={self.batch}, max_particles={self.max_particles}"
            )


def adaptive_evidence(
    model: Program,
    guide: Program,
    x: Batch,
    *,
    target_se: float = 0.05,
    max_particles: int = 100_000,
    batch: int = 200,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    search_modes: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Evidence:
    """Importance-weighted evidence, with particles added only to the data that need them.

    A pilot decides how many: every datum starts with `batch` particles, and their number doubles
    until half of them, the last ones drawn, say that the Monte Carlo SE of its log p̂(x) is at most
    `target_se` and that no heavy tail speaks against it, or until `max_particles` are reached. The
    estimate is then made from as many fresh particles. They owe the pilot nothing: the weights
    that stopped it are those that have not shown their large ones yet, and low. In return the SE
    that they state may come out somewhat above the target.

    The log of a mean is low by half its variance, which over many data does not average out: it is
    taken off by the jackknife, so that the record is no lower bound. With a target of 0.3 nat, two
    SE around the mean of 30 data held the exact mean in 92% to 98% of 100 repetitions, for guides
    wider and narrower than the posterior.

    Reference: S. Nowozin, "Debiasing Evidence Approximations: On Importance-Weighted Autoencoders
    and Jackknife Variational Inference", 2018, https://openreview.net/forum?id=HyZoi-WRb.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`.
        target_se: the Monte Carlo SE wanted for every datum, in nats.
        max_particles: the most particles for one datum; its SE stays above the target then.
        batch: the number of particles that every datum starts with.
        chunk_size: see `log_weights`.
        search_modes: see `estimate_evidence`.
        progress: called with the number of data done since the last call.

    Returns:
        The record "iw", in nats per datum, with the number of particles of each datum.

    Raises:
        ValueError: as `log_weights`, or a bad option.
    """
    rule = _Rule(target_se, max_particles, batch)
    rows = as_rows(x)
    model, guide = takes(model, rows), takes(guide, rows)
    sound = expect_sound_pair(model, guide, rows)
    draw = partial(unchecked_log_weights, model, guide, chunk_size=chunk_size)
    if sound.is_joint:  # one datum of its own, whatever its number
        x = in_memory(rows)
        draw_all, one = lambda _, number: draw(x, number), torch.zeros(1)
        record = _estimate(draw_all, one, _pilot(draw_all, one, rule))
        record = record.of(sound.on_edge, len(x))
        caveat = caveat_of_modes(record, model, guide, x) if search_modes else record.caveat
        return dataclasses.replace(record, caveat=caveat)
    parts = []
    for chunk in rows.split(_DATA_AT_WORK):
        parts.append(_estimate(draw, chunk, _pilot(draw, chunk, rule)))
        if progress is not None:
            progress(len(chunk))
    return Evidence.concatenate(parts).of(sound.on_edge, None)


def _pilot(draw: _Draw, x: Batch, rule: _Rule) -> Tensor:
    """How many particles each datum needs, or all that it may have: `[B]`."""
    needed = torch.full((len(x),), rule.max_particles, device=x.device)
    active = torch.arange(len(x), device=x.device)
    drawn = 0  # particles of every datum that is still active
    while len(active) and drawn < rule.max_particles:
        more = min(max(rule.batch, drawn), rule.max_particles - drawn)
        drawn += more
        enough = torch.zeros(len(active), dtype=torch.bool, device=x.device)
        for rows in _in_hand(len(active), more):
            last = from_log_weights(draw(x[active[rows]], more))["iw"]
            se = (last.log_px_variance * (more / drawn)).sqrt()
            enough[rows] = (se <= rule.target_se) & ~last.unsupported
        needed[active[enough]] = drawn
        active = active[~enough]
    return needed


def _estimate(draw: _Draw, x: Batch, particles: Tensor) -> Evidence:
    """The record of `x` from as many particles for each datum as are given, `[B]`."""
    parts, order = [], []
    for count in particles.unique().tolist():
        alike = (particles == count).nonzero().squeeze(1)
        for rows in _in_hand(len(alike), count):
            order.append(alike[rows])
            parts.append(_corrected(draw(x[order[-1]], count)))
    back = torch.cat(order).argsort()
    joined = Evidence.concatenate(parts)
    fields = ("log_px", "log_px_variance", "ess", "k_hat", "particles")
    cost = 2 * int(particles.sum())  # the pilot drew as many
    sorted_back = {name: getattr(joined, name)[back] for name in fields}
    return dataclasses.replace(joined, num_evaluations=cost, **sorted_back)


def _corrected(log_w: Tensor) -> Evidence:
    """The record of log-weights `[S, B]`, its bias of order 1/S taken off."""
    record = from_log_weights(log_w)["iw"]
    counts = torch.full_like(record.log_px, len(log_w), dtype=torch.int64)
    return dataclasses.replace(
        record, log_px=estimators.jackknife(log_w.double()), bias=None, particles=counts
    )


def _in_hand(num_data: int, num_particles: int) -> Iterator[slice]:
    """So many data at a time that not too many weights are at work."""
    size = max(1, _WEIGHTS_IN_HAND // num_particles)
    for start in range(0, num_data, size):
        yield slice(start, min(start + size, num_data))
