"""Whether a bridge is to be relied on: what its two sets of draws, side by side, show."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.inference.bridging.optimal_bridge import OptimalBridge, optimal_bridge
from evidence.inference.estimation.reliability import MOST_UNSUPPORTED
from evidence.inference.paths.chains import in_halves, mean_ess
from evidence.inference.paths.reference import R_HAT_LIMIT, diagnostic

_FEWEST_INDEPENDENT = 50  # draws: of fewer the autocorrelation itself is hardly known
_FEWEST_TERMS = 10  # effective ones: of fewer a standard error is no measure
_MOST_ERRORS = 5.0  # by which two estimates of one number may differ

_LONGER = "draw longer chains (nuts_reference, num_warmup and num_samples)"


@dataclass(frozen=True)
class Bridged:
    """A bridge, and the draws that it is made of, in unconstrained coordinates.

    Args:
        bridge: the estimate.
        u_posterior: `[C, N, B, Z]`.
        u_proposal: `[S, B, Z]`.
        of_posterior: log-ratios `[C, N, M]`.
        of_proposal: log-ratios `[S, M]`.
    """

    bridge: OptimalBridge
    u_posterior: Tensor
    u_proposal: Tensor
    of_posterior: Tensor
    of_proposal: Tensor

    @classmethod
    def between(
        cls, u_posterior: Tensor, of_posterior: Tensor, u_proposal: Tensor, of_proposal: Tensor
    ) -> "Bridged":
        """Built from log-ratios at both sets of draws."""
        bridge = optimal_bridge(of_posterior, of_proposal)
        return cls(bridge, u_posterior, u_proposal, of_posterior, of_proposal)

    @property
    def halves(self) -> list[OptimalBridge]:
        """Of the first halves of both sets of draws, and of the second."""
        n, s = self.of_posterior.shape[1] // 2, len(self.of_proposal) // 2
        return [
            optimal_bridge(self.of_posterior[:, :n], self.of_proposal[:s]),
            optimal_bridge(self.of_posterior[:, n:], self.of_proposal[s:]),
        ]

    @property
    def disagreement(self) -> Tensor:
        """In standard errors, of both sides about the mean of u where they overlap: `[M]`.

        Weighted by its terms, either set of draws is one from ∝ pq/(s₁p + s₂q). It is not if the
        posterior's draws miss a part of what the proposal finds, or are of another density.
        """
        weights = [side.unsqueeze(-1) for side in self.bridge.weights]
        u = self.u_posterior.double(), self.u_proposal.double()
        means = (weights[0] * u[0]).mean((0, 1)), (weights[1] * u[1]).mean(0)
        away = weights[0] * (u[0] - means[0]), weights[1] * (u[1] - means[1])
        variance = away[0].flatten(0, 1).var(0) / mean_ess(away[0]) + away[1].var(0) / len(away[1])
        z_scores = (means[0] - means[1]).abs() / variance.sqrt()
        return z_scores.nan_to_num(nan=0.0).amax(-1)


def caveat_of(parts: Sequence[Bridged], draws: Tensor) -> str | None:
    """What speaks against the average of bridges, with what would help; None if nothing does.

    Args:
        parts: one bridge, or one of each half of the draws.
        draws: from the posterior, all of them, `[C, N, B, Z]` in any coordinates.
    """
    r_hat = _r_hat(draws).amax(-1)
    if (of := _of(~(r_hat < R_HAT_LIMIT))) is not None:
        return f"the posterior's draws have not mixed, R̂ up to {r_hat.max():.3f}{of}: {_LONGER}"
    ess = torch.stack([part.bridge.posterior_ess for part in parts]).amin(0)
    if (of := _of(ess < _FEWEST_INDEPENDENT)) is not None:
        return f"the posterior's draws are worth {ess.min():.0f} independent ones{of}: {_LONGER}"
    known = torch.stack([part.bridge.ess for part in parts]).amin(0) > _FEWEST_TERMS
    apart = torch.stack([part.disagreement for part in parts]).amax(0) * known
    if (of := _of(apart > _MOST_ERRORS)) is not None:
        return (
            f"draws from the posterior and from the proposal disagree, by {apart.max():.0f} "
            f"standard errors, on where they overlap{of}: one of them misses a mode, or the draws "
            f"are not of this posterior; {_LONGER}, or use annealed_evidence"
        )
    halves = [p.bridge for p in parts] if len(parts) > 1 else parts[0].halves
    difference = (halves[0].log_px - halves[1].log_px).abs()
    errors = difference / (halves[0].variance + halves[1].variance).sqrt() * known
    if (of := _of(errors > _MOST_ERRORS)) is not None:
        worst = int(errors.argmax())
        return (
            f"halves of the draws disagree by {difference[worst]:.2f} nats, {errors[worst]:.0f} "
            f"standard errors{of}: {_LONGER}"
        )
    return None


def _r_hat(draws: Tensor) -> Tensor:
    """R̂ `[B, Z]` of draws `[C, N, B, Z]`; of a single chain that of its halves."""
    return diagnostic("rhat", in_halves(draws) if len(draws) == 1 else draws)


def _of(is_bad: Tensor) -> str | None:
    """Of how many data, if these are too many to leave out of sight."""
    if is_bad.double().mean() <= MOST_UNSUPPORTED:
        return None
    return "" if len(is_bad) == 1 else f" for {int(is_bad.sum())} of {len(is_bad)} data"
