"""Checkpoints: safetensors and JSON in one folder each, written atomically. No pickle is read."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from evidence.experiments.storage.files import new_folder, put, remove
from evidence.experiments.storage.schema import (
    MAX_DOCUMENT_BYTES,
    expect_type,
    parse_json,
    read_bytes,
    signed,
    verified,
)
from evidence.inference import Snapshot

FORMAT = "evidence-checkpoint-2"
KEPT = 2

_TENSORS = "tensors.safetensors"
_META = "meta.json"
_MAX_TENSOR_BYTES = 2**38
_MAX_COUNT = 10**9
_PARTS = ("epoch", "block", "stage", "step")  # of a position, by rank


def save(folder: Path, snapshot: Snapshot, context: dict[str, Any]) -> Path:
    """Write a checkpoint below `folder`, in full or not at all, and drop all but the newest two.

    Args:
        folder: the checkpoints of one run.
        snapshot: the state of training, or of annealing.
        context: what else to record, JSON-able: configuration, versions, digest of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / _name(snapshot.meta["position"])
    if not final.exists():
        _write(final, snapshot, context)
    for old in _all(folder)[:-KEPT]:
        remove(old)
    return final


def _write(final: Path, snapshot: Snapshot, context: dict[str, Any]) -> None:
    payload = save_tensors({n: t.cpu().contiguous() for n, t in snapshot.tensors.items()})
    meta = {
        "format": FORMAT,
        "tensors_sha256": hashlib.sha256(payload).hexdigest(),
        "weights_sha256": weights_sha256(snapshot.tensors),
        "snapshot": snapshot.meta,
        **context,
    }
    with new_folder(final) as unfinished:
        put(unfinished / _TENSORS, payload)
        put(unfinished / _META, signed(meta))


def newest(folder: Path) -> Path | None:
    """The newest checkpoint below `folder`, or None."""
    found = _all(folder)
    return found[-1] if found else None


def load(path: Path) -> tuple[Snapshot, dict[str, Any]]:
    """Read a checkpoint back: the snapshot and everything that was recorded with it.

    Raises:
        ValueError: the checkpoint is corrupt or was not written by this suite.
    """
    meta = read_meta(path)
    try:
        payload = read_bytes(path / _TENSORS, _MAX_TENSOR_BYTES)
    except (OSError, ValueError) as error:
        raise ValueError(_corrupt(path, f"{type(error).__name__} in its files")) from None
    if hashlib.sha256(payload).hexdigest() != meta.get("tensors_sha256"):
        raise ValueError(_corrupt(path, f"{_TENSORS} is not the file that {_META} describes"))
    try:
        tensors = load_tensors(payload)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise ValueError(_corrupt(path, str(error))) from None
    return Snapshot(tensors, meta["snapshot"]), meta


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Digest of the weights and buffers of a pair, whatever else there is with them."""
    sha256 = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(("model.", "guide.")):
            array = tensors[name].detach().cpu().contiguous().numpy()
            sha256.update(f"{name} {array.dtype.str}{array.shape}".encode())
            sha256.update(array.tobytes())
    return sha256.hexdigest()


def read_meta(path: Path) -> dict[str, Any]:
    """What was recorded with a checkpoint, its position and identity checked for their types.

    Raises:
        ValueError: the checkpoint is corrupt or was not written by this suite.
    """
    try:
        document = parse_json(read_bytes(path / _META, MAX_DOCUMENT_BYTES))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise _ForeignError
        meta = verified(document)
        _expect_snapshot(meta.get("snapshot"))
        expect_type("weights_sha256", meta.get("weights_sha256"), str)
    except _ForeignError:
        raise ValueError(
            f"foreign checkpoint {path}: expected format {FORMAT} in {_META}: train anew"
        ) from None
    except (OSError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else type(error).__name__
        raise ValueError(_corrupt(path, f"{_META}: {reason}")) from None
    return meta


class _ForeignError(Exception):
    """A checkpoint of another format."""


def expect_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Check that tensors are those expected, each by name, shape and type.

    Raises:
        ValueError: one is missing, unknown, or of another shape or type.
    """
    if odd := sorted(tensors.keys() ^ expected.keys()):
        side = "lacks" if odd[0] in expected else "has no place for"
        raise ValueError(f"{_of_another(path, odd[0])}: it {side} {odd[0]}")
    for name, ours in expected.items():
        theirs = tensors[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise ValueError(
                f"{_of_another(path, name)}: expected {name} to be {_described(ours)}, got "
                f"{_described(theirs)}"
            )


def _of_another(path: Path, name: str) -> str:
    what = "optimizer" if name.startswith("optimizer.") else "model or guide"
    return f"checkpoint {path}: the snapshot is of another {what}"


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _expect_snapshot(snapshot: Any) -> None:
    snapshot = expect_type("snapshot", snapshot, dict[str, Any])
    position = expect_type("position", snapshot.get("position"), dict[str, Any])
    expect_type("identity", snapshot.get("identity"), dict[str, Any])
    counts = {part: position[part] for part in _PARTS if part in position}
    for part, value in {"step": None, **counts}.items():
        if not 0 <= expect_type(part, value, int) < _MAX_COUNT:
            raise ValueError(f"expected {part} between 0 and {_MAX_COUNT:,}, got {value}")


def _name(position: dict[str, Any]) -> str:
    """Where the run is, such that names sort by progress."""
    return "-".join(
        f"{part}-{position[part]:0{6 if part == 'step' else 5}d}"
        for part in _PARTS
        if part in position
    )


def _all(folder: Path) -> list[Path]:
    return sorted(folder.glob("[!.]*-step-*")) if folder.exists() else []


def _corrupt(path: Path, why: str) -> str:
    return f"corrupt checkpoint {path}: {why}: delete this folder to go on from an older one"
