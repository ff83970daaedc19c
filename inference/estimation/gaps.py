"""Why the ELBO falls short of the evidence: the family, or the encoder that amortizes it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import Trace_ELBO
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from evidence.inference.estimation.difference import Difference, paired_difference
from evidence.inference.estimation.evidence import Evidence, from_log_weights
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.enumeration import trace_summed_out
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.masks import InFull, without_effect
from evidence.inference.programs.per_datum import expect_per_datum
from evidence.inference.programs.random_state import isolated_rng, rng_state, set_rng_state
from evidence.inference.programs.traces import Program, random_sites, trace_pair
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.inference.soundness.pairs import expect_sound_pair
from evidence.inference.training.tempering import Unscaled

# Weights in one call of the evaluation, which takes all particles of a datum at once.
_WEIGHTS_AT_WORK = 2**13

_STEPS_PER_LOOK = 100
_LOOKS_WITHOUT_GAIN = 10


@runtime_checkable
class AmortizedGuide(Protocol):
    """What a guide must have: local parameters λ for every datum that can be taken and given."""

    def local_parameters(self, x: Batch) -> Tensor:
        """λ(x), unconstrained: `[B, P]`."""

    def given(self, local_parameters: Tensor) -> Program:
        """A Pyro guide of the same family for one batch whose λ, `[B, P]`, is given."""


@dataclass(frozen=True)
class Gaps:
    """Where the ELBO loses against the evidence, per datum and in the mean, in nats.

        log p(x) − L[q] = (log p(x) − L[q*]) + (L[q*] − L[q])
             total      =   approximation    +  amortization

    with q* the best member of the guide's family for each datum. What the search for q* leaves
    undone is counted as approximation, and an evidence that is only a lower bound makes the
    approximation gap too small.

    Args:
        approximation: log p̂(x) − L[q*]: what a richer family could gain.
        amortization: L[q*] − L[q]: what a better encoder could gain.
        total: log p̂(x) − L[q].
        evidence: the log p̂(x) used.
        best_parameters: λ of q*, `[B, P]`.
        num_steps: steps of the search for q*.
        converged: whether the search stopped because nothing was gained any more.
    """

    approximation: Difference
    amortization: Difference
    total: Difference
    evidence: Evidence
    best_parameters: Tensor
    num_steps: int
    converged: bool

    def __str__(self) -> str:
        rows = ("approximation", "amortization", "total")
        lines = [f"{name:>13}: {getattr(self, name)}" for name in rows]
        if not self.converged:
            lines.append(f"the search for q* was still gaining after {self.num_steps} steps")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Search:
    """How q* is looked for."""

    lr: float
    num_draws: int
    max_steps: int
    restart: bool
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("num_draws", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"expected {name} of at least 1, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"expected a finite lr > 0, got {self.lr}")


def inference_gaps(
    model: Program,
    guide: AmortizedGuide | Program,
    x: Batch,
    *,
    num_particles: int = 1000,
    evidence: Evidence | None = None,
    lr: float = 0.01,
    num_draws: int = 8,
    max_steps: int = 10_000,
    restart: bool = False,
    progress: bool = False,
) -> Gaps:
    """The approximation and the amortization gap of a guide on the data `x`.

    q* has local parameters of its own for every datum, found by Adam on the ELBO, for all data at
    once, from the encoder's λ(x) on. After every 100 steps their mean ELBO is looked at; each time
    that it has not risen the learning rate is halved, and the tenth such time ends the search. λ is
    averaged from the first such time on.

    Noise is drawn anew at every step, and q* is judged by draws that the search has not seen: on
    its own draws any q* looks better than it is. L[q*] and L[q] are estimated with common noise.

    Reference: C. Cremer, X. Li, D. Duvenaud, "Inference Suboptimality in Variational Autoencoders",
    2018, https://arxiv.org/abs/1801.03558, section 3.

    Args:
        model: called with a batch; scores it.
        guide: a Pyro guide with `local_parameters(x)` and `given(λ)`, as all of the suite have.
        x: data `[B, *data_shape]`; all of them are optimized at once.
        num_particles: S, draws per datum for each of L[q], L[q*] and log p̂(x).
        evidence: log p̂(x) of the same data, estimated with other draws; importance-weighted
            with q* by default.
        lr: Adam's first learning rate.
        num_draws: draws per datum and step of the search.
        max_steps: the most steps of the search.
        restart: search a second time, from the mean of λ over the data, and keep for every datum
            what is better.
        progress: show a progress bar of the search, which mostly ends before the most steps.

    Returns:
        The gaps, in nats per datum.

    Raises:
        ValueError: a guide without local parameters, an evidence of other data, an ELBO that is
            not finite; or as `log_weights`.
    """
    search = _Search(lr, num_draws, max_steps, restart, progress)
    if num_particles < 2:
        raise ValueError(f"expected num_particles of at least 2, got {num_particles}")
    x = as_data(x).detach()  # data simulated from a model remember its parameters
    model, guide = takes(model, x), _amortized(guide)
    start = _start(guide, x)
    expect_per_datum(model, _rowwise(guide, start), x, "a gap")
    expect_sound_pair(model, _rowwise(guide, start), x)
    if evidence is not None and evidence.num_data != len(x):
        raise ValueError(f"expected an evidence of {len(x)} data, got {evidence.num_data}")
    family = _Family(model, guide, x)
    family.weights(start[:1], slice(0, 1), 1)  # what is wrong with the pair shows before the search
    with InFull(_masked_without_effect(family, start)):
        best, num_steps, converged = _best_parameters(family, start, search)
    if evidence is None:
        evidence = family.evidence(best, num_particles)
    at_start, at_best, amortization = _bounds(family, start, best, num_particles)
    return Gaps(
        paired_difference(evidence, at_best),
        amortization,
        paired_difference(evidence, at_start),
        evidence,
        best,
        num_steps,
        converged,
    )


def _amortized(guide: AmortizedGuide | Program) -> AmortizedGuide:
    if not isinstance(guide, AmortizedGuide):
        raise ValueError(
            "expected a guide with local_parameters(x) and given(local_parameters), such as any of "
            f"guides, got {type(guide).__name__}"
        )
    return guide


def _start(guide: AmortizedGuide, x: Batch) -> Tensor:
    """The encoder's λ(x): `[B, P]`."""
    check_data(x)
    with torch.no_grad(), evaluation_mode(guide):
        start = takes(guide.local_parameters, x)(x)
    if start.ndim != 2 or len(start) != len(x):
        raise ValueError(
            f"expected local parameters of shape ({len(x)}, P), got {tuple(start.shape)}"
        )
    return start.detach().clone()


@dataclass(frozen=True)
class _Family:
    """The guide's family on the data, each member given by λ `[B, P]`."""

    model: Program
    guide: AmortizedGuide
    x: Batch

    def weights(self, parameters: Tensor, rows: slice, num_particles: int) -> Tensor:
        """Log w of some data under their λ `[b, P]`: `[S, b]`."""
        return unchecked_log_weights(
            self.model,
            _rowwise(self.guide, parameters),
            self.x[rows],
            num_particles,
            chunk_size=num_particles * len(parameters),  # one call for all: λ is for these rows
        )

    def rows(self, num_particles: int) -> list[slice]:
        """Some data at a time, so that not too many weights are at work."""
        size = max(1, _WEIGHTS_AT_WORK // num_particles)
        return [slice(at, min(at + size, len(self.x))) for at in range(0, len(self.x), size)]

    def evidence(self, parameters: Tensor, num_particles: int) -> Evidence:
        """The importance-weighted evidence under λ `[B, P]`."""
        parts = [
            from_log_weights(self.weights(parameters[rows], rows, num_particles))["iw"]
            for rows in self.rows(num_particles)
        ]
        return Evidence.concatenate(parts)


def _masked_without_effect(family: _Family, parameters: Tensor) -> frozenset[str]:
    """Latents that the weights count in full, and so must the ELBO of the search; see `masks`."""
    guide = _rowwise(family.guide, parameters)
    with isolated_rng(device=family.x.device), torch.no_grad():
        traces = trace_pair(family.model, guide, family.x)
    return without_effect(family.model, family.x, traces.model, traces.guide)


def _rowwise(guide: AmortizedGuide, parameters: Tensor) -> Program:
    """The guide at λ `[b, P]`, for a batch of these b data, or of these and some of them again."""

    def program(x: Batch) -> Any:
        rows = torch.arange(len(x), device=parameters.device) % len(parameters)
        return takes(guide.given(parameters[rows]), x)(x)

    return program


def _bounds(
    family: _Family, start: Tensor, best: Tensor, num_particles: int
) -> tuple[Evidence, Evidence, Difference]:
    """L[q], L[q*] and their difference, with common noise."""
    parts: list[tuple[Evidence, Evidence]] = []
    gains, variances = [], []
    for rows in family.rows(num_particles):
        state = rng_state(family.x.device)
        log_w = family.weights(start[rows], rows, num_particles).double()
        set_rng_state(state, family.x.device)
        log_w_best = family.weights(best[rows], rows, num_particles).double()
        parts.append((from_log_weights(log_w)["elbo"], from_log_weights(log_w_best)["elbo"]))
        gains.append((log_w_best - log_w).mean(0))
        variances.append((log_w_best - log_w).var(0) / num_particles)
    at_start, at_best = (Evidence.concatenate(side) for side in zip(*parts, strict=True))
    return at_start, at_best, Difference(torch.cat(gains), torch.cat(variances))


def _best_parameters(family: _Family, start: Tensor, search: _Search) -> tuple[Tensor, int, bool]:
    """λ of q*, the steps that it took, and whether the search converged."""
    starts = [start, start.mean(0).expand_as(start)] if search.restart else [start]
    found = [_ascend(family, point, search) for point in starts]
    candidates = [start, *(parameters for parameters, _, _ in found)]
    best = _best_of(family, candidates, _STEPS_PER_LOOK * search.num_draws)
    return best, sum(steps for _, steps, _ in found), all(converged for *_, converged in found)


def _best_of(family: _Family, candidates: Sequence[Tensor], num_particles: int) -> Tensor:
    """For every datum the candidate λ `[B, P]` with the largest ELBO, by common noise."""
    best = []
    for rows in family.rows(num_particles):
        state, elbos = rng_state(family.x.device), []
        for parameters in candidates:
            set_rng_state(state, family.x.device)
            elbos.append(family.weights(parameters[rows], rows, num_particles).mean(0))
        choice = torch.stack(elbos).nan_to_num(-math.inf).argmax(0)  # [b]
        of_rows = torch.stack([parameters[rows] for parameters in candidates])
        best.append(of_rows[choice, torch.arange(len(choice), device=choice.device)])
    return torch.cat(best)


@torch.enable_grad()
def _ascend(family: _Family, start: Tensor, search: _Search) -> tuple[Tensor, int, bool]:
    """Adam from λ `[B, P]`: where it led, its steps, and whether it stopped by itself.

    Once the ELBO gains no more, λ only jitters: the mean of the steps from there on is returned.
    """
    parameters = start.clone().requires_grad_()
    adam = torch.optim.Adam([parameters], lr=search.lr)  # acts on each entry by itself
    mean, averaged = torch.zeros_like(start), 0
    plateau = _Plateau()
    with evaluation_mode(family.model, family.guide):
        steps = tqdm(
            range(1, search.max_steps + 1),
            "search for q*",
            disable=not search.progress,
            unit="step",
        )
        for step in steps:
            loss = _loss(family, parameters, search.num_draws)
            (parameters.grad,) = torch.autograd.grad(loss, parameters)
            _check_finite(loss, parameters.grad, step, search.lr)
            adam.step()
            adam.param_groups[0]["lr"] = search.lr * plateau.observe(loss.item())
            if plateau.looks_without_gain:
                averaged += 1
                mean += (parameters.detach() - mean) / averaged
            if plateau.looks_without_gain == _LOOKS_WITHOUT_GAIN:
                steps.close()
                return mean, step, True
    return mean if averaged else parameters.detach(), search.max_steps, False


class _Plateau:
    """Looks at the mean loss after every 100 steps, and counts the looks that show no gain."""

    def __init__(self) -> None:
        self.looks_without_gain = 0
        self._best = math.inf
        self._losses: list[float] = []

    def observe(self, loss: float) -> float:
        """Take the loss of a step; gives the factor on the learning rate."""
        self._losses.append(loss)
        if len(self._losses) == _STEPS_PER_LOOK:
            mean = math.fsum(self._losses) / _STEPS_PER_LOOK
            self.looks_without_gain += mean >= self._best
            self._best = min(self._best, mean)
            self._losses = []
        return 0.5**self.looks_without_gain


def _check_finite(loss: Tensor, gradient: Tensor, step: int, lr: float) -> None:
    if not (torch.isfinite(loss) and torch.isfinite(gradient).all()):
        raise ValueError(
            f"the ELBO of q* or its gradient is not finite at step {step}: lower the learning "
            f"rate (lr = {lr:g})"
        )


def _loss(family: _Family, parameters: Tensor, num_draws: int) -> Tensor:
    """−Σ of the ELBOs: each row of λ `[B, P]` gets the gradient of its own datum.

    log q is scored with λ held fixed: the gradient through the draws alone has the same mean, and
    no variance once q is the posterior (Roeder et al. 2017, https://arxiv.org/abs/1703.09194).
    """
    rows = torch.arange(len(family.x)).repeat_interleave(num_draws)
    x = family.x[rows]  # rows are independent: no plate is needed
    repeated = parameters.repeat_interleave(num_draws, 0)
    guide = takes(family.guide.given(repeated), x)
    drawn = poutine.trace(guide).get_trace(x)
    if not all(site["fn"].has_rsample for site in random_sites(drawn).values()):
        with Unscaled():
            return Trace_ELBO().differentiable_loss(family.model, guide, x) / num_draws
    held_fixed = poutine.replay(takes(family.guide.given(repeated.detach()), x), trace=drawn)
    log_p_xz = _log_prob_sum(trace_summed_out(family.model, x, drawn))
    log_q_z = _log_prob_sum(poutine.trace(held_fixed).get_trace(x))
    return (log_q_z - log_p_xz) / num_draws


def _log_prob_sum(trace: Trace) -> Tensor:
    """The sum of all unscaled log-probabilities."""
    sites = random_sites(trace).values()
    return sum(scale_and_mask(s["fn"].log_prob(s["value"]), 1.0, s["mask"]).sum() for s in sites)
