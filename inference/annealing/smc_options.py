"""The options of sequential Monte Carlo."""

from dataclasses import asdict, dataclass
from typing import get_args

from evidence.inference.compilation.functions import Compile, expect_compile
from evidence.inference.paths.log_joint import AbstractPath, Way
from evidence.inference.paths.metric import Kind
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE

# Chains of every island. Where they are run as one batch, many cost little more than few; under
# `torch.vmap` all but their first draws are.
_CHAINS_PER_DATUM = 2
_JOINT_CHAINS = {Way.PLATE: 32, Way.VMAP: 8, Way.ONE_BY_ONE: 2}
_TEMPERATURES = 10  # as many as most posteriors take, from the prior


@dataclass(frozen=True, kw_only=True)
class SMCOptions:
    """Options of `smc`.

    Args:
        num_islands: R, independent runs side by side; their spread is the error bar.
        num_chains: K, chains of every island at every temperature, and ancestors that are resampled
            for them; by default 32 for a data set whose data share latents, fewer where the
            program does not broadcast over chains, and 2 per datum.
        num_steps: P, particles that each chain leaves at a temperature, its ancestor among them.
        ess_share: effective share of the particles that is left by the step to the next
            temperature; larger for more temperatures.
        num_leapfrog_steps: L, gradients per transition at the most; fewer where these go a quarter
            of an orbit in the metric.
        target_acceptance: what the pilot run tunes step sizes towards.
        metric: of HMC, from the pilot run's covariance: "diagonal", "dense", "unit" for none, or
            "auto" for "dense" up to 200 latents per datum and "diagonal" above.
        max_temperatures: the most temperatures that the pilot run may set.
        seed: decides every random choice.
        chunk_size: chains × data at work at a time, but at least one datum; bounds the memory.
        compile: see `Options`.

    Raises:
        ValueError: an option out of its range.
    """

    num_islands: int = 32
    num_chains: int | None = None
    num_steps: int = 16
    ess_share: float = 0.5
    num_leapfrog_steps: int = 10
    target_acceptance: float = 0.8
    metric: Kind = "auto"
    max_temperatures: int = 1000
    seed: int = 0
    chunk_size: int = DEFAULT_CHUNK_SIZE
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 2 if name in ("num_islands", "num_steps") else 1
            is_count = name.startswith(("num_", "max_")) or name == "chunk_size"
            if is_count and value is not None and value < least:
                raise ValueError(f"expected {name} of at least {least}, got {value}")
            is_share = name in ("ess_share", "target_acceptance")
            if is_share and not 0 < value < 1:
                raise ValueError(f"expected {name} between 0 and 1, got {value}")
        expect_compile(self.compile)
        if self.metric not in get_args(Kind):
            raise ValueError(f"expected metric in {get_args(Kind)}, got {self.metric!r}")

    @property
    def about_calls(self) -> int:
        """How many gradients of all chains the pilot run and the measured one take, about."""
        return 2 * _TEMPERATURES * (self.num_steps - 1) * self.num_leapfrog_steps

    def chains(self, path: AbstractPath) -> int:
        """C = R · K, of all islands together."""
        if self.num_chains is not None:
            return self.num_islands * self.num_chains
        is_joint = path.layout.is_joint
        return self.num_islands * (_JOINT_CHAINS[path.way] if is_joint else _CHAINS_PER_DATUM)
