"""The machine behind annealing: stages of HMC chains, block by block, resumable bit for bit."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from evidence.inference.annealing import pilot
from evidence.inference.annealing.options import Options
from evidence.inference.annealing.pilot import NUM_WARMUP_STEPS, Pilot, Plan
from evidence.inference.annealing.state import (
    expect_count,
    expect_done,
    expect_position,
    restored,
    tensors_of,
)
from evidence.inference.paths import hmc
from evidence.inference.paths.beside import share_beside
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.interweaving import coordinates_of
from evidence.inference.paths.log_joint import AbstractPath
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import rng_state, set_rng_state
from evidence.inference.programs.traces import Program
from evidence.inference.training.snapshots import (
    Saver,
    Snapshot,
    copies,
    expect_same_run,
    within,
)


@dataclass
class Position:
    """Where a run is: blocks of data done, stages of this block, steps of this stage."""

    block: int = 0
    stage: int = 0
    step: int = 0


@dataclass
class Measured:
    """The chains of the forward run, or of the reverse run.

    Args:
        state: of C chains and b data.
        betas: see `Plan`.
        step_sizes: see `Plan`.
        factors: see `Plan`.
        log_w: log-weights so far `[C, b]`, in float64.
        acceptance: mean acceptance of the chains, summed over the steps `[1, b]`.
        began_on_edge: 1 for chains that began on the edge of a support `[C, b]`.
    """

    state: hmc.State
    betas: Tensor
    step_sizes: Tensor
    factors: Tensor
    log_w: Tensor
    acceptance: Tensor
    began_on_edge: Tensor

    @classmethod
    def begin(cls, path: AbstractPath, z: Tensor, plan: Plan) -> "Measured":
        """At positions `[C, b, Z]`."""
        log_w = torch.zeros(z.shape[0], len(plan.step_sizes[0]), dtype=torch.float64)
        log_w = log_w.to(z.device)
        began = path.on_edge(z).to(log_w)
        return cls(path.state(z), *plan, log_w, torch.zeros_like(log_w[:1]), began)

    @property
    def plan(self) -> Plan:
        """What was taken from the pilot run."""
        return Plan(self.betas, self.step_sizes, self.factors)

    def share_on_edge(self, path: AbstractPath) -> Tensor:
        """The share of the evidence that comes from chains that began or ended there: `[1, b]`."""
        on_edge = torch.maximum(self.began_on_edge, path.on_edge(self.state.z).to(self.log_w))
        weights = self.log_w.softmax(0).nan_to_num(nan=1 / len(self.log_w))
        return (weights * on_edge).sum(0, keepdim=True)


class AnnealingRun:
    """Annealed importance sampling of all data, from its first step or from a snapshot.

    Each block of data goes through a pilot run, which finds temperatures, step sizes and metrics;
    through the forward run, from f_0 to the posterior; and, where exact posterior draws are given,
    through the reverse run, which takes the same transitions from them back to f_0. With the weight

        w = Π_t f_t(z_{t−1}) / f_{t−1}(z_{t−1}),    z_t ~ K_t(z_{t−1}),  t = 1 … T,

    E[w] = p(x) forward, and E[1/w] = 1/p(x) in reverse, as HMC's K_t is its own reversal. Of two
    sets of coordinates K_t is in those that the parity of t says, in either direction.

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
        # What is wrong with data or programs shows here, before hours of work.
        self.is_joint = self._path(x).layout.is_joint
        self.num_chains = options.chains(is_joint=self.is_joint)
        size = max(1, options.chunk_size // self.num_chains)
        self.blocks = [x] if self.is_joint else list(x.split(size))
        self.exact = [] if exact is None else exact.split(size)
        self.stages = ["pilot", "forward"] + ([] if exact is None else ["reverse"])
        for block in self.blocks:
            self._path(block)
        self.position = Position()
        self.chains: Pilot | Measured | None = None
        self.done: dict[str, Tensor] = {}  # results, each [C or 1, data done, ...]
        self._spent = 0  # evaluations of the log joint, but for those of the path at work
        self._at_work: Sequence[AbstractPath] = ()

    def run(
        self, *, progress: bool, on_snapshot: Callable[[Snapshot], None] | None
    ) -> dict[str, Tensor]:
        """Take every step that is left.

        Returns:
            `log_w`, `log_ratio`, `acceptance`, `on_edge`, `beside`, `latent.*`, `reverse_log_w`.
        """
        at, saver = self.position, Saver(on_snapshot, every=self.options.snapshot_every)
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
                    saver.after_step(at.step, self.snapshot)
        saver.save(self.snapshot)
        return self.done

    @property
    def num_evaluations(self) -> int:
        """Of the log joint, so far, before a snapshot as well."""
        return self._spent + sum(path.num_evaluations for path in self._at_work)

    def _block(self) -> Iterator[str]:
        """Take the steps that are left of this block; yields the stage of each."""
        at = self.position
        paths = self._at_work = coordinates_of(self._path(self.blocks[at.block]))
        num_steps = sum(map(self._num_steps, self.stages)) // len(paths)
        for path in paths:
            path.expect_calls(num_steps * self.options.num_leapfrog_steps, self.options.compile)
        while at.stage < len(self.stages):
            stage = self.stages[at.stage]
            chains = self.chains
            if chains is None or at.step == 0:
                chains = self.chains = self._start(stage, paths, chains)
            while at.step < self._num_steps(stage):
                self._advance(stage, paths, chains, at.step)
                at.step += 1
                yield stage
            self._finish(stage, paths[0], chains)
            at.stage, at.step = at.stage + 1, 0
        self._spent, self._at_work = self.num_evaluations, ()
        self.chains = None
        at.block, at.stage = at.block + 1, 0

    def _path(self, x: Batch) -> AbstractPath:
        return path_of(self.model, self.guide, x)

    def _num_steps(self, stage: str) -> int:
        if stage == "pilot":
            return NUM_WARMUP_STEPS + self.options.num_pilot_temperatures
        return self.options.num_temperatures

    def _start(
        self, stage: str, paths: Sequence[AbstractPath], before: Pilot | Measured | None
    ) -> Pilot | Measured:
        if stage == "pilot" or before is None:
            return Pilot.begin(paths, self.options)
        plan = before.plan(self.options) if isinstance(before, Pilot) else before.plan
        z = paths[0].sample(self.num_chains) if stage == "forward" else self._exact_draws()
        return Measured.begin(paths[0], z, plan)

    def _exact_draws(self) -> Tensor:
        """Every chain of a datum starts at the datum's own posterior draw: `[C, b, Z]`."""
        exact = self.exact[self.position.block]
        return exact.expand(self.num_chains, *exact.shape)

    def _advance(
        self, stage: str, paths: Sequence[AbstractPath], chains: Pilot | Measured, step: int
    ) -> None:
        if isinstance(chains, Pilot):
            chains.advance(paths, self.options, step)
        elif stage == "forward":
            chains.log_w += self._log_increment(paths[0], chains, step + 1)
            self._move(paths, chains, step + 1)
        else:  # the same, read backwards
            t = self.options.num_temperatures - step
            self._move(paths, chains, t)
            chains.log_w += self._log_increment(paths[0], chains, t)

    def _move(self, paths: Sequence[AbstractPath], chains: Measured, t: int) -> Tensor:
        """Transition number t, at β_t; returns the acceptance `[C, b]`."""
        turn = (t - 1) % len(paths)
        number = (t - 1) * chains.factors.shape[1] // self.options.num_temperatures
        chains.state, info = pilot.move_in_turn(
            paths,
            turn,
            chains.state,
            chains.betas[t].item(),
            chains.step_sizes[t - 1],
            pilot.factor_at(chains.factors[turn], number),
            self.options.num_leapfrog_steps,
            of_all_lengths=self.is_joint,
        )
        chains.acceptance += info.acceptance.mean(0)
        return info.acceptance

    def _log_increment(self, path: AbstractPath, chains: Measured, t: int) -> Tensor:
        """Log f_t(z) − log f_{t−1}(z) `[C, b]`, in float64."""
        before, after = (path.weights(beta.item()) for beta in chains.betas[t - 1 : t + 1])
        change = [b - a for a, b in zip(before, after, strict=True)]
        return hmc.weighted_sum(change, chains.state.log_probs.double())

    def _finish(self, stage: str, path: AbstractPath, chains: Pilot | Measured) -> None:
        if isinstance(chains, Pilot):
            return
        if stage == "forward":
            values = path.site_values(chains.state.z)
            results = {f"latent.{name}": value for name, value in values.items()}
            results["log_w"] = chains.log_w
            results["log_ratio"] = path.log_ratio(chains.state.log_probs)
            results["on_edge"] = chains.share_on_edge(path)
            share, _ = share_beside(path, chains.state.z, chains.log_w)
            results["beside"] = share.unsqueeze(0)
            results["acceptance"] = chains.acceptance / self.options.num_temperatures
            self._keep(results)
        else:
            self._keep({"reverse_log_w": chains.log_w})

    def _keep(self, results: dict[str, Tensor]) -> None:
        for name, value in results.items():
            parts = [self.done[name], value] if name in self.done else [value]
            self.done[name] = torch.cat(parts, dim=1)

    def snapshot(self) -> Snapshot:
        """The run as it is now."""
        tensors = {f"done.{name}": value for name, value in self.done.items()}
        tensors |= {} if self.chains is None else tensors_of(self.chains)
        tensors |= {f"rng.{n}": t for n, t in rng_state(self.blocks[0].device).items()}
        meta = {
            "identity": self._identity(),
            "position": asdict(self.position),
            "num_evaluations": self.num_evaluations,
        }
        return Snapshot(copies(tensors), meta)

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot.

        Raises:
            ValueError: the snapshot is of another run.
        """
        expect_same_run(snapshot, self._identity())
        tensors = copies(snapshot.tensors)
        num_steps = [self._num_steps(stage) for stage in self.stages]
        position = snapshot.meta["position"]
        block, stage = expect_position(position, len(self.blocks), num_steps)
        self.done = within("done.", tensors)
        before = self._num_weights(block)
        forward = self._num_weights(block + (stage > self.stages.index("forward")))
        reverse = before if "reverse" in self.stages else None
        expect_done(self.done, self.num_chains, forward=forward, reverse=reverse)
        self.position = Position(**position)
        self._spent = expect_count(snapshot.meta)
        if block < len(self.blocks):
            self._restore_chains(self.stages[stage], tensors)
        set_rng_state(within("rng.", tensors), self.blocks[0].device)

    def _num_weights(self, num_blocks: int) -> int:
        """Of so many blocks."""
        blocks = self.blocks[:num_blocks]
        return len(blocks) if self.is_joint else sum(map(len, blocks))

    def _restore_chains(self, stage: str, tensors: dict[str, Tensor]) -> None:
        """Chains as this stage has them, and their densities where they are."""
        paths = coordinates_of(self._path(self.blocks[self.position.block]))
        first = Pilot.begin(paths, self.options)
        like = first if stage == "pilot" else self._start(stage, paths, first)
        self.chains = restored(like, tensors)
        ours, theirs = paths[0].state(self.chains.state.z).log_probs, self.chains.state.log_probs
        if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ValueError("the snapshot is of another model, guide or batch of data")

    def _identity(self) -> dict[str, Any]:
        """What must agree for a run to be gone on with."""
        options = {k: v for k, v in asdict(self.options).items() if k != "snapshot_every"}
        kind = {"stages": self.stages, "from_guide": self.guide is not None}
        sizes = {"num_chains": self.num_chains, "num_data": self.num_data}
        return {**options, **kind, **sizes}
