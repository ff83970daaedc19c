"""Annealing of a trained pair in its run folder: snapshots survive a crash, time is recorded."""

import hashlib
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from experiments import checkpoints, datasets
from experiments.assembly import Assembly
from experiments.config import ANNEALING, Evaluate
from experiments.runs import RunFolder
from inference import Bracket, Evidence, Snapshot, anneal, bidirectional_evidence


def annealed(
    assembly: Assembly, x: Tensor, config: Evaluate, folder: RunFolder, snapshot: Snapshot
) -> tuple[Evidence, dict[str, Any]]:
    """The record "ais" of `x`, and what to record with it."""

    def run(**options: Any) -> Any:
        return anneal(assembly.model, x, **options)

    purpose = {"estimator": "ais", "x": datasets.digest(x)}
    found, details = _resumable(run, purpose, assembly, config, folder, snapshot)
    return found.evidence, details | {"acceptance": found.acceptance.mean().item()}


def bracketed(
    assembly: Assembly, size: int, config: Evaluate, folder: RunFolder, snapshot: Snapshot
) -> tuple[Bracket, dict[str, Any]]:
    """The bracket of `size` simulated data, and what to record with it."""

    def run(**options: Any) -> Any:
        return bidirectional_evidence(assembly.model, size=size, **options)

    purpose = {"estimator": "bdmc", "size": size}
    return _resumable(run, purpose, assembly, config, folder, snapshot)


def _resumable(
    run: Callable[..., Any],
    purpose: dict[str, Any],
    assembly: Assembly,
    config: Evaluate,
    folder: RunFolder,
    snapshot: Snapshot,
) -> tuple[Any, dict[str, Any]]:
    """Run with snapshots into the folder, from the newest of the very same run if there is any."""
    options = {name: getattr(config, name) for name in ANNEALING}
    epoch_and_step = [snapshot.meta["position"][name] for name in ("epoch", "step")]
    identity = {**purpose, **options, "weights": epoch_and_step, "seed": assembly.config.seed}
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    place = folder.path / "annealing" / key
    newest = checkpoints.newest(place)
    before, meta = checkpoints.load(newest) if newest else (None, {"seconds": 0.0})
    started = time.monotonic() - meta["seconds"]

    def save(state: Snapshot) -> None:
        context = {"config": asdict(config), "seconds": time.monotonic() - started}
        checkpoints.save(place, state, context)

    guide = assembly.guide if options.pop("start") == "guide" else None
    result = run(
        guide=guide,
        seed=assembly.config.seed,
        progress=sys.stderr.isatty(),
        resume_from=before,
        on_snapshot=save,
        **options,
    )
    details = {name: getattr(config, name) for name in ANNEALING} | {
        "seconds": time.monotonic() - started,
        "peak_memory_mib": _peak_memory_mib(),
    }
    shutil.rmtree(place)
    if not any(place.parent.iterdir()):  # snapshots of another annealing stay
        place.parent.rmdir()
    return result, details


def _peak_memory_mib() -> float:
    """Of this process so far, torch and the data included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB here
