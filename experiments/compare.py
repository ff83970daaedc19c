"""`evidence compare`: several guides on one model, with ELBO, evidence and error bars."""

from dataclasses import fields, replace
from pathlib import Path

from experiments import per_datum
from experiments.annealing import remove_snapshots_of
from experiments.assembly import assemble, load_run, run_name
from experiments.bracket import bracket_table, is_bracket_of
from experiments.catalogue import Spec, build_guide
from experiments.config import Compare, Estimation, Evaluate, Experiment, Train
from experiments.evaluate import bracket_run, check_options, evaluate_run, expect_evidence, settings
from experiments.pictures import draw_comparison, draw_planes
from experiments.report import Row, table
from experiments.runs import RunFolder
from experiments.train import train_run
from experiments.verdicts import comparisons, to_json, verdict_table
from inference import History


def compare(config: Compare) -> None:
    """Train and evaluate every guide, then write and print the table and draw the pictures.

    Every stage that is done already is not done again.
    """
    if len(set(config.guides)) < len(config.guides) or not config.guides:
        raise ValueError(f"expected one or more different --guides, got {' '.join(config.guides)}")
    check_options(config)
    _expect_guides(config)
    folder = RunFolder(config.out or run_name("compare", config.model, config.data))
    with folder.opened(config, resume=True):
        frozen = _train_model(config, folder.path) if config.decoder == "frozen" else None
        rows = [_run_guide(config, guide, folder.path, frozen) for guide in config.guides]
        found = comparisons(rows)
        text = "\n\n".join(
            [table(rows)]
            + ([bracket_table(rows)] if config.estimator == "bdmc" else [])
            + ([verdict_table(found)] if found else [])
        )
        print(text, flush=True)
        folder.write_results("compare", rows, comparisons=to_json(found))
        folder.write_text("table.md", text + "\n")
        histories = {row["label"]: History.from_rows(row["history"]) for row in rows}
        draw_comparison(folder.path, rows, histories)
        _draw_planes(config, rows, folder.path)
    print(f"\nwrote {folder.path}")


def _expect_guides(config: Compare) -> None:
    """Build every pair once: a mistake in the last guide shows before the first is trained."""
    first = assemble(_train_config(config, config.guides[0], ""))
    x = first.x_test[:1]
    for guide in config.guides:
        expect_evidence(first.model, build_guide(Spec.parse(guide), first.model, x)[0].to(x), x)


def _train_model(config: Compare, path: Path) -> str:
    """Train the model that all guides share, with the first of them; returns its run folder."""
    out = str(path / "model")
    train_run(_train_config(config, config.guides[0], out))
    return out


def _run_guide(config: Compare, guide: str, path: Path, frozen: str | None) -> Row:
    out = path / _folder_name(guide)
    train_run(replace(_train_config(config, guide, str(out)), frozen_model=frozen), label=guide)
    return _evaluated(config, out)


def _evaluated(config: Compare, out: Path) -> Row:
    options = {field.name: getattr(config, field.name) for field in fields(Estimation)}
    # Its classes are those on the command line: else it would have been refused as another run.
    where = {"data_root": config.data_root, "device": config.device, "trust": True}
    wanted = Evaluate(run=str(out), **where, **options)
    on_data = replace(wanted, estimator="ais") if config.estimator == "bdmc" else wanted
    row = _row_of(out)
    if row is None or row["evaluation"] != settings(on_data) or not per_datum.is_of(out, row):
        row = evaluate_run(on_data)
    if config.estimator == "bdmc" and not is_bracket_of(row["bracket"], wanted):
        row = bracket_run(wanted)
    for details in (row["annealing"], row["bracket"]):
        remove_snapshots_of(RunFolder(out), details)
    return row


def _row_of(out: Path) -> Row | None:
    document = RunFolder(out).read_results()
    return None if document is None else document["rows"][0] | {"folder": str(out)}


def _draw_planes(config: Compare, rows: list[Row], path: Path) -> None:
    """The posterior of a datum and every guide's, for a model in the plane."""
    if all(row["divergences"] is None for row in rows):
        return
    options = {"data_root": config.data_root, "device": config.device, "trust": True}
    runs = {row["label"]: load_run(RunFolder(row["folder"]), **options)[0] for row in rows}
    draw_planes(path, {label: (a.model, a.guide, a.x_test[:1]) for label, a in runs.items()})


def _train_config(config: Compare, guide: str, out: str) -> Train:
    shared = {field.name: getattr(config, field.name) for field in fields(Experiment)}
    return Train(**shared, guide=guide, out=out, resume=True)


def _folder_name(guide: str) -> str:
    spec = Spec.parse(guide)
    words = [spec.name, *(f"{name}-{value}" for name, value in spec.options.items())]
    return "-".join(words).translate({ord(c): "_" for c in " /[](),'\""})
