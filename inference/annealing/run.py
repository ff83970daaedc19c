"""The machine behind annealing: stages of HMC chains, block by block, resumable bit for bit."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from evidence.inference.annealing import hmc, schedule
from evidence.inference.annealing.guide_path import path_of
from evidence.inference.annealing.log_joint import AbstractPath
from evidence.inference.annealing.state import expect_annealing_state
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng, rng_state, set_rng_state
from evidence.inference.programs.traces import Program
from evidence.inference.training.snapshots import Snapshot

# What a crash may cost at the most, whatever a temperature takes.
_SECONDS_UNSAVED = 10.0

_JITTER = 0.2


@dataclass(frozen=True)
class Options:
    """Options of a run; `annealing.anneal` explains them."""

    num_chains: int
    num_temperatures: int
    num_leapfrog_steps: int
    num_pilot_temperatures: int
    target_acceptance: float
    seed: int
    chunk_size: int
    snapshot_every: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            is_count = name.startswith("num_") or name in ("chunk_size", "snapshot_every")
            if is_count and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"expected target_acceptance between 0 and 1, got {self.target_acceptance}"
            )


@dataclass
class _Position:
    """Where a run is: blocks of data done, stages of this block, steps of this stage."""

    block: int = 0
    stage: int = 0
    step: int = 0


@dataclass
class _Chains:
    """The chains of one stage.

    Args:
        state: of C chains and b data.
        step_sizes: `[T, b]`, frozen; in the pilot run its logarithms, one row more each step.
        log_w: log-weights so far `[C, b]`, in float64.
        acceptance: mean acceptance of the chains, summed over the steps `[1, b]`.
    """

    state: hmc.State
    step_sizes: Tensor
    log_w: Tensor
    acceptance: Tensor


class AnnealingRun:
    """Annealed importance sampling of all data, from its first step or from a snapshot.

    Each block of data goes through a pilot run, which finds step sizes; through the forward run,
    from f_0 to the posterior; and, where exact posterior draws are given, through the reverse run,
    which takes the same transitions from them back to f_0. With the weight

        w = Π_t f_t(z_{t−1}) / f_{t−1}(z_{t−1}),    z_t ~ K_t(z_{t−1}),  t = 1 … T,

    E[w] = p(x) forward, and E[1/w] = 1/p(x) in reverse, as HMC's K_t is its own reversal.

    Args:
        model: called with a batch; scores it.
        guide: where the path begins; None for the prior.
        x: data `[B, *data_shape]`.
        options: of the run.
        exact: draws from the posterior `[B, Z]`, in the path's coordinates.
    """

    def __init__(
        self,
        model: Program,
        guide: Program | None,
        x: Batch,
        options: Options,
        exact: Tensor | None = None,
    ) -> None:
        self.model, self.guide, self.options = model, guide, options
        self.num_data = len(x)
        size = max(1, options.chunk_size // options.num_chains)
        # What is wrong with data or programs shows here, before hours of work.
        self.is_joint = self._path(x).layout.is_joint
        self.blocks = [x] if self.is_joint else list(x.split(size))
        self.exact = None if exact is None else exact.split(size)
        self.stages = ["pilot", "forward"] + ([] if exact is None else ["reverse"])
        self.betas = schedule.sigmoidal_betas(options.num_temperatures)
        self.pilot_betas = [0.0] * schedule.NUM_WARMUP_STEPS
        self.pilot_betas += schedule.sigmoidal_betas(options.num_pilot_temperatures)[1:]
        for block in self.blocks:
            self._path(block)
        self.position = _Position()
        self.chains: _Chains | None = None
        self.done: dict[str, Tensor] = {}  # results, each [C or 1, data done, ...]
        self.last_snapshot = time.monotonic()

    def run(
        self, *, progress: bool, on_snapshot: Callable[[Snapshot], None] | None
    ) -> dict[str, Tensor]:
        """Take every step that is left.

        Returns:
            `log_w`, `acceptance`, `on_edge`, `latent.*` and `reverse_log_w`.
        """
        at = self.position
        per_block = sum(self._num_steps(stage) for stage in self.stages)
        earlier = sum(self._num_steps(stage) for stage in self.stages[: at.stage])
        with tqdm(
            total=len(self.blocks) * per_block,
            initial=at.block * per_block + earlier + at.step,
            disable=not progress,
            unit="step",
        ) as bar:
            while at.block < len(self.blocks):
                for stage in self._block():
                    bar.set_description(stage, refresh=False)
                    bar.update()
                    if on_snapshot and self._snapshot_is_due():
                        on_snapshot(self.snapshot())
                        self.last_snapshot = time.monotonic()
        if on_snapshot:
            on_snapshot(self.snapshot())
        return self.done

    def _block(self) -> Iterator[str]:
        """Take the steps that are left of this block; yields the stage of each."""
        at = self.position
        path = self._path(self.blocks[at.block])
        while at.stage < len(self.stages):
            stage = self.stages[at.stage]
            if at.step == 0:
                self.chains = self._start(stage, path, self.chains)
            while at.step < self._num_steps(stage):
                self._advance(stage, path, self.chains, at.step)
                at.step += 1
                yield stage
            self._finish(stage, path, self.chains)
            at.stage, at.step = at.stage + 1, 0
        self.chains = None
        at.block, at.stage = at.block + 1, 0

    def _path(self, x: Batch) -> AbstractPath:
        return path_of(self.model, self.guide, x)

    def _num_steps(self, stage: str) -> int:
        return len(self.pilot_betas) if stage == "pilot" else self.options.num_temperatures

    def _num_chains(self, stage: str) -> int:
        most = schedule.MAX_PILOT_CHAINS if stage == "pilot" else self.options.num_chains
        return min(self.options.num_chains, most)

    def _start(self, stage: str, path: AbstractPath, before: _Chains | None) -> _Chains:
        if stage == "pilot":
            z = path.sample(self._num_chains(stage))
            first = schedule.first_log_step_size(z.shape[1], z)
            step_sizes = torch.stack([first] * (len(self.pilot_betas) + 1))
        else:
            step_sizes = before.step_sizes
            z = path.sample(self.options.num_chains) if stage == "forward" else self._exact_draws()
        log_w = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
        return _Chains(hmc.init(z, path), step_sizes, log_w, torch.zeros_like(log_w[:1]))

    def _exact_draws(self) -> Tensor:
        """Every chain of a datum starts at the datum's own posterior draw: `[C, b, Z]`."""
        exact = self.exact[self.position.block]
        return exact.expand(self.options.num_chains, *exact.shape)

    def _advance(self, stage: str, path: AbstractPath, chains: _Chains, step: int) -> None:
        if stage == "pilot":
            acceptance = self._move(
                path, chains, self.pilot_betas[step], chains.step_sizes[step].exp()
            )
            chains.step_sizes[step + 1] = schedule.adapted(
                chains.step_sizes[step], acceptance, self.options.target_acceptance, step
            )
        elif stage == "forward":
            t = step + 1
            chains.log_w += self._log_increment(path, chains.state, t)
            self._move(path, chains, self.betas[t], chains.step_sizes[t - 1])
        else:  # the same, read backwards
            t = self.options.num_temperatures - step
            self._move(path, chains, self.betas[t], chains.step_sizes[t - 1])
            chains.log_w += self._log_increment(path, chains.state, t)

    def _move(self, path: AbstractPath, chains: _Chains, beta: float, step_size: Tensor) -> Tensor:
        """One transition at inverse temperature β; returns the acceptance `[C, b]`.

        Step sizes are jittered by draws that know nothing of the chains: where L steps make half a
        turn of an orbit or a full one, chains would not mix.
        """
        jitter = torch.empty_like(chains.state.z[..., 0]).uniform_(1 - _JITTER, 1 + _JITTER)
        chains.state, info = hmc.step(
            chains.state,
            path,
            step_size * jitter,
            num_leapfrog_steps=self.options.num_leapfrog_steps,
            weights=path.weights(beta),
        )
        chains.acceptance += info.acceptance.mean(0)
        return info.acceptance

    def _log_increment(self, path: AbstractPath, state: hmc.State, t: int) -> Tensor:
        """Log f_t(z) − log f_{t−1}(z) `[C, b]`, in float64."""
        before, after = path.weights(self.betas[t - 1]), path.weights(self.betas[t])
        change = [b - a for a, b in zip(before, after, strict=True)]
        return hmc.weighted_sum(change, state.log_probs.double())

    def _finish(self, stage: str, path: AbstractPath, chains: _Chains) -> None:
        if stage == "pilot":
            recorded = chains.step_sizes[schedule.NUM_WARMUP_STEPS + 1 :]
            chains.step_sizes = schedule.smoothed(recorded, self.options.num_temperatures)
        elif stage == "forward":
            values = path.site_values(chains.state.z)
            results = {f"latent.{name}": value for name, value in values.items()}
            results["log_w"] = chains.log_w
            results["on_edge"] = self._share_on_edge(path, chains.state.z)
            results["acceptance"] = chains.acceptance / self.options.num_temperatures
            self._keep(results)
        else:
            self._keep({"reverse_log_w": chains.log_w})

    def _share_on_edge(self, path: AbstractPath, z: Tensor) -> Tensor:
        """Where the chains began, or ended: the larger share of either, `[1, b]`."""
        with isolated_rng(device=z.device):
            ends = path.sample(self.options.num_chains), z
        return torch.stack([path.share_on_edge(end) for end in ends]).amax(0, keepdim=True)

    def _keep(self, results: dict[str, Tensor]) -> None:
        for name, value in results.items():
            parts = [self.done[name], value] if name in self.done else [value]
            self.done[name] = torch.cat(parts, dim=1)

    def _snapshot_is_due(self) -> bool:
        waited = time.monotonic() - self.last_snapshot
        return self.position.step % self.options.snapshot_every == 0 or waited > _SECONDS_UNSAVED

    def snapshot(self) -> Snapshot:
        """The run as it is now."""
        tensors = {f"done.{name}": value for name, value in self.done.items()}
        if self.chains is not None:
            chains = self.chains
            tensors |= {f"state.{n}": value for n, value in chains.state._asdict().items()}
            tensors |= {"step_sizes": chains.step_sizes, "log_w": chains.log_w}
            tensors["acceptance"] = chains.acceptance
        tensors |= {f"rng.{n}": t for n, t in rng_state(self.blocks[0].device).items()}
        meta = {"identity": self._identity(), "position": asdict(self.position)}
        return Snapshot({n: t.detach().clone() for n, t in tensors.items()}, meta)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: the snapshot is of another run.
        """
        theirs, ours = snapshot.meta.get("identity", {}), self._identity()
        if theirs != ours:
            differing = sorted(k for k in ours | theirs if ours.get(k) != theirs.get(k))
            what = ", ".join(f"{k} {ours.get(k)} (was {theirs.get(k)})" for k in differing)
            raise ValueError(f"the snapshot is of another run: {what}")
        tensors = {n: t.clone() for n, t in snapshot.tensors.items()}
        expect_annealing_state(
            tensors,
            snapshot.meta["position"],
            block_sizes=[len(block) for block in self.blocks],
            stages=self.stages,
            num_steps={stage: self._num_steps(stage) for stage in self.stages},
            num_chains={stage: self._num_chains(stage) for stage in self.stages},
        )
        self.position = _Position(**snapshot.meta["position"])
        self.done = _within("done.", tensors)
        if self.position.block < len(self.blocks):
            state = hmc.State(**_within("state.", tensors))
            names = ("step_sizes", "log_w", "acceptance")
            self.chains = _Chains(state, *(tensors[name] for name in names))
            self._check_same_densities(state)
        set_rng_state(_within("rng.", tensors), self.blocks[0].device)

    def _check_same_densities(self, state: hmc.State) -> None:
        path = self._path(self.blocks[self.position.block])
        close = {"rtol": 1e-4, "atol": 1e-3, "equal_nan": True}
        if state.z.shape[1:] != (len(path.x), path.dim) or not torch.allclose(
            hmc.init(state.z, path).log_probs, state.log_probs, **close
        ):
            raise ValueError("the snapshot is of another model, guide or batch of data")

    def _identity(self) -> dict[str, Any]:
        """What must agree for a run to be gone on with."""
        options = {k: v for k, v in asdict(self.options).items() if k != "snapshot_every"}
        kind = {"stages": self.stages, "from_guide": self.guide is not None}
        return {**options, **kind, "num_data": self.num_data}


def _within(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
