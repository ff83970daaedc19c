"""`per_datum.csv`: every estimate of every datum, for whoever wants to look behind the means."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from evidence.experiments.storage.records import Row
from evidence.experiments.storage.schema import MAX_DOCUMENT_BYTES, read_bytes
from evidence.inference import Evidence
from evidence.inference.estimation.evidence import Estimator

NAME = "per_datum.csv"
_SIZE = "data_set_size"
_DIAGNOSTICS = ("ess", "k_hat", "particles")


def to_csv(rows: Tensor, records: Sequence[Evidence]) -> str:
    """One line per datum: its row in the evaluation data `[B]`, and all that is known of it.

    Of records of the whole data set there is one line, and its `data_set_size` in place of a row.

    Columns are `ESTIMATOR_nats` and `ESTIMATOR_variance`, the Monte Carlo variance, and of weighted
    estimates `ESTIMATOR_ess`, `ESTIMATOR_k_hat` and `ESTIMATOR_particles`.
    """
    size = records[0].data_set_size
    columns: dict[str, list[float]] = {"datum": rows.tolist()}
    if size is not None:
        columns = {_SIZE: [size]}
    for record in records:
        columns |= {f"{record.estimator}_{n}": c.tolist() for n, c in _columns(record).items()}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue()


def _columns(record: Evidence) -> dict[str, Tensor]:
    columns = {"nats": record.log_px, "variance": record.log_px_variance}
    if record.num_particles > 0:
        columns |= {name: getattr(record, name) for name in ("ess", "k_hat")}
        columns["particles"] = record.particles_per_datum
    return columns


def digest(text: str) -> str:
    """SHA-256 of the file, by which a row of results.json knows its own."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_of(folder: Path, row: Row) -> bool:
    """Whether the file in the folder was written with just this row."""
    try:
        payload = read_bytes(folder / NAME, MAX_DOCUMENT_BYTES)
    except FileNotFoundError:
        return False
    return hashlib.sha256(payload).hexdigest() == row.per_datum_sha256


def read(folder: Path) -> tuple[list[int], dict[str, Evidence]]:
    """The rows of the evaluation data, and the records by estimator.

    Raises:
        ValueError: the file is missing or damaged.
    """
    path = folder / NAME
    try:
        text = read_bytes(path, MAX_DOCUMENT_BYTES).decode()
        lines = list(csv.DictReader(io.StringIO(text, newline="")))
        columns = {n: torch.tensor([float(line[n]) for line in lines]).double() for n in lines[0]}
        size = int(columns.pop(_SIZE).item()) if _SIZE in columns else None
        rows = columns.pop("datum").tolist() if size is None else range(size)
        known = [name for name in get_args(Estimator) if f"{name}_nats" in columns]
        records = {name: _record(name, columns) for name in known}
        found = {n: replace(record, data_set_size=size) for n, record in records.items()}
        return [int(row) for row in rows], found
    except (OSError, KeyError, IndexError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}): run `evidence evaluate {folder}` anew"
        ) from None


def _record(name: Estimator, columns: dict[str, Tensor]) -> Evidence:
    nats, variance = columns[f"{name}_nats"], columns[f"{name}_variance"]
    if f"{name}_particles" not in columns:
        return Evidence.exact(nats)
    ess, k_hat, particles = (columns[f"{name}_{column}"] for column in _DIAGNOSTICS)
    most = int(particles.max())
    return Evidence(name, most, nats, variance, ess, k_hat, particles.long())
