"""`evidence evaluate`: the ELBO and the evidence of a trained run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evidence.experiments.commands.annealing import remove_snapshots
from evidence.experiments.commands.bracket import bracket, bracket_table, num_simulated
from evidence.experiments.commands.estimates import estimate
from evidence.experiments.config import ANNEALING, OPTIONS_OF, Estimation, Evaluate
from evidence.experiments.reports.plane import mean_divergences
from evidence.experiments.reports.report import estimated, table, training_row
from evidence.experiments.setup.assembly import Assembly, expect_evidence
from evidence.experiments.setup.durations import evaluation_seconds, told
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage import per_datum
from evidence.experiments.storage.records import Count, PlaneDivergences, Row
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import History, Snapshot, latent_diagnostics
from evidence.inference.programs.data import Batch

_DIAGNOSED = 2000  # data at the most, whose draws are held together
_DRAWS = 100  # per datum, to diagnose the latents


@dataclass(frozen=True)
class _Found:
    """An evaluation that is still to be written.

    Args:
        row: of results.json.
        text: what is printed.
        csv: per_datum.csv, if there is one.
        snapshots: of the annealing, of no use once the row is written.
    """

    row: Row
    text: str
    csv: str | None
    snapshots: Path | None


def evaluate(config: Evaluate) -> None:
    """Estimate, print the table, then write results.json."""
    folder = RunFolder(config.run)
    find = _bracket if config.estimator == "bdmc" else _run
    with folder.locked():
        found = find(config, folder, announced=True)
        print(found.text, flush=True)
        _write(folder, found)
    print(f"\nwrote {config.run}/results.json")


def evaluate_run(config: Evaluate) -> Row:
    """Estimate the evidence of a run on its evaluation data; returns its row of results.json."""
    return _kept(config, _run)


def bracket_run(config: Evaluate) -> Row:
    """Bracket the evidence of data simulated from a run's model; returns its row."""
    return _kept(config, _bracket)


def _kept(config: Evaluate, find: Callable[..., _Found]) -> Row:
    folder = RunFolder(config.run)
    with folder.locked():
        found = find(config, folder, announced=False)
        try:
            _write(folder, found)
        except OSError:
            print(found.text, flush=True)  # what was measured is not lost
            raise
    return found.row


def _write(folder: RunFolder, found: _Found) -> None:
    """What goes with the row, the row, and only then what the row makes superfluous."""
    if found.csv is not None:
        folder.write_text(per_datum.NAME, found.csv)
    folder.write_results("evaluate", [found.row])
    if found.snapshots is not None:
        remove_snapshots(found.snapshots)


def _run(config: Evaluate, folder: RunFolder, *, announced: bool) -> _Found:
    assembly, snapshot = _loaded(config, folder)
    rows, x = chosen_data(assembly, config.num_data)
    before = row_so_far(folder, assembly, snapshot)
    if announced:
        _announce(assembly, x, config)
    records, details, snapshots = estimate(assembly, x, config, folder)
    csv, latents = per_datum.to_csv(rows, records), _latents(assembly, x)
    found = {
        **estimated(records, assembly),
        "active_units": latents and Count(count=latents["active"], of=latents["of"]),
        "latents": latents,
        "divergences": _divergences(assembly, x),
        "evaluation": settings(config),
        "annealing": details,
        "per_datum_sha256": per_datum.digest(csv),
    }
    row = before.with_evaluation({"command": "evaluate", **settings(config)}, found)
    warning = f"\n\n{latents['warning']}" if latents is not None and latents["warning"] else ""
    return _Found(row, table([row]) + warning, csv, snapshots)


def _bracket(config: Evaluate, folder: RunFolder, *, announced: bool) -> _Found:
    assembly, snapshot = _loaded(config, folder)
    before = row_so_far(folder, assembly, snapshot)
    if announced:
        rows = torch.arange(num_simulated(assembly, config)) % len(assembly.x_test)
        _announce(assembly, assembly.x_test[rows], config)
    found, snapshots = bracket(assembly, config, folder)
    options = {name: getattr(config, name) for name in ("num_particles", "dtype", *ANNEALING)}
    made_by = {"command": "evaluate", "estimator": "bdmc", "num_data": found.num_data, **options}
    row = before.with_evaluation(made_by, {"bracket": found})
    return _Found(row, bracket_table([row]), None, snapshots)


def _announce(assembly: Assembly, x: Batch, config: Evaluate) -> None:
    """Say about how long it will take."""
    pair = assembly.model, assembly.guide
    seconds = evaluation_seconds(*pair, x, config, is_joint=assembly.is_joint)
    print(told(f"evaluating {len(x):,} data", seconds), flush=True)


def _loaded(config: Evaluate, folder: RunFolder) -> tuple[Assembly, Snapshot]:
    """The run, once the options and the pair are known to be fit for it.

    Raises:
        ValueError: they are not.
    """
    check_options(config)
    assembly, snapshot = load_run(folder, config)
    expect_evidence(assembly.model, assembly.guide, assembly.few)
    return assembly, snapshot


def check_options(config: Estimation) -> None:
    """Check that the options of an estimation go together.

    Raises:
        ValueError: they do not.
    """
    if config.target_se is not None and config.estimator == "elbo":
        raise ValueError(
            "--target_se adds importance weights, and --estimator elbo has none: leave out one"
        )
    if config.defensive and (config.target_se is not None or config.estimator in ("elbo", "bdmc")):
        other = "--target_se" if config.target_se is not None else f"--estimator {config.estimator}"
        raise ValueError(
            f"--defensive {config.defensive:g} is for a fixed number of importance weights, not "
            f"for {other}: leave out one"
        )


def settings(config: Evaluate) -> dict[str, Any]:
    """What makes one evaluation of a run another than the next."""
    names = ["estimator", "num_particles", "num_data", "dtype"]
    if config.target_se is not None:
        names += ["target_se", "max_particles"]
    if config.defensive:
        names += ["defensive"]
    names += OPTIONS_OF.get(config.estimator, ())
    return {name: getattr(config, name) for name in names}


def chosen_rows(size: int, num_data: int | None, seed: int) -> Tensor:
    """So many of `size` rows, drawn without replacement, in order (MNIST's come easy first)."""
    if num_data is None or num_data >= size:
        return torch.arange(size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[:num_data].sort().values


def chosen_data(pair: Assembly, num_data: int | None) -> tuple[Tensor, Batch]:
    """So many of a run's evaluation data, and which rows they are.

    Raises:
        ValueError: a part of data that share latents is another data set.
    """
    x, size = pair.x_test, len(pair.x_test)
    if pair.is_joint and (num_data or size) < size:
        raise ValueError(
            f"{pair.config.model} has latents that its {size} data share: {num_data} of them are "
            "another data set with another evidence: leave out --num_data"
        )
    rows = chosen_rows(size, num_data, pair.config.data_seed)
    return rows, (x if len(rows) == size else x[rows.to(x.device)])


def _divergences(assembly: Assembly, x: Batch) -> PlaneDivergences | None:
    suite = assembly.of_the_suite
    return mean_divergences(*suite[:2], x) if suite and isinstance(x, Tensor) else None


def _latents(assembly: Assembly, x: Batch) -> dict[str, Any] | None:
    """What the latents do, as JSON; None if all data are the same, or have no latent each."""
    if assembly.is_joint or not isinstance(x, Tensor) or (x == x[0]).all():
        return None
    found = latent_diagnostics(
        assembly.model,
        assembly.guide,
        x[:_DIAGNOSED],
        num_draws=_DRAWS,
        seed=assembly.config.seed,
    )
    return {
        "active": found.num_active,
        "of": found.num_latents,
        "kl": {name: kl.tolist() for name, kl in found.kl.items()},
        "kl_se": {name: se.tolist() for name, se in found.kl_se.items()},
        "ks": {name: distance.tolist() for name, distance in found.ks.items()},
        "warning": found.collapse_warning,
    }


@torch.no_grad()
def row_so_far(folder: RunFolder, assembly: Assembly, snapshot: Snapshot) -> Row:
    """The row of the training, with what was found out about these weights before."""
    before = folder.read_results()
    history = History.from_rows(snapshot.meta["position"]["history"])
    row = training_row(assembly, history, folder.path, label=assembly.config.guide)
    return row.remembering(before.rows[0] if before else None)
