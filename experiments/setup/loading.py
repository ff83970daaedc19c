"""Trained runs, brought back with their weights."""

import sys
from dataclasses import replace
from pathlib import Path

from evidence.experiments.config import Reading
from evidence.experiments.setup.assembly import Assembly, assemble
from evidence.experiments.setup.trained import expect_config_of, load_of_data, read_train_config
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.runs import RunFolder
from evidence.experiments.storage.training_state import (
    expect_history,
    training_state,
    within,
)
from evidence.experiments.storage.trust import expect_trusted, trusted_root
from evidence.inference import Snapshot, restore_tensors
from evidence.inference.programs.random_state import expect_rng_state

_PLAINLY = Reading()


def load_run(folder: RunFolder, how: Reading = _PLAINLY) -> tuple[Assembly, Snapshot]:
    """The assembly of a trained run, with its trained weights.

    Args:
        folder: the run.
        how: what the run may use, and where.

    Raises:
        ValueError: no run folder, no checkpoint, or one of other data or another model; or the run
            asks for what the user has not named.
    """
    config = read_train_config(folder)
    expect_trusted(config, folder.path, trust=how.trust)
    newest = checkpoints.newest(folder.checkpoints)
    if newest is None:
        raise ValueError(f"{folder.path} has no checkpoint yet: train it first")
    expect_config_of(newest, config)
    # The checkpoint holds the fixed model too: the run that it came from is not needed any more.
    root = trusted_root(config, how.data_root, trust=how.trust)
    assembly = assemble(replace(config, frozen_model=None, data_root=root, device=how.device))
    resolved = replace(assembly.config, frozen_model=config.frozen_model)
    assembly = replace(assembly, config=resolved)
    if changed := changed_sources(newest, assembly):
        print(
            f"evidence: {', '.join(changed)} has changed since {folder.path} was trained: numbers "
            "are of the model and the guide as they are now, with the parameters from then",
            file=sys.stderr,
        )
    snapshot = load_snapshot(newest, assembly)
    restore_tensors(snapshot, model=assembly.model.eval(), guide=assembly.guide.eval())
    return assembly, snapshot


def load_snapshot(checkpoint: Path, assembly: Assembly) -> Snapshot:
    """A checkpoint of just this data, model and guide; every tensor is checked before it is used.

    Raises:
        ValueError: it is corrupt, foreign, or of other data or another pair.
    """
    snapshot = load_of_data(checkpoint, assembly.dataset)
    state = training_state(snapshot.tensors, assembly.model, assembly.guide)
    checkpoints.expect_tensors(checkpoint, snapshot.tensors, state)
    try:
        expect_history(snapshot.meta["position"])
        expect_rng_state(within("rng.", snapshot.tensors))
    except ValueError as error:
        raise ValueError(f"corrupt checkpoint {checkpoint}: {error}") from None
    return snapshot


def changed_sources(checkpoint: Path, assembly: Assembly) -> list[str]:
    """The user's files that are not what they were when the checkpoint was made."""
    recorded = checkpoints.read_meta(checkpoint).get("sources", {})
    return sorted(n for n, sha256 in assembly.sources.items() if recorded.get(n) != sha256)
