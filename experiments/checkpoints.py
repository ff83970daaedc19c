"""Checkpoints: safetensors and JSON in one folder each, written atomically. No pickle is read."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from inference import Snapshot

FORMAT = "evidence-checkpoint-1"
KEPT = 2

_TENSORS = "tensors.safetensors"
_META = "meta.json"


def save(folder: Path, snapshot: Snapshot, context: dict[str, Any]) -> Path:
    """Write a checkpoint below `folder`, in full or not at all, and drop all but the newest two.

    Args:
        folder: the checkpoints of one run.
        snapshot: the state of training, or of annealing.
        context: what else to record, JSON-able: configuration, versions, digest of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _name(snapshot.meta["position"])
    if final.exists():
        return final
    unfinished = folder / ".unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in snapshot.tensors.items()}
    payload = save_tensors(tensors)
    meta = {
        "format": FORMAT,
        "tensors_sha256": hashlib.sha256(payload).hexdigest(),
        "snapshot": snapshot.meta,
        **context,
    }
    _write(unfinished / _TENSORS, payload)
    _write(unfinished / _META, json.dumps(meta, indent=1).encode())
    unfinished.rename(final)
    _sync(folder)
    for old in _all(folder)[:-KEPT]:
        shutil.rmtree(old)
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint below `folder`, or None."""
    found = _all(folder)
    return found[-1] if found else None


def load(path: Path) -> tuple[Snapshot, dict[str, Any]]:
    """Read a checkpoint back: the snapshot and everything that was recorded with it.

    Raises:
        ValueError: the checkpoint is corrupt or was not written by this suite.
    """
    try:
        meta = json.loads((path / _META).read_bytes())
        payload = (path / _TENSORS).read_bytes()
    except (OSError, ValueError) as error:
        raise ValueError(_corrupt(path, f"{type(error).__name__} in its files")) from None
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError(f"foreign checkpoint {path}: expected format {FORMAT} in {_META}")
    if hashlib.sha256(payload).hexdigest() != meta.get("tensors_sha256"):
        raise ValueError(_corrupt(path, f"{_TENSORS} is not the file that {_META} describes"))
    try:
        tensors = load_tensors(payload)
    except safetensors.SafetensorError as error:
        raise ValueError(_corrupt(path, str(error))) from None
    return Snapshot(tensors, meta["snapshot"]), meta


def _name(position: dict[str, Any]) -> str:
    """Where the run is, such that names sort by progress."""
    parts = ("epoch", "block", "stage", "step")
    return "-".join(
        f"{part}-{position[part]:0{6 if part == 'step' else 5}d}"
        for part in parts
        if part in position
    )


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("*-step-*")) if folder.exists() else []


def _corrupt(path: Path, why: str) -> str:
    return f"corrupt checkpoint {path}: {why}: delete this folder to go on from an older one"


def _write(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
