"""Chains that move in two sets of coordinates by turns.

Where the scale of some latents is itself a latent, as in a hierarchy, the posterior is a funnel in
the coordinates in which the model is written if the data say little, and in whitened ones if they
say much. One step size does not suit a funnel's mouth and its neck, and chains stay out of the
neck; steps in the other coordinates lead there.

Reference: Y. Yu, X.-L. Meng, "To Center or Not to Center: That Is Not the Question — An
Ancillarity–Sufficiency Interweaving Strategy (ASIS) for Boosting MCMC Efficiency", 2011,
https://doi.org/10.1198/jcgs.2011.203main.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evidence.inference.paths.hmc import Info, State
from evidence.inference.paths.log_joint import AbstractPath, PriorPath, latents_of
from evidence.inference.programs.enumeration import moved_by_enumerated
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import Site
from evidence.inference.programs.whitening import moves_with_others, whitening


def coordinates_of(path: AbstractPath) -> Sequence[AbstractPath]:
    """The path; and in whitened coordinates, if the priors of some latents move with others.

    Those that move with discrete latents which are summed out stay as they are: an ε would stand
    for as many values as these have.
    """
    if not isinstance(path, PriorPath):
        return [path]
    sites, again = (_drawn(path, seed) for seed in range(2))
    moving = {name for name, site in sites.items() if moves_with_others(site, again[name])}
    if not moving:
        return [path]
    values = {name: site["value"] for name, site in sites.items()}
    of_discrete = moved_by_enumerated(path.model, path.x, values)
    if moving <= of_discrete:
        return [path]
    whitened = {n for n, site in sites.items() if whitening(site["fn"])} - of_discrete
    other = PriorPath(path.model, path.x, whitened=whitened)
    # Values go from one to the other in a single run of all chains.
    return [path, other] if other.way is path.way else [path]


def _drawn(path: PriorPath, seed: int) -> dict[str, Site]:
    """The latents in a run of the model."""
    with isolated_rng(seed, path.x.device), torch.no_grad():
        return latents_of(path.model, path.x, path.layout)


def seen_from(path: AbstractPath, z: Tensor, other: AbstractPath) -> Tensor:
    """Where the latents at z `[C, B, Z]` of a path are in the coordinates of another."""
    if other is path:
        return z
    assert isinstance(path, PriorPath)
    assert isinstance(other, PriorPath)
    return other.at_latents_of(path, z)


def moved_in(
    path: AbstractPath,
    state: State,
    move: Callable[[State], tuple[State, Info]],
    *,
    kept_in: AbstractPath,
) -> tuple[State, Info]:
    """A step in the coordinates of a path, of chains whose state is kept in those of another.

    Chains that are not finite in both, before the step or after it, stay where they are.
    """
    if path is kept_in:
        return move(state)
    there = seen_from(kept_in, state.z, path)
    moved, info = move(path.state(there))
    back = seen_from(path, moved.z, kept_in)
    is_finite = there.isfinite().all(-1) & back.isfinite().all(-1)
    has_moved = (is_finite & info.is_accepted).unsqueeze(-1)
    arrived = kept_in.state(torch.where(has_moved, back, state.z))
    return State(
        arrived.z,
        torch.where(has_moved.squeeze(-1), arrived.log_probs, state.log_probs),
        torch.where(has_moved, arrived.grads, state.grads),
    ), info


def in_turn(
    transitions: Sequence[Callable[[State], State]],
) -> Callable[[State, int], State]:
    """The transition whose turn it is, given the number of the step, from 0."""
    return lambda state, number: transitions[number % len(transitions)](state)
