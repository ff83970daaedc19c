"""The options of annealing."""

from dataclasses import asdict, dataclass
from typing import get_args

from evidence.inference.compilation.functions import Compile, expect_compile
from evidence.inference.paths.metric import Kind
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE

_CHAINS_PER_DATUM, _JOINT_CHAINS = 16, 100


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of `anneal` and of all that rests on it.

    Args:
        num_chains: C, by default 16 per datum, or 100 of a data set whose data share latents, where
            they cost little more than one.
        num_temperatures: T, transitions of each chain.
        num_leapfrog_steps: L, gradients per transition at the most; fewer where these go a quarter
            of an orbit in the metric.
        num_pilot_temperatures: transitions of the pilot run.
        target_acceptance: what the pilot run tunes step sizes towards.
        metric: of HMC, from the pilot run's covariance: "diagonal", "dense", "unit" for none, or
            "auto" for "dense" up to 200 latents per datum and "diagonal" above.
        seed: decides every random choice.
        chunk_size: chains × data at work at a time, but at least one datum; bounds the memory.
        snapshot_every: steps between snapshots; one is also made if the last is ten seconds old.
        compile: whether the log joint and its gradients are compiled by Torch's Inductor: True,
            False, or "auto" where that takes less time than it saves. Unless it is False they are
            recorded and run without Pyro, to the same bits, where a run is long enough.

    Raises:
        ValueError: an option out of its range.
    """

    num_chains: int | None = None
    num_temperatures: int = 1000
    num_leapfrog_steps: int = 10
    num_pilot_temperatures: int = 200
    target_acceptance: float = 0.8
    metric: Kind = "auto"
    seed: int = 0
    chunk_size: int = DEFAULT_CHUNK_SIZE
    snapshot_every: int = 100
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            is_count = name.startswith("num_") or name in ("chunk_size", "snapshot_every")
            if is_count and value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"expected target_acceptance between 0 and 1, got {self.target_acceptance}"
            )
        expect_compile(self.compile)
        if self.metric not in get_args(Kind):
            raise ValueError(f"expected metric in {get_args(Kind)}, got {self.metric!r}")

    def chains(self, *, is_joint: bool) -> int:
        """C, where there is one weight for all data, or one for each."""
        if self.num_chains is not None:
            return self.num_chains
        return _JOINT_CHAINS if is_joint else _CHAINS_PER_DATUM
