"""Evidence with as many particles per datum as its error bar asks for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from inference import estimators
from inference.evidence import Evidence, check_log_weights
from inference.traces import Program
from inference.weights import DEFAULT_CHUNK_SIZE, log_weights

# Data at work together: each holds its largest weights, 3·√max_particles numbers.
_DATA_AT_WORK = 1024
# Weights drawn before they are folded into the running sums.
_WEIGHTS_IN_HAND = 2**21

_Draw = Callable[[Tensor, int], Tensor]  # log w [S, B] of some data


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
    x: Tensor,
    *,
    target_se: float = 0.05,
    max_particles: int = 100_000,
    batch: int = 200,
    reuse_pilot: bool = False,
    vectorize_particles: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    progress: Callable[[int], None] | None = None,
) -> Evidence:
    """Importance-weighted evidence, with particles added only to the data that need them.

    A pilot decides how many: every datum starts with `batch` particles, and their number doubles
    until the Monte Carlo SE of its log p̂(x), √(1/ESS − 1/S), is at most `target_se` or
    `max_particles` are reached. The estimate is then made from as many fresh particles. Of the
    weights only log Σw, log Σw² and the largest few are kept, 3·√max_particles per datum, which is
    all that ESS and k̂ need.

    An estimate from the pilot's own weights costs half and is biased: a datum whose large weights
    have not come up yet has a small SE, stops, and is low. Fresh particles owe the pilot nothing;
    in return the SE that they state may come out somewhat above the target.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`.
        target_se: the Monte Carlo SE wanted for every datum, in nats.
        max_particles: the most particles for one datum; its SE stays above the target then.
        batch: the number of particles that every datum starts with.
        reuse_pilot: estimate from the pilot's weights, at half the cost, with the bias described.
        vectorize_particles: see `log_weights`.
        chunk_size: see `log_weights`.
        progress: called with the number of data done since the last call.

    Returns:
        The record "iw", in nats per datum, with the number of particles of each datum.

    Raises:
        ValueError: as `log_weights`, or a bad option.
    """
    rule = _Rule(target_se, max_particles, batch)
    options = {"vectorize_particles": vectorize_particles, "chunk_size": chunk_size}
    draw = partial(log_weights, model, guide, **options)
    parts = []
    for chunk in x.split(_DATA_AT_WORK):
        sums = _pilot(draw, chunk, rule)
        sums = sums if reuse_pilot else _estimate(draw, chunk, sums.particles)
        parts.append(sums.record())
        if progress is not None:
            progress(len(chunk))
    return Evidence.concatenate(parts)


def _pilot(draw: _Draw, x: Tensor, rule: _Rule) -> "_RunningSums":
    """Draw until every datum has an SE below the target, or all that it may have."""
    sums = _RunningSums(len(x), rule.max_particles, x.device)
    active = torch.arange(len(x), device=x.device)
    drawn = 0  # particles of every datum that is still active
    while len(active) and drawn < rule.max_particles:
        more = min(max(rule.batch, drawn), rule.max_particles - drawn)
        _draw_into(sums, draw, x, active, more)
        drawn += more
        active = active[~(sums.variance()[active].sqrt() <= rule.target_se)]
    return sums


def _estimate(draw: _Draw, x: Tensor, particles: Tensor) -> "_RunningSums":
    """Draw for each datum as many particles as are given, `[B]`."""
    sums = _RunningSums(len(x), int(particles.max()), x.device)
    for count in particles.unique().tolist():
        _draw_into(sums, draw, x, (particles == count).nonzero().squeeze(1), count)
    return sums


def _draw_into(
    sums: "_RunningSums", draw: _Draw, x: Tensor, rows: Tensor, num_particles: int
) -> None:
    """Fold in so many particles of the data `rows`, not too many weights at a time."""
    size = max(1, _WEIGHTS_IN_HAND // len(rows))
    for start in range(0, num_particles, size):
        sums.add(rows, draw(x[rows], min(size, num_particles - start)))


class _RunningSums:
    """What is kept of the weights of B data: sums, and each datum's largest weights."""

    def __init__(self, num_data: int, max_particles: int, device: torch.device) -> None:
        # The most weights that k̂ is fitted to, and its cutoff (see `estimators.k_hat`).
        tail_size = math.ceil(3 * math.sqrt(max_particles)) + 1
        options = {"dtype": torch.float64, "device": device}
        self.particles = torch.zeros(num_data, dtype=torch.int64, device=device)
        self.log_sum = torch.full((num_data,), -math.inf, **options)  # log Σw
        self.log_square_sum = self.log_sum.clone()  # log Σw²
        self.tail = torch.full((tail_size, num_data), -math.inf, **options)  # largest first

    def add(self, rows: Tensor, log_w: Tensor) -> None:
        """Fold in the weights `[S, A]` of the data `rows`, `[A]`."""
        check_log_weights(log_w)
        log_w = log_w.double()
        self.particles[rows] += len(log_w)
        self.log_sum[rows] = torch.logaddexp(self.log_sum[rows], log_w.logsumexp(0))
        squares = (2 * log_w).logsumexp(0)
        self.log_square_sum[rows] = torch.logaddexp(self.log_square_sum[rows], squares)
        known = torch.cat([self.tail[:, rows], log_w])
        self.tail[:, rows] = known.topk(len(self.tail), dim=0).values

    def ess(self) -> Tensor:
        """Effective sample sizes `[B]`."""
        return (2 * self.log_sum - self.log_square_sum).exp()

    def variance(self) -> Tensor:
        """Monte Carlo variances of log p̂(x) by the delta method, 1/ESS − 1/S: `[B]`."""
        return (1 / self.ess() - 1 / self.particles).clamp(min=0)

    def record(self) -> Evidence:
        """The evidence so far."""
        return Evidence(
            "iw",
            int(self.particles.max()),
            self.log_sum - self.particles.double().log(),
            self.variance(),
            self.ess(),
            self._k_hat(),
            self.particles,
        )

    def _k_hat(self) -> Tensor:
        """Pareto tail shapes `[B]`, a few data with the same number of particles at a time."""
        k_hat = torch.empty_like(self.log_sum)
        for count in self.particles.unique().tolist():
            same = (self.particles == count).nonzero().squeeze(1)
            for rows in same.split(max(1, _WEIGHTS_IN_HAND // count)):
                k_hat[rows] = _tail_shapes(self.tail[:, rows], count).to(k_hat)
        return k_hat


def _tail_shapes(tail: Tensor, num_particles: int) -> Tensor:
    """K̂ of weights `[S, B]` of which only the largest, `[M, B]`, are known: `[B]`.

    The fit sees how many weights lie below its cutoff and not where, so that they may all be
    equal to the smallest one known.
    """
    if num_particles <= len(tail):
        return estimators.k_hat(tail[:num_particles])
    below = tail[-1:].expand(num_particles - len(tail), -1)
    return estimators.k_hat(torch.cat([tail, below]))
