"""How much of each known mode of a posterior a guide, or a sampler, has."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evidence.inference.bridging.posterior_draws import draws_of_islands
from evidence.inference.bridging.upper_bound import Mean, mean_of_chains
from evidence.inference.estimation.sequential import Sampled
from evidence.inference.paths.reference import Reference


class KnownModes(Protocol):
    """What is asked of the modes of a posterior, such as those of `evidence.models.problems`."""

    @property
    def shares(self) -> Tensor:
        """Of the mass in each of K modes: `[K]`, or `[M, K]`."""

    def assign(self, values: Mapping[str, Tensor]) -> Tensor:
        """How much draws by site `[S, M, ...]` belong to each mode: `[S, M, K]`."""


@dataclass(frozen=True)
class ModeCoverage:
    """The share of the mass in every mode, beside the exact one.

    Args:
        shares: of the draws in each mode `[M, K]`.
        se: their standard errors `[M, K]`, of autocorrelated draws too; never less than half a
            draw, for modes that none has met.
        exact: of the posterior `[M, K]`.
        entropy: the entropic mode coverage, −Σ s log s / log K of the shares s, each `[M]`: 1 if
            all modes have the same, 0 if one has all.
        exact_entropy: that of the exact shares `[M]`.
        jensen_shannon: divergence of the shares from the exact ones, in nats, `[M]`: 0 if they are
            equal, log 2 if no mode has mass in both. What the entropy does not show is seen here:
            which modes have too much.

    Reference: D. Blessing, X. Jia, J. Esslinger, F. Vargas, G. Neumann, "Beyond ELBOs: A
    Large-Scale Evaluation of Variational Methods for Sampling", 2024,
    https://arxiv.org/abs/2406.07423, section 3.
    """

    shares: Tensor
    se: Tensor
    exact: Tensor
    entropy: Mean
    exact_entropy: Tensor
    jensen_shannon: Mean

    def __str__(self) -> str:
        return "; ".join(self._of(row) for row in range(len(self.shares)))

    def _of(self, row: int) -> str:
        columns = zip(self.shares[row], self.se[row], self.exact[row], strict=True)
        parts = [f"{s:.3f} ± {e:.3f} ({p:.3f})" for s, e, p in columns]
        return (
            f"modes {', '.join(parts)}; entropy {self.entropy.mean[row]:.3f} ± "
            f"{self.entropy.se[row]:.3f} ({self.exact_entropy[row]:.3f}), Jensen-Shannon "
            f"{self.jensen_shannon.mean[row]:.4f} ± {self.jensen_shannon.se[row]:.4f} nats"
        )


def mode_coverage(
    modes: KnownModes, draws: Reference | Sampled | Mapping[str, Tensor]
) -> ModeCoverage:
    """The share of draws in every mode.

    Args:
        modes: of the posterior, such as `PROBLEMS["shells-2"].modes` or `model.modes(x)`.
        draws: independent ones by site `[S, M, ...]`, as `guide_draws` gives them; or what `smc`
            or `nuts_reference` returns, whose autocorrelation is then in the error bar.

    Raises:
        ValueError: memberships of another number of data than the exact shares.
    """
    values, num_chains = _by_site(draws)
    belongs = modes.assign(values).double()  # [S, M, K]
    exact = modes.shares.to(belongs)
    exact = exact.expand(belongs.shape[1], -1) if exact.ndim == 1 else exact
    if exact.shape != belongs.shape[1:]:
        raise ValueError(
            f"expected draws of {len(exact)} data with {exact.shape[1]} modes each, got "
            f"memberships of shape {tuple(belongs.shape)}"
        )
    shares = belongs.mean(0)

    def mean(function: Callable[[Tensor], Tensor], value: Tensor) -> Mean:
        """A function of the shares: to first order its error is that of a mean over draws."""
        with torch.enable_grad():
            at = shares.clamp(min=0.5 / len(belongs)).requires_grad_()
            (slope,) = torch.autograd.grad(function(at).sum(), at)
        return Mean(value, _of_draws((belongs * slope).sum(-1), num_chains).se)

    half = 0.5 / len(belongs)
    found = _of_draws(belongs, num_chains)
    return ModeCoverage(
        shares,
        torch.hypot(found.se, torch.full_like(found.se, half)),
        exact,
        mean(_entropy, _entropy(shares)),
        _entropy(exact),
        mean(lambda s: _jensen_shannon(s, exact), _jensen_shannon(shares, exact)),
    )


def _by_site(draws: Reference | Sampled | Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """By site `[S, M, entries]`, and how many chains they are of; 0 if they are independent."""
    if isinstance(draws, Reference):
        parts = draws.draws.flatten(0, 1).split(list(draws.sites.values()), -1)
        return dict(zip(draws.sites, parts, strict=True)), len(draws.draws)
    num_chains = 0
    if isinstance(draws, Sampled):
        by_island = draws_of_islands(draws)
        num_chains = len(next(iter(by_island.values())))
        draws = {name: value.flatten(0, 1) for name, value in by_island.items()}
    return {n: v.reshape(*v.shape[:2], -1) for n, v in draws.items()}, num_chains


def _of_draws(values: Tensor, num_chains: int) -> Mean:
    """The mean of `[S, ...]`, of independent draws or of so many chains one after the other."""
    if num_chains == 0:
        return Mean(values.mean(0), values.std(0) / math.sqrt(len(values)))
    size = len(values) // num_chains
    return mean_of_chains(values[: size * num_chains].unflatten(0, (num_chains, size)))


def _entropy(shares: Tensor) -> Tensor:
    """−Σ s log s / log K, `[M, K] -> [M]`."""
    return torch.special.entr(shares).sum(-1) / math.log(shares.shape[-1])


def _jensen_shannon(shares: Tensor, exact: Tensor) -> Tensor:
    """In nats: `[M, K]` and `[M, K]` -> `[M]`."""
    middle = (shares + exact) / 2
    entropies = [torch.special.entr(part).sum(-1) for part in (shares, exact)]
    return torch.special.entr(middle).sum(-1) - (entropies[0] + entropies[1]) / 2
