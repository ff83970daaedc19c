"""Hamiltonian Monte Carlo for many chains of many data at once, each with its own step size.

A kernel in BlackJAX's style: `init` and `step` on a small state, over a plain log-density. Chains
and data are batch dimensions; nothing that happens to one chain of one datum touches another.

The metric is given by a factor L of a covariance Σ = LLᵀ: `[Z]`, its diagonal, or `[Z, Z]`. Chains
with the mass matrix Σ⁻¹ are chains of unit masses in the coordinates L⁻¹z, and momenta are kept
there.

Reference: R. M. Neal, "MCMC using Hamiltonian dynamics", 2011, https://arxiv.org/abs/1206.1901.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# z `[C, B, Z]` -> log-density `[C, B]`, or several terms of one, each `[C, B]`.
LogDensity = Callable[[Tensor], Tensor | Sequence[Tensor]]
# z `[C, B, Z]` -> the state there, as `init` finds it for a density, or faster.
StateAt = Callable[[Tensor], "State"]


class State(NamedTuple):
    """Where the chains are, and what the density is there.

    Args:
        z: positions `[C, B, Z]`.
        log_probs: the K terms of the log-density `[K, C, B]`, in nats.
        grads: their gradients `[K, C, B, Z]`.
    """

    z: Tensor
    log_probs: Tensor
    grads: Tensor


class Info(NamedTuple):
    """What happened in one step, each `[C, B]`.

    Args:
        acceptance: the probability with which the proposal was accepted.
        is_accepted: whether it was.
        is_divergent: whether its energy was not finite; such a proposal is rejected.
    """

    acceptance: Tensor
    is_accepted: Tensor
    is_divergent: Tensor


def init(z: Tensor, log_density: LogDensity) -> State:
    """The state at positions `z` `[C, B, Z]`: one evaluation of the density and its gradient."""
    z = z.detach().requires_grad_()
    with torch.enable_grad():
        terms = log_density(z)
    terms = [terms] if isinstance(terms, Tensor) else list(terms)
    # One pass per term: terms share little of their graphs, and tempering needs them apart.
    grads = [_gradient(term, z, is_last=term is terms[-1]) for term in terms]
    return State(z.detach(), torch.stack(terms).detach(), torch.stack(grads))


def step(
    state: State,
    state_at: StateAt,
    step_size: Tensor | float,
    *,
    num_leapfrog_steps: int = 10,
    weights: Sequence[float] | None = None,
    factor: Tensor | None = None,
) -> tuple[State, Info]:
    """One transition that leaves exp(Σ_k weight_k · term_k) invariant, and is reversible.

    Momentum is drawn anew from N(0, I); L leapfrog steps, one gradient each; Metropolis' test per
    chain and datum. The state keeps the terms apart, so that weights may change between steps, as
    in tempering, at no cost.

    Args:
        state: the current state, from `state_at` or a step with it.
        state_at: the state at other positions, such as `partial(init, log_density=…)`.
        step_size: of each chain and datum `[C, B]`, of each datum `[B]`, or of all.
        num_leapfrog_steps: L.
        weights: of the K terms; all 1 by default. A weight of 0 silences even an infinite term.
        factor: L of the metric, `[Z]` or `[Z, Z]`; None for unit masses.

    Returns:
        The new state, and what happened.
    """
    weights = [1.0] * len(state.log_probs) if weights is None else weights
    momentum = _draw_momentum(state.z)
    proposal, moved = leapfrog(
        state,
        momentum,
        state_at,
        step_size,
        num_leapfrog_steps=num_leapfrog_steps,
        weights=weights,
        factor=factor,
    )
    log_current = weighted_sum(weights, state.log_probs) - kinetic_energy(momentum)
    log_proposed = weighted_sum(weights, proposal.log_probs) - kinetic_energy(moved)
    log_ratio = _log_ratio(log_current, log_proposed)
    # From where the density is zero a chain may go anywhere else: the ratio is infinite.
    is_divergent = ~log_proposed.isfinite() | log_ratio.isnan()
    acceptance = torch.where(is_divergent, 0.0, log_ratio.clamp(max=0).exp())
    is_accepted = torch.rand_like(acceptance) < acceptance
    # `where` selects: what is NaN in a rejected proposal stays out.
    chosen = State(
        torch.where(is_accepted.unsqueeze(-1), proposal.z, state.z),
        torch.where(is_accepted, proposal.log_probs, state.log_probs),
        torch.where(is_accepted.unsqueeze(-1), proposal.grads, state.grads),
    )
    return chosen, Info(acceptance, is_accepted, is_divergent)


def leapfrog(
    state: State,
    momentum: Tensor,
    state_at: StateAt,
    step_size: Tensor | float,
    *,
    num_leapfrog_steps: int,
    weights: Sequence[float],
    factor: Tensor | None = None,
) -> tuple[State, Tensor]:
    """Follow Hamilton's equations for L steps: the state and the momentum `[C, B, Z]` at the end.

    Reversible and volume preserving: from the end with the momentum's sign turned, it leads back.
    """
    size = torch.as_tensor(step_size, dtype=state.z.dtype, device=state.z.device).unsqueeze(-1)
    momentum = momentum + 0.5 * size * _force(state, weights, factor)
    for number in range(num_leapfrog_steps):
        state = state_at(state.z + size * _velocity(momentum, factor))
        kick = 0.5 if number == num_leapfrog_steps - 1 else 1.0  # two half-kicks between steps
        momentum = momentum + kick * size * _force(state, weights, factor)
    return state, momentum


def _velocity(momentum: Tensor, factor: Tensor | None) -> Tensor:
    """L p: how positions change."""
    if factor is None:
        return momentum
    return factor * momentum if factor.ndim == 1 else momentum @ factor.mT


def _force(state: State, weights: Sequence[float], factor: Tensor | None) -> Tensor:
    """Lᵀ ∇ log f: how momenta change."""
    grad = weighted_sum(weights, state.grads)
    if factor is None:
        return grad
    return factor * grad if factor.ndim == 1 else grad @ factor


def kinetic_energy(momentum: Tensor) -> Tensor:
    """½‖p‖² of momenta `[C, B, Z]`: `[C, B]`."""
    return 0.5 * momentum.square().sum(-1)


def weighted_sum(weights: Sequence[float], terms: Tensor) -> Tensor:
    """Σ_k weight_k · term_k; 0 · ∞ counts as 0. `[K, ...] -> [...]`."""
    kept = [weight * term for weight, term in zip(weights, terms, strict=True) if weight != 0]
    return sum(kept[1:], start=kept[0]) if kept else torch.zeros_like(terms[0])


def _draw_momentum(z: Tensor) -> Tensor:
    return torch.randn_like(z)


def _log_ratio(log_current: Tensor, log_proposed: Tensor) -> Tensor:
    """Log of Metropolis' ratio, from both joint log-densities of position and momentum."""
    return log_proposed - log_current


def _gradient(term: Tensor, z: Tensor, *, is_last: bool) -> Tensor:
    if not term.requires_grad:
        return torch.zeros_like(z)  # a flat term
    (gradient,) = torch.autograd.grad(
        term,
        z,
        torch.ones_like(term),
        retain_graph=not is_last,
        allow_unused=True,
        materialize_grads=True,
    )
    return gradient
