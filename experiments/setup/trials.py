"""Trials of estimators on problems whose evidence is known: one run, and what many say together."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import binomtest

from evidence.experiments.own.code import OwnCode
from evidence.experiments.own.program import default_dtype
from evidence.experiments.setup.catalogue import Spec, build_guide
from evidence.inference import (
    Evidence,
    annealed_evidence,
    bridge_evidence,
    fit,
    importance_weighted_evidence,
    marginal_likelihood,
    nested_evidence,
    smc,
    smc_evidence,
)
from evidence.inference.estimation.nested import expect_dynesty
from evidence.inference.programs.data import Batch, as_data
from evidence.inference.programs.random_state import isolated_rng
from evidence.models.networks import expect_choice
from evidence.models.problems import Problem

# Called with a problem and a seed.
Run = Callable[[Problem, int], Evidence]


def _data(problem: Problem) -> Batch:
    return as_data(problem.arguments)


def _smc(problem: Problem, seed: int) -> Evidence:
    return smc_evidence(problem.model, _data(problem), seed=seed)


def _ais(problem: Problem, seed: int) -> Evidence:
    return annealed_evidence(problem.model, _data(problem), seed=seed)


def _bridge(problem: Problem, seed: int) -> Evidence:
    """Between draws by sequential Monte Carlo, which find several modes, and a normal."""
    x = _data(problem)
    draws = smc(problem.model, x, seed=seed)
    return bridge_evidence(problem.model, None, x, draws=draws, seed=seed)


def _auto(problem: Problem, seed: int) -> Evidence:
    found = marginal_likelihood(problem.model, _data(problem), seed=seed)
    return replace(found.evidence, num_evaluations=found.num_evaluations)


def _nested(problem: Problem, seed: int) -> Evidence:
    return nested_evidence(problem.model, _data(problem), seed=seed)


BUILT_IN: dict[str, Run] = {"auto": _auto, "smc": _smc, "bridge": _bridge, "ais": _ais}
# Not run unless it is asked for: it needs an extra, and takes long.
ON_REQUEST: dict[str, Run] = {"nested": _nested}


def estimator_named(name: str, code: OwnCode) -> Run:
    """What runs an estimator: a built-in one, or `FILE.py:NAME`, called as `f(model, data, seed)`.

    Raises:
        ValueError: there is none of this name, or it needs an extra that is not installed.
    """
    if name in ON_REQUEST:
        expect_dynesty()
    known = BUILT_IN | ON_REQUEST
    if name in known:
        return known[name]
    spec = Spec.parse(name)
    if not spec.is_elsewhere:
        expect_choice("estimator", name, list(known))
    own = code.find("estimator", spec.name)

    def run(problem: Problem, seed: int) -> Evidence:
        found = own(problem.model, problem.arguments, seed)
        if not isinstance(found, Evidence):
            raise ValueError(
                f"expected {name} to return an Evidence, got {type(found).__name__}: "
                "see evidence.inference.from_log_weights"
            )
        return found

    return run


def weighted_by(guide: str, code: OwnCode) -> Run:
    """Importance weights of a guide that is fitted anew for every seed."""
    spec = Spec.parse(guide)

    def run(problem: Problem, seed: int) -> Evidence:
        x = _data(problem)
        with isolated_rng(seed):
            built, _ = build_guide(spec, problem.model, x, code)
            fit(problem.model, built, x, seed=seed, progress=False)
            return importance_weighted_evidence(problem.model, built, x)

    return run


@dataclass(frozen=True)
class Trial:
    """One run of one estimator on one problem.

    Args:
        problem: its name.
        estimator: its name.
        seed: of the run.
        exact: log evidence of all data, in nats.
        nats: the estimate; None if it failed.
        se: its standard error, as claimed; None if it failed.
        not_reliable: why the estimate says of itself that it is not; None if it does not.
        num_evaluations: of the log joint, of all data; None where it is not told.
        seconds: it took.
    """

    problem: str
    estimator: str
    seed: int
    exact: float
    nats: float | None
    se: float | None
    not_reliable: str | None
    num_evaluations: int | None
    seconds: float

    @property
    def error(self) -> float:
        """Estimate − exact, in nats; NaN if it failed."""
        return math.nan if self.nats is None else self.nats - self.exact

    @property
    def claimed(self) -> float:
        """The standard error as claimed; NaN if it failed."""
        return math.nan if self.se is None else self.se

    @property
    def z(self) -> float:
        """The error in standard errors as claimed."""
        return self.error / self.claimed if self.claimed else math.copysign(math.inf, self.error)


def trial(problem: Problem, name: str, run: Run, seed: int) -> Trial:
    """Run an estimator once.

    A failure that it reports in words counts as an estimate that says that it is not reliable.
    """
    started = time.perf_counter()
    dtype = torch.float64 if problem.double else torch.float32
    try:
        with default_dtype(dtype):
            found = run(problem, seed)
        total, se = found.mean * found.num_data, found.mc_se * found.num_data
        outcome: dict[str, Any] = {
            "nats": total,
            "se": se,
            "not_reliable": found.not_reliable,
            "num_evaluations": found.num_evaluations,
        }
    except ValueError as error:
        outcome = {
            "nats": None,
            "se": None,
            "not_reliable": str(error),
            "num_evaluations": None,
        }
    seconds = time.perf_counter() - started
    return Trial(problem.name, name, seed, problem.log_evidence, seconds=seconds, **outcome)


@dataclass(frozen=True)
class Scorecard:
    """What the trials of one estimator on one problem say of its error bar.

    Args:
        trials: with one seed each.
    """

    trials: Sequence[Trial]

    @property
    def reliable(self) -> Sequence[Trial]:
        """Those whose estimate is relied on."""
        return [one for one in self.trials if one.not_reliable is None]

    @property
    def share_reliable(self) -> float:
        """Of all trials."""
        return len(self.reliable) / len(self.trials)

    @property
    def coverage(self) -> float:
        """The share of ± 2 SE that holds the exact value, of those relied on; NaN if none is."""
        return _mean([abs(one.z) <= 2 for one in self.reliable])

    def coverage_interval(self, level: float = 0.99) -> tuple[float, float]:
        """Where the coverage of all runs there might be lies, by the exact binomial interval.

        Reference: C. J. Clopper, E. S. Pearson, "The Use of Confidence or Fiducial Limits
        Illustrated in the Case of the Binomial", 1934, https://doi.org/10.1093/biomet/26.4.404.

        Raises:
            ValueError: no trial is relied on.
        """
        if not self.reliable:
            raise ValueError("expected trials that are relied on, got none")
        covered = sum(abs(one.z) <= 2 for one in self.reliable)
        interval = binomtest(covered, len(self.reliable)).proportion_ci(level, "exact")
        return float(interval.low), float(interval.high)

    @property
    def bias(self) -> float:
        """The mean error in standard errors, of those relied on."""
        return _mean([one.z for one in self.reliable])

    @property
    def silent_misses(self) -> int:
        """Estimates that are relied on and off by more than four standard errors."""
        return sum(abs(one.z) > 4 for one in self.reliable)

    @property
    def rmse(self) -> float:
        """Root mean squared error of all estimates that there are, relied on or not, in nats."""
        errors = [one.error for one in self.trials if math.isfinite(one.error)]
        return math.sqrt(_mean([error**2 for error in errors]))

    @property
    def claimed(self) -> float:
        """The median of the standard errors, in nats."""
        told = [one.claimed for one in self.trials if math.isfinite(one.claimed)]
        return float(np.median(told)) if told else math.nan

    @property
    def num_evaluations(self) -> float:
        """The median, NaN where it is not told."""
        told = [one.num_evaluations for one in self.trials if one.num_evaluations is not None]
        return float(np.median(told)) if told else math.nan

    @property
    def seconds(self) -> float:
        """The median."""
        return float(np.median([one.seconds for one in self.trials]))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
