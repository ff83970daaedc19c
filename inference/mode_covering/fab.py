"""Flow annealed importance sampling bootstrap: the guide learns from where annealing leads."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.mode_covering.base import AbstractPathObjective
from evidence.inference.objectives.paths import gradient_only
from evidence.inference.paths import hmc
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.programs.estimators import iwae

_STEP_SIZES = (0.02, 0.6)  # in units of the guide's spread


class FAB(AbstractPathObjective):
    """The guide minimizes the α-divergence with α = 2, ∫ p²/q, by annealed importance sampling.

    Chains start at draws of q and are annealed towards p(x, z)²/q(z | x), which has most where the
    guide has too little: they find modes that it misses and carry weight there. The gradient is
    −½ Σ_c w̄_c ∇_φ log q(z_c | x) with their normalized weights w̄, held fixed; the loss reported is
    the bound ½ log (1/C) Σ_c w_c, the χ upper bound in the limit of many chains, at or above
    log p(x). Annealing begins with the guide: of a mode that no chain can reach it learns nothing,
    so begin with a wide one (`for_model(…, standardize="prior")`).

    Metropolis' test keeps every transition exact, and each chain draws a step size of its own, from
    a fiftieth to about half of the guide's spread, so that there is nothing to tune or to remember
    between steps. The prioritized replay buffer of the paper, which saves evaluations of costly
    models, is left out.

    References: L. I. Midgley, V. Stimper, G. N. C. Simm, B. Schölkopf, J. M. Hernández-Lobato,
    "Flow Annealed Importance Sampling Bootstrap", 2023, https://arxiv.org/abs/2208.01893; A. B.
    Dieng et al., "Variational Inference via χ Upper Bound Minimization", 2017,
    https://arxiv.org/abs/1611.00328, for the bound.

    Args:
        num_particles: C, chains per datum, or for all data where these share latents.
        num_temperatures: T, from q to p²/q, with a transition at each.
        num_leapfrog_steps: gradients of a transition.
    """

    min_particles, default_particles = 2, 128

    def __init__(
        self,
        num_particles: int | None = None,
        *,
        num_temperatures: int = 4,
        num_leapfrog_steps: int = 4,
    ) -> None:
        super().__init__(num_particles)
        counts = {"num_temperatures": num_temperatures, "num_leapfrog_steps": num_leapfrog_steps}
        for name, value in counts.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"expected {name} to be an integer of at least 1, got {value!r}")
        self.num_temperatures = num_temperatures
        self.num_leapfrog_steps = num_leapfrog_steps

    def on_path(self, path: GuidePath) -> Tensor:
        """½ log mean w in nats, `[M]`."""
        with torch.no_grad():
            annealed = annealed_draws(
                path, self.num_particles, self.num_temperatures, self.num_leapfrog_steps
            )
        shares = annealed.log_w.softmax(0)
        loss = -0.5 * (shares * path.log_q(annealed.u)).sum(0)
        return 0.5 * iwae(annealed.log_w) + gradient_only(loss)


class AnnealedDraws(NamedTuple):
    """Where chains from the guide have come, `[C, B, Z]`, and their log-weights `[C, M]`."""

    u: Tensor
    log_w: Tensor


def annealed_draws(
    path: GuidePath, num_chains: int, num_temperatures: int, num_leapfrog_steps: int
) -> AnnealedDraws:
    """Chains from q to p²/q, whose weights average to ∫ p(x, z)²/q(z | x) dz.

    Log f_β = (1 − β) log q + β (2 log p(x, z) − log q), at β = 1/T, …, 1; the weights collect
    (1/T) · 2 (log p(x, z) − log q) where a chain is before each of its transitions. A second set of
    draws tells the spread of the guide, so that the chains know nothing of one another.

    Args:
        path: from the guide.
        num_chains: C.
        num_temperatures: T.
        num_leapfrog_steps: of a transition.
    """
    both = path.sample(2 * num_chains)
    spread = both[num_chains:].std(0).mean(0)  # [Z]
    state = path.state(both[:num_chains])
    log_w = torch.zeros_like(state.log_probs[0], dtype=torch.float64)
    low, high = map(math.log, _STEP_SIZES)
    for number in range(1, num_temperatures + 1):
        log_w = log_w + _log_ratio(state.log_probs.double()) / num_temperatures
        sizes = torch.empty_like(state.log_probs[0]).uniform_(low, high).exp()
        state, _ = hmc.step(
            state,
            path.state,
            sizes.expand(state.z.shape[:2]),
            num_leapfrog_steps=num_leapfrog_steps,
            weights=weights_towards_target(number / num_temperatures),
            factor=spread,
        )
    return AnnealedDraws(state.z, log_w.to(state.z))


def weights_towards_target(beta: float) -> tuple[float, float]:
    """Of log q and log p(x, z) in log f_β."""
    return 1.0 - 2.0 * beta, 2.0 * beta


def _log_ratio(log_probs: Tensor) -> Tensor:
    """Log f_1 − log f_0 = 2 (log p(x, z) − log q), of both terms `[2, C, M]`."""
    log_q, log_p = log_probs
    return 2.0 * (log_p - log_q)
