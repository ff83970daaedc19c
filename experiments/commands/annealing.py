"""Annealing of a trained pair in its run folder: snapshots survive a crash, time is recorded."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from evidence.experiments.config import ANNEALING, Evaluate
from evidence.experiments.own.program import OwnProgram
from evidence.experiments.setup import datasets
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.estimators import num_chains
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.files import remove
from evidence.experiments.storage.records import Annealing
from evidence.experiments.storage.runs import RunFolder
from evidence.experiments.storage.schema import expect_type
from evidence.experiments.storage.training_state import within
from evidence.inference import Bracket, Evidence, Snapshot, anneal, bidirectional_evidence
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import expect_rng_state

try:
    import resource
except ModuleNotFoundError:  # there is none on Windows
    resource = None


def annealed(
    assembly: Assembly, x: Batch, config: Evaluate, folder: RunFolder
) -> tuple[Evidence, Annealing, Path]:
    """The record "ais" of `x`, what to record with it, and where its snapshots are."""

    def run(**options: Any) -> Any:
        return anneal(assembly.model, x, **options)

    purpose = {"estimator": "ais", "x": datasets.digest(x)}
    found, details, place = _resumable(run, purpose, assembly, config, folder)
    return found.evidence, replace(details, acceptance=found.acceptance.mean().item()), place


def bracketed(
    assembly: Assembly, size: int, config: Evaluate, folder: RunFolder
) -> tuple[Bracket, Annealing, Path]:
    """The bracket of `size` simulated data, what to record with it, and where its snapshots are."""

    def run(**options: Any) -> Any:
        like: dict[str, Any] = {"size": size}
        if isinstance(assembly.model, OwnProgram):  # which may take more than data to simulate
            rows = torch.arange(size, device=assembly.x_test.device) % len(assembly.x_test)
            like = {"like": assembly.x_test[rows]}
        return bidirectional_evidence(assembly.model, **like, **options)

    purpose = {"estimator": "bdmc", "size": size}
    return _resumable(run, purpose, assembly, config, folder)


def remove_snapshots(place: Path) -> None:
    """Remove the snapshots of an annealing whose result is written; those of another stay."""
    remove(place)
    if place.parent.is_dir() and not any(place.parent.iterdir()):
        place.parent.rmdir()


def remove_snapshots_of(folder: RunFolder, details: Annealing | None) -> None:
    """Remove what a kill may have left between a result and the end of its command.

    Args:
        folder: the run.
        details: of the annealing, as they are in the result.
    """
    key = "" if details is None else details.snapshots
    place = folder.path / "annealing" / key
    if key.isalnum() and place.is_dir():
        with folder.locked():
            remove_snapshots(place)


def _resumable(
    run: Callable[..., Any],
    purpose: dict[str, Any],
    assembly: Assembly,
    config: Evaluate,
    folder: RunFolder,
) -> tuple[Any, Annealing, Path]:
    """Run with snapshots into the folder, from the newest of the very same run if there is any."""
    options = {name: getattr(config, name) for name in ANNEALING}
    options["num_chains"] = num_chains(config, is_joint=assembly.is_joint)
    weights = assembly.weights_sha256()
    identity = {**purpose, **options, "weights": weights, "seed": assembly.config.seed}
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    place = folder.path / "annealing" / key
    before, seconds = _newest(place, identity)
    started = time.monotonic() - seconds
    guide = assembly.guide if config.start == "guide" else None
    result = run(
        guide=guide,
        seed=assembly.config.seed,
        progress=sys.stderr.isatty(),
        resume_from=before,
        on_snapshot=_Saving(place, identity, started),
        **{name: value for name, value in options.items() if name != "start"},
    )
    details = Annealing(
        **options,
        seconds=time.monotonic() - started,
        peak_memory_mib=_peak_memory_mib(),
        snapshots=key,
    )
    return result, details, place


def _newest(place: Path, identity: dict[str, Any]) -> tuple[Snapshot | None, float]:
    """The newest snapshot of an annealing, and the seconds that it took until then.

    Raises:
        ValueError: it is corrupt, or of another annealing.
    """
    newest = checkpoints.newest(place)
    if newest is None:
        return None, 0.0
    snapshot, meta = checkpoints.load(newest)
    if meta.get("annealing") != identity:
        raise ValueError(f"{newest} is of another annealing: delete {place} to start anew")
    try:
        expect_rng_state(within("rng.", snapshot.tensors))
        return snapshot, expect_type("seconds", meta.get("seconds"), float)
    except ValueError as error:
        raise ValueError(f"corrupt snapshot {newest}: {error}: delete this folder") from None


class _Saving:
    """Saves snapshots until one cannot be saved: that costs a resumption, and no result."""

    def __init__(self, place: Path, identity: dict[str, Any], started: float) -> None:
        self.place, self.identity, self.started = place, identity, started
        self.is_given_up = False

    def __call__(self, state: Snapshot) -> None:
        if self.is_given_up:
            return
        context = {"annealing": self.identity, "seconds": time.monotonic() - self.started}
        try:
            checkpoints.save(self.place, state, context)
        except OSError as error:
            self.is_given_up = True
            print(f"evidence: no snapshots of this annealing ({error})", file=sys.stderr)


def _peak_memory_mib() -> float | None:
    """Of this process so far, torch and the data included; None where the system does not say."""
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB here
