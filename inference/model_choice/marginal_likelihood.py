"""The marginal likelihood, as an expert would go about it: two kinds of estimate that agree."""

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from evidence.inference.bridging.bridge import bridge_evidence
from evidence.inference.bridging.posterior_draws import PosteriorDraws
from evidence.inference.estimation.annealed import annealing_mode
from evidence.inference.estimation.evidence import (
    Evidence,
    from_log_weights,
    importance_weighted_evidence,
)
from evidence.inference.estimation.nested import nested_evidence
from evidence.inference.estimation.sequential import Sampled, smc
from evidence.inference.model_choice.bayes_factors import total
from evidence.inference.model_choice.mixture_proposal import PRIOR_SHARE, MixtureProposal
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.interweaving import coordinates_of, seen_from
from evidence.inference.paths.log_joint import AbstractPath, PriorPath
from evidence.inference.programs import estimators
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program

# Estimates of two kinds further apart than so many standard errors do not agree.
_AGREEMENT = 4.0
_GROWTH = 4  # of the particles from round to round
_FEWEST, _PILOT = 10_000, 4000
_DRAWS_TO_FIT = 8000


@dataclass(frozen=True)
class MarginalLikelihood:
    """Log p(x) of all data, by several kinds of estimate.

    Args:
        estimates: by the name of the estimator, the most precise reliable one first.
        target_se: the standard error that was asked for, in nats.
        num_evaluations: of the log joint, all told.
        seconds: it took.
    """

    estimates: Mapping[str, Evidence]
    target_se: float
    num_evaluations: int
    seconds: float

    @property
    def evidence(self) -> Evidence:
        """The most precise estimate; `not_reliable` if no other kind confirms it."""
        first = next(iter(self.estimates.values()))
        return dataclasses.replace(first, caveat=self.not_reliable)

    @property
    def log_ml(self) -> float:
        """Log p(x) of all data, in nats."""
        return total(self.evidence)[0]

    @property
    def se(self) -> float:
        """The Monte Carlo standard error of `log_ml`, in nats."""
        return total(self.evidence)[1]

    @property
    def apart(self) -> float:
        """How far the reliable estimates are apart at the most, in standard errors of it.

        NaN where no two kinds are reliable.
        """
        reliable = [total(one) for one in self._reliable.values()]
        pairs = itertools.combinations(reliable, 2)
        distances = (abs(a[0] - b[0]) / math.hypot(a[1], b[1]) for a, b in pairs)
        return max(distances, default=math.nan)

    @property
    def not_reliable(self) -> str | None:
        """Why the number is not to be relied on, and what would help; None if it is."""
        if len(self._reliable) < 2:
            lone = [
                f"{name}: {one.not_reliable}"
                for name, one in self.estimates.items()
                if one.not_reliable is not None
            ]
            return f"no two kinds of estimate are reliable ({'; '.join(lone)})"
        if not self.apart <= _AGREEMENT:
            return (
                f"estimates of two kinds are {self.apart:.1f} standard errors apart: allow for "
                "more rounds (max_rounds), or pass a guide that covers all modes"
            )
        return None

    @property
    def _reliable(self) -> dict[str, Evidence]:
        return {n: one for n, one in self.estimates.items() if one.not_reliable is None}

    def __str__(self) -> str:
        name, *others = self.estimates
        said = ", ".join(_told(*total(self.estimates[other]), other) for other in others)
        beside = f"; beside it {said}" if said else ""
        bar = "NOT RELIABLE" if self.not_reliable else f"± {self.se:.3f}"
        lines = [
            f"log p(x) = {self.log_ml:.3f} {bar} nats ({name}){beside}",
            f"{self.num_evaluations:,} evaluations of the log joint, {self.seconds:.1f} s",
        ]
        if self.not_reliable:
            lines.append(self.not_reliable)
        elif self.se > self.target_se:
            lines.append(f"the standard error asked for, {self.target_se}, was not reached")
        return "\n".join(lines)


def _told(log_ml: float, se: float, name: str) -> str:
    return f"{log_ml:.3f} ± {se:.3f} ({name})"


def marginal_likelihood(
    model: Program,
    x: Batch,
    *,
    guide: Program | None = None,
    target_se: float = 0.05,
    max_rounds: int = 3,
    nested: bool = False,
    seed: int = 0,
    progress: bool = False,
    **options: Any,
) -> MarginalLikelihood:
    """Log p(x) to a standard error, by estimates of two kinds that confirm each other.

    Sequential Monte Carlo from the prior finds where the posterior is, all its modes included, and
    is the first estimate. Importance weights are the second: of the guide, or of a mixture of
    Student's t that is fitted to the particles, in the model's coordinates or in whitened ones, as
    many as the target needs. Where these weights are not reliable, a bridge between the particles
    and the guide, or a normal, is the third. If the kinds do not agree, or none reaches the target,
    all is done again with four times as many particles, `max_rounds` times at the most.

    What no particle comes upon is in none of the estimates, and nothing shows it: a narrow mode far
    from all others that hardly any draw from the prior is near.

    Args:
        model: called with a batch; scores it. Its latents are continuous, or summed out.
        x: data `[B, *data_shape]`; or several tensors, as a tuple or a mapping, see `fit`.
        guide: called with a batch; the proposal of the weights, as it is: fit it beforehand.
        target_se: the standard error wanted, in nats of all data.
        max_rounds: how often the number of particles may grow, and one.
        nested: be confirmed by nested sampling too, once; see `nested_evidence`.
        seed: decides every random choice; the random state outside is untouched.
        progress: show a progress bar.
        options: of `smc`, by name.

    Returns:
        All estimates, and whether they agree. Where each datum has latents of its own they are per
        datum, and `log_ml` is their sum.

    Raises:
        ValueError: as `smc`; a bad option.
    """
    if not 0 < target_se < math.inf:
        raise ValueError(f"expected a finite target_se > 0, got {target_se}")
    if max_rounds < 1:
        raise ValueError(f"expected max_rounds of at least 1, got {max_rounds}")
    x = as_data(x)
    started, found = time.monotonic(), None
    beside = {"nested": nested_evidence(model, x, seed=seed, progress=progress)} if nested else {}
    spent = sum(one.num_evaluations or 0 for one in beside.values())
    islands = options.pop("num_islands", 32)
    for number in range(max_rounds):
        how: dict[str, Any] = {**options, "num_islands": islands * _GROWTH**number}
        sampled = smc(model, x, progress=progress, seed=seed + number, **how)
        measured = _Measured(model, guide, x, sampled, target_se, seed + number)
        estimates = measured.estimates()
        spent += sum(one.num_evaluations or 0 for one in estimates.values())
        estimates = _reliable_first(estimates | beside)
        found = MarginalLikelihood(estimates, target_se, spent, time.monotonic() - started)
        is_enough = found.not_reliable is None and found.se <= target_se
        if is_enough or sampled.unknown is not None:
            break
    assert found is not None
    return found


def _reliable_first(found: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """And of these the most precise."""

    def rank(name: str) -> tuple[bool, float]:
        return found[name].not_reliable is not None, total(found[name])[1]

    return {name: found[name] for name in sorted(found, key=rank)}


class _Fitted(NamedTuple):
    """A proposal, and the ESS of so many weights of a pilot run."""

    proposal: MixtureProposal
    pilot_ess: float


@dataclass
class _Measured:
    """The estimates of one round."""

    model: Program
    guide: Program | None
    x: Batch
    sampled: Sampled
    target_se: float
    seed: int

    def estimates(self) -> dict[str, Evidence]:
        """By name."""
        found = {"smc": self.sampled.evidence}
        if self.sampled.unknown is not None:  # what its particles miss, all the others would
            return found
        if self.guide is not None or self.sampled.data_set_size is not None:
            weighted = self._weighted()
            found[weighted.estimator] = weighted
        if sum(one.not_reliable is None for one in found.values()) < 2:
            found["bridge"] = self._bridge()

        return found

    def _weighted(self) -> Evidence:
        """Importance weights, as many as the target needs."""
        if self.guide is not None:
            return self._by_guide(self.guide)
        program = takes(self.model, self.x)
        # Numbers that the particles were moved by must have nothing in common with the weights'.
        with annealing_mode(program, None, self.seed * 1_000_003 + 499_979, self.x.device):
            path = path_of(program, None, self.x)
            draws = PosteriorDraws(self.sampled.draws, path)
            u = draws.located(path).flatten(0, 1)[:: _every(self.sampled.num_particles)]
            fits = [self._fit(seen_from(path, u, one), one) for one in coordinates_of(path)]
            fitted = max(fits, key=lambda one: one.pilot_ess)
            count = _enough(fitted.pilot_ess, self.target_se)
            log_w, caveat = fitted.proposal.log_weights(count)
            record = from_log_weights(log_w)["iw"]
            on_edge = draws.share_on_edge
        spent = sum(one.proposal.num_evaluations + _PILOT for one in fits) + count
        record = dataclasses.replace(
            record,
            num_evaluations=spent,
            dtype=self.sampled.dtype,
            caveat=caveat,
            defensive=PRIOR_SHARE,
        )
        return record.of(on_edge, len(self.x))

    def _fit(self, u: Tensor, path: AbstractPath) -> "_Fitted":
        """A mixture that is fitted to particles `[S, 1, Z]` in the coordinates of a path."""
        assert isinstance(path, PriorPath)
        told = u[u.isfinite().all(-1).squeeze(1)]  # a scale that underflows whitens nothing
        proposal = MixtureProposal(path, told, self.seed)
        pilot, _ = proposal.log_weights(_PILOT)
        return _Fitted(proposal, estimators.ess(pilot).nan_to_num(0.0).item())

    def _by_guide(self, guide: Program) -> Evidence:
        with isolated_rng(self.seed, self.x.device):
            pilot = importance_weighted_evidence(
                self.model, guide, self.x, _PILOT, search_modes=False
            )
            share = (pilot.ess / _PILOT).clamp(min=1e-6).min().item()
            count = _count(share, self.target_se / math.sqrt(pilot.num_data))
            record = importance_weighted_evidence(self.model, guide, self.x, count)
        spent = (pilot.num_evaluations or 0) + (record.num_evaluations or 0)
        return dataclasses.replace(record, num_evaluations=spent)

    def _bridge(self) -> Evidence:
        return bridge_evidence(
            self.model, self.guide, self.x, draws=self.sampled.draws, seed=self.seed
        )


def _every(num_draws: int) -> int:
    """Every so many draws are enough to fit a mixture."""
    return max(1, num_draws // _DRAWS_TO_FIT)


def _enough(pilot_ess: float, target_se: float) -> int:
    """How many weights bring the standard error to the target, by the ESS of a pilot run."""
    return _count(pilot_ess / _PILOT, target_se)


def _count(share: float, target_se: float) -> int:
    wanted = 1 / (max(share, 1e-6) * target_se**2)
    return int(min(max(2 * wanted, _FEWEST), 40 * _FEWEST))
