"""How far annealing and importance weighting are off, on data simulated from the model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from evidence.experiments.commands.annealing import bracketed
from evidence.experiments.commands.estimates import weighted
from evidence.experiments.config import ANNEALING, Evaluate
from evidence.experiments.reports.report import Row, annealing_words, is_of_data_set, markdown
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.double import in_dtype
from evidence.experiments.setup.labels import shortened
from evidence.experiments.storage.numbers import json_number
from evidence.experiments.storage.runs import RunFolder

NUM_SIMULATED = 100


def bracket(assembly: Assembly, config: Evaluate, folder: RunFolder) -> tuple[dict[str, Any], Path]:
    """Bidirectional Monte Carlo on simulated data, and on the same data the guide's bounds.

    Returns:
        What was found, and where the snapshots of the annealing are.
    """
    size = num_simulated(assembly, config)
    assembly = in_dtype(assembly, config.dtype)
    found, details, place = bracketed(assembly, size, config, folder)
    document = {
        "lower": found.lower,
        "upper": found.upper,
        "gap": found.gap,
        "gap_se": json_number(found.gap_se),
        "unit": assembly.unit,
        "num_data": size,
        "dtype": config.dtype,
        **details,
    }
    assert isinstance(found.x, Tensor)  # what every model of the command line takes
    if assembly.model.knows_evidence:
        document["exact"] = assembly.model.log_evidence(found.x).mean().item()
    if not assembly.is_amortized:  # it knows other data only
        return document, place
    for record in weighted(assembly, found.x, config):
        below = found.log_px_upper - record.log_px
        document[record.estimator] = {
            "nats": record.mean,
            "reliable": record.not_reliable is None,
            "reason": record.not_reliable,
            "num_particles": record.num_particles,
            "gap": below.mean().item(),
            "gap_se": _standard_error(below),
        }
    return document, place


def num_simulated(pair: Assembly, config: Evaluate) -> int:
    """How many data to simulate: of data that share latents, a data set as large as theirs."""
    return len(pair.x_test) if pair.is_joint else config.num_data or NUM_SIMULATED


def is_bracket_of(row: Row, config: Evaluate) -> bool:
    """Whether a row's bracket is what these options ask for."""
    found = row["bracket"]
    size = row["num_train"] if is_of_data_set(row) else config.num_data or NUM_SIMULATED
    if found is None or found["num_data"] != size:
        return False
    if found.get("dtype") != config.dtype:
        return False
    return all(found[name] == getattr(config, name) for name in ANNEALING) and (
        "iw" not in found or found["iw"]["num_particles"] == config.num_particles
    )


def _standard_error(values: Tensor) -> float | None:
    """Of the mean of `[B]`; None for a single one."""
    return (values.std() / math.sqrt(len(values))).item() if len(values) > 1 else None


def bracket_table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows' brackets, under a line that says what its numbers are."""
    short = shortened(row["label"] for row in rows)
    lines = [_cells(short[row["label"]], row["bracket"]) for row in rows]
    return f"{_caption(rows[0]['bracket'])}\n\n{markdown(lines)}"


def _caption(found: dict[str, Any]) -> str:
    unit = "Nats, all data together" if found.get("unit") == "data set" else "Nats per datum"
    return (
        f"{found['num_data']} data simulated from the model; bidirectional Monte Carlo "
        f"{annealing_words(found)}. {unit}; both bounds hold in expectation. Of "
        "real data the gap proves nothing: there, AIS is a lower bound."
    )


def _cells(label: str, found: dict[str, Any]) -> dict[str, str]:
    cells = {"guide": label}
    for name, heading in (("elbo", "ELBO"), ("iw", "IW")):
        if name in found:
            count = f"-{found[name]['num_particles']}" if name == "iw" else ""
            doubt = "" if found[name]["reliable"] else "NOT RELIABLE "
            cells[f"{heading}{count}"] = f"{doubt}{found[name]['nats']:.3f}"
    cells["AIS lower bound"] = f"{found['lower']:.3f}"
    if "exact" in found:
        cells["exact"] = f"{found['exact']:.3f}"
    cells["BDMC upper bound"] = f"{found['upper']:.3f}"
    cells["BDMC gap"] = _plus_minus(found["gap"], found["gap_se"])
    if "iw" in found:
        cells["upper − IW"] = _plus_minus(found["iw"]["gap"], found["iw"]["gap_se"])
    cells["time"] = f"{found['seconds']:.0f} s"
    if found["peak_memory_mib"] is not None:
        cells["peak memory"] = f"{found['peak_memory_mib']:,.0f} MiB"
    return cells


def _plus_minus(value: float, se: float | None) -> str:
    return f"{value:.3f} ± {'?' if se is None else f'{se:.3f}'}"
