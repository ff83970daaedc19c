"""How far annealing and importance weighting are off, on data simulated from the model."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from evidence.experiments.commands.annealing import bracketed
from evidence.experiments.commands.estimates import exact, weighted
from evidence.experiments.config import Evaluate
from evidence.experiments.reports.report import markdown, plus_minus
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.double import in_dtype
from evidence.experiments.setup.estimators import num_chains
from evidence.experiments.setup.labels import shortened
from evidence.experiments.storage.numbers import finite
from evidence.experiments.storage.records import Bound, BracketRecord, Row
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import Bracket, Evidence
from evidence.inference.estimation.standard_error import standard_error

NUM_SIMULATED = 100


def bracket(pair: Assembly, config: Evaluate, folder: RunFolder) -> tuple[BracketRecord, Path]:
    """Bidirectional Monte Carlo on simulated data, and on the same data the guide's bounds.

    Returns:
        What was found, and where the snapshots of the annealing are.
    """
    size = num_simulated(pair, config)
    pair = in_dtype(pair, config.dtype)
    found, details, place = bracketed(pair, size, config, folder)
    known = exact(pair, found.x)
    bounds = {}
    if pair.is_amortized:  # others know their own data only
        records = weighted(pair, found.x, config)
        bounds = {record.estimator: _bound(record, found) for record in records}
    record = BracketRecord(
        **asdict(details),
        lower=found.lower,
        upper=found.upper,
        gap=found.gap,
        gap_se=found.gap_se,
        unit=pair.unit,
        num_data=size,
        dtype=config.dtype,
        exact=None if known is None else known.mean,
        **bounds,
    )
    return record, place


def _bound(record: Evidence, found: Bracket) -> Bound:
    below = found.log_px_upper - record.log_px
    return Bound(
        nats=record.mean,
        reliable=record.not_reliable is None,
        reason=record.not_reliable,
        num_particles=record.num_particles,
        gap=below.mean().item(),
        gap_se=finite(standard_error(below)),
    )


def num_simulated(pair: Assembly, config: Evaluate) -> int:
    """How many data to simulate: of data that share latents, a data set as large as theirs."""
    return len(pair.x_test) if pair.is_joint else config.num_data or NUM_SIMULATED


def is_bracket_of(row: Row, config: Evaluate) -> bool:
    """Whether a row's bracket is what these options ask for."""
    found = row.bracket
    size = row.num_train if row.is_of_data_set else config.num_data or NUM_SIMULATED
    if found is None or (found.num_data, found.dtype) != (size, config.dtype):
        return False
    same_weights = found.iw is None or found.iw.num_particles == config.num_particles
    chains = num_chains(config, is_joint=row.is_of_data_set)
    return found.is_like(replace(config, num_chains=chains)) and same_weights


def bracket_table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows' brackets, under a line that says what its numbers are."""
    short = shortened(row.label for row in rows)
    found = [(short[row.label], row.bracket) for row in rows if row.bracket is not None]
    lines = [_cells(label, record) for label, record in found]
    return f"{_caption(found[0][1])}\n\n{markdown(lines)}"


def _caption(found: BracketRecord) -> str:
    unit = "Nats, all data together" if found.unit == "data set" else "Nats per datum"
    return (
        f"{found.num_data} data simulated from the model; bidirectional Monte Carlo {found.words}. "
        f"{unit}; both bounds hold in expectation. Of real data the gap proves nothing: there, AIS "
        "is a lower bound."
    )


def _cells(label: str, found: BracketRecord) -> dict[str, str]:
    cells = {"guide": label}
    for heading, bound in (("ELBO", found.elbo), ("IW", found.iw)):
        if bound is not None:
            count = f"-{bound.num_particles}" if heading == "IW" else ""
            doubt = "" if bound.reliable else "NOT RELIABLE "
            cells[f"{heading}{count}"] = f"{doubt}{bound.nats:.3f}"
    cells["AIS lower bound"] = f"{found.lower:.3f}"
    if found.exact is not None:
        cells["exact"] = f"{found.exact:.3f}"
    cells["BDMC upper bound"] = f"{found.upper:.3f}"
    cells["BDMC gap"] = plus_minus(found.gap, found.gap_se)
    if found.iw is not None:
        cells["upper − IW"] = plus_minus(found.iw.gap, found.iw.gap_se)
    cells["time"] = f"{found.seconds:.0f} s"
    if found.peak_memory_mib is not None:
        cells["peak memory"] = f"{found.peak_memory_mib:,.0f} MiB"
    return cells
