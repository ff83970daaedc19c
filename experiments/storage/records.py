"""The rows of results.json and what stands in them, typed: written and read in one form.

A key that is added later has a default, so that rows of before are read too.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any, Self, cast

from evidence.experiments.storage.schema import typed
from evidence.inference.estimation.evidence import Estimator, Unit


class _Record:
    """A dataclass as a JSON object, in which a key that may be absent is, at its default.

    A number that is not finite, which JSON lacks, is None.
    """

    def __post_init__(self) -> None:
        for f in fields(cast("Any", self)):
            value = getattr(self, f.name)
            if isinstance(value, float) and not math.isfinite(value):
                object.__setattr__(self, f.name, None)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """The record of an object; keys that are not known are left out.

        Raises:
            ValueError: one is missing, or of another type.
        """
        known = {f.name: f for f in fields(cast("Any", cls))}
        if not isinstance(values, Mapping):
            raise ValueError(f"expected a {cls.__name__} to be an object, got {values!r:.60}")
        required = [n for n, f in known.items() if f.default is f.default_factory is MISSING]
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"{missing[0]} is missing")
        return typed(cls, {name: value for name, value in values.items() if name in known})

    def to_json(self) -> dict[str, Any]:
        """The object that `from_json` reads."""
        named = {f.name: (f, getattr(self, f.name)) for f in fields(cast("Any", self))}
        return {
            name: as_json(value)
            for name, (f, value) in named.items()
            if not (f.metadata.get("may_be_absent") and value == f.default)
        }


def as_json(value: Any) -> Any:
    """Records, and what holds some, as JSON."""
    if isinstance(value, _Record):
        return value.to_json()
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, dict):
        return {name: as_json(part) for name, part in value.items()}
    return value


_MAY_BE_ABSENT = {"may_be_absent": True}


@dataclass(frozen=True, kw_only=True)
class Estimate(_Record):
    """One estimate of log p(x), in nats.

    Args:
        estimator: a name of `setup.estimators`.
        nats: mean over the data, or of the data set; None if it is not finite.
        unit: what it is of.
        reliable: whether its own diagnostics support it.
        reason: why not.
        mc_se: Monte Carlo standard error.
        data_se: standard error from the finite data.
        num_particles: weights per datum.
        num_data: how many data.
        dtype: what it was computed in.
        mean_num_particles: where every datum got its own number.
        bits_per_dim: of grey levels.
        num_evaluations: what it cost, see `Evidence`; None where that is not known.
        fit_se: of several fits, the standard error from them.
        num_fits: how many.
    """

    estimator: Estimator
    nats: float | None
    unit: Unit = "datum"
    reliable: bool
    reason: str | None
    mc_se: float | None
    data_se: float | None
    num_particles: int
    num_data: int
    dtype: str | None = None
    mean_num_particles: float | None = field(default=None, metadata=_MAY_BE_ABSENT)
    bits_per_dim: float | None = field(default=None, metadata=_MAY_BE_ABSENT)
    num_evaluations: float | None = field(default=None, metadata=_MAY_BE_ABSENT)
    fit_se: float | None = field(default=None, metadata=_MAY_BE_ABSENT)
    num_fits: int = field(default=1, metadata=_MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Weights(_Record):
    """What the importance weights of all data say.

    Args:
        median: of k̂.
        share_bad: of the data, whose k̂ is above the threshold.
        threshold: the largest k̂ to be trusted.
    """

    median: float | None
    share_bad: float | None
    threshold: float


@dataclass(frozen=True, kw_only=True)
class Median(_Record):
    """A median over the data."""

    median: float | None


@dataclass(frozen=True, kw_only=True)
class Count(_Record):
    """So many of so many; a mean over several fits."""

    count: float
    of: int


@dataclass(frozen=True, kw_only=True)
class PlaneDivergences(_Record):
    """KL(p ‖ q) and KL(q ‖ p) on a grid; None if infinite or not known."""

    forward: float | None
    reverse: float | None
    mass: float
    num_data: int


@dataclass(frozen=True, kw_only=True)
class Annealing(_Record):
    """How something was annealed, and what it took."""

    start: str
    num_chains: int
    num_temperatures: int
    num_leapfrog_steps: int
    seconds: float = 0.0
    peak_memory_mib: float | None = None
    snapshots: str = ""
    acceptance: float | None = field(default=None, metadata=_MAY_BE_ABSENT)

    @property
    def words(self) -> str:
        """How, in words."""
        return (
            f"from the {self.start}, {self.num_chains} chains, {self.num_temperatures:,} "
            f"temperatures, {self.num_leapfrog_steps} leapfrog steps"
        )

    def is_like(self, other: Any) -> bool:
        """Whether another one, or options of one, was made in the same way."""
        names = ("start", "num_chains", "num_temperatures", "num_leapfrog_steps")
        return all(getattr(self, name) == getattr(other, name) for name in names)


@dataclass(frozen=True, kw_only=True)
class Bound(_Record):
    """A bound from below on simulated data, and by how much the upper bound is above it."""

    nats: float
    reliable: bool
    reason: str | None
    num_particles: int
    gap: float
    gap_se: float | None


@dataclass(frozen=True, kw_only=True)
class BracketRecord(Annealing):
    """Bidirectional Monte Carlo on simulated data, and the guide's bounds of the same data."""

    lower: float
    upper: float
    gap: float
    gap_se: float | None
    num_data: int
    unit: Unit = "datum"
    dtype: str | None = None
    exact: float | None = field(default=None, metadata=_MAY_BE_ABSENT)
    elbo: Bound | None = field(default=None, metadata=_MAY_BE_ABSENT)
    iw: Bound | None = field(default=None, metadata=_MAY_BE_ABSENT)


@dataclass(frozen=True, kw_only=True)
class Part(_Record):
    """A difference of means, with its errors."""

    nats: float
    mc_se: float | None
    data_se: float | None


@dataclass(frozen=True, kw_only=True)
class Judge(_Record):
    """The log p(x) that gaps are measured from."""

    estimator: str
    nats: float
    reliable: bool
    reason: str | None


@dataclass(frozen=True, kw_only=True)
class GapsRecord(_Record):
    """The gaps of a run; see `inference.estimation.gaps`."""

    approximation: Part
    amortization: Part
    total: Part
    evidence: Judge
    share_bad: float | None
    num_data: int
    num_particles: int
    num_steps: int
    converged: bool


@dataclass(frozen=True, kw_only=True)
class Row(_Record):
    """All that is known of one run: how it was trained, and what was last found out about it.

    Args:
        label: how tables call it.
        model: name of the model; `guide` and `objective` likewise.
        decoder: "joint", or "frozen" if only the guide was fitted.
        unit: what its estimates are of, once there are any.
        num_train: size of the training data.
        history: one record per epoch.
        estimates: those of the last evaluation.
        latents: see `latent_diagnostics`.
        evaluation: the options of the last evaluation.
        evaluations: every evaluation there was, with what made it.
        num_fits: of how many fits the numbers are means.
    """

    label: str
    model: str
    guide: str
    data: str
    split: str
    binarize: str
    decoder: str
    objective: str
    folder: str
    seed: int
    data_seed: int
    unit: Unit = "datum"
    num_train: int = 0
    num_epochs: int
    num_parameters: int
    num_model_parameters: int
    num_guide_parameters: int
    train_seconds: float
    steps_per_second: float
    model_options: dict[str, Any]
    guide_options: dict[str, Any]
    data_sha256: str
    test_sha256: str
    weights_sha256: str
    sources: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str]
    history: list[dict[str, Any]]
    estimates: list[Estimate] = field(default_factory=list)
    k_hat: Weights | None = None
    ess: Median | None = None
    active_units: Count | None = None
    latents: dict[str, Any] | None = None
    divergences: PlaneDivergences | None = None
    evaluation: dict[str, Any] | None = None
    annealing: Annealing | None = None
    per_datum_sha256: str | None = None
    bracket: BracketRecord | None = None
    gaps: GapsRecord | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    num_fits: int = field(default=1, metadata=_MAY_BE_ABSENT)

    @property
    def is_of_data_set(self) -> bool:
        """Whether estimates are of the data set, whose latents are shared, and not means."""
        return self.unit == "data set"

    def is_of_weights(self, other: "Row") -> bool:
        """Whether both are of the same weights, evaluation data, and files of the user."""
        names = ("weights_sha256", "test_sha256", "sources")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def remembering(self, before: "Row | None") -> "Row":
        """This row of a training with what was found out about these very weights before."""
        if before is None or not before.is_of_weights(self):
            return self
        return replace(self, label=before.label, **{n: getattr(before, n) for n in _FOUND})

    def with_evaluation(self, made_by: Mapping[str, Any], found: Mapping[str, Any]) -> "Row":
        """The row with an evaluation more, in place of an earlier one made in the same way.

        Args:
            made_by: command and options that decide the numbers.
            found: the numbers, by their names in a row.
        """
        names = ("split", "seed", "data_seed", "data_sha256", "test_sha256", "weights_sha256")
        key = {**made_by, **{name: getattr(self, name) for name in names}}
        others = [one for one in self.evaluations if one["made_by"] != key]
        new = {"made_by": key, **as_json(dict(found))}
        return replace(self, **found, evaluations=[*others, new])


# What evaluations add to the row of a training.
_FOUND = (
    "estimates",
    "k_hat",
    "ess",
    "active_units",
    "latents",
    "divergences",
    "evaluation",
    "annealing",
    "per_datum_sha256",
    "bracket",
    "gaps",
    "evaluations",
)
