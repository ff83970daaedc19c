"""`evidence compare`: several guides on one model, with ELBO, evidence and error bars."""

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from evidence.experiments.commands.annealing import remove_snapshots_of
from evidence.experiments.commands.bracket import bracket_table, is_bracket_of
from evidence.experiments.commands.evaluate import (
    bracket_run,
    check_options,
    chosen_data,
    evaluate_run,
    expect_evidence,
    settings,
)
from evidence.experiments.commands.marginal import marginal
from evidence.experiments.commands.reference import NAME, PICTURE, compared, in_brief
from evidence.experiments.commands.train import train_run
from evidence.experiments.config import (
    Compare,
    Estimation,
    Evaluate,
    Experiment,
    Marginal,
    Reading,
    Reference,
    Train,
)
from evidence.experiments.reports import plots
from evidence.experiments.reports.fits import over_fits, summary
from evidence.experiments.reports.pictures import draw_comparison, draw_planes
from evidence.experiments.reports.pictures_joint import draw_joint
from evidence.experiments.reports.reference import reference_table
from evidence.experiments.reports.report import table
from evidence.experiments.reports.verdicts import comparisons, to_json, verdict_table
from evidence.experiments.setup.assembly import Assembly, assemble, run_name, say_unused, with_guide
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.durations import fit_seconds, told
from evidence.experiments.setup.labels import folder_name
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage import per_datum
from evidence.experiments.storage.records import Row
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import History


def compare(config: Compare) -> None:
    """Train and evaluate every guide, then write and print the table and draw the pictures.

    Every stage that is done already is not done again.
    """
    if config.models:
        marginal(_of_models(config))
        return
    if len(set(config.guides)) < len(config.guides) or not config.guides:
        raise ValueError(f"expected one or more different --guides, got {' '.join(config.guides)}")
    check_options(config)
    pairs = _expect_guides(config)
    folder = RunFolder(config.out or run_name("compare", config.model, config.data))
    with folder.opened(config, resume=True):
        _announce(config, folder.path, pairs)
        rows = [row for fit in range(config.seeds) for row in _fit(config, fit, folder.path)]
        found, joined = comparisons(rows), over_fits(rows)
        text = "\n\n".join(
            [table(joined)]
            + ([bracket_table(_by_seed(rows))] if config.estimator == "bdmc" else [])
            + ([verdict_table(found)] if found else [])
        )
        print(text, flush=True)
        judged = {"summary": summary(joined), "comparisons": to_json(found)}
        folder.write_results("compare", rows, **judged)
        folder.write_text("table.md", text + "\n")
        first = f", seed {config.seed}" if config.seeds > 1 else ""
        histories = {row.label + first: History.from_rows(row.history) for row in joined}
        draw_comparison(folder.path, joined, found, histories)
        _draw_planes(config, joined, folder.path)
        if (beside := _draw_posteriors(config, joined, folder)) is not None:
            folder.write_results("compare", rows, **judged, reference=beside)
    print(f"\nwrote {folder.path}")


def _of_models(config: Compare) -> Marginal:
    """The comparison of models, without guides."""
    wanted = Marginal.target_se if config.target_se is None else config.target_se
    return Marginal(
        models=config.models,
        data=config.data,
        seed=config.seed,
        data_root=config.data_root,
        out=config.out,
        target_se=wanted,
    )


def _expect_guides(config: Compare) -> dict[str, Assembly]:
    """Build every pair once: a mistake in the last guide shows before the first is trained.

    Raises:
        ValueError: a guide that does not serve the model, or estimates of two kinds.
    """
    first = assemble(_train_config(config, config.guides[0], ""))
    pairs = {guide: with_guide(first, guide) for guide in config.guides}
    units: dict[str, str] = {}
    for guide, pair in pairs.items():
        units.setdefault(pair.unit, guide)
        expect_evidence(pair.model, pair.guide, pair.few)
        chosen_data(pair, config.num_data if config.estimator != "bdmc" else None)
    if len(units) > 1:
        raise ValueError(
            f"{units['datum']} has an estimate for each datum and {units['data set']} one for the "
            "data set, which no table can hold together: compare guides of one kind"
        )
    say_unused(first)
    return pairs


def _announce(config: Compare, path: Path, pairs: dict[str, Assembly]) -> None:
    """Say about how long it will take to train and evaluate what is not there yet."""
    left = [
        (number, guide)
        for number in range(config.seeds)
        for guide in pairs
        if _row_of(_place(config, number, path) / _folder_name(guide)) is None
    ]
    wanted = dict.fromkeys(guide for _, guide in left)
    found = fit_seconds({guide: pairs[guide] for guide in wanted}, config)
    if not left or found is None:
        return
    seconds = [found[guide] for _, guide in left]
    if config.decoder == "frozen":  # the first guide trains the model, once for each seed
        training, _ = next(iter(found.values()))
        seconds += [(training, (0.0, 0.0))] * len({number for number, _ in left})
    least, most = (sum(span[end] for spans in seconds for span in spans) for end in (0, 1))
    print(told(f"training and evaluating {len(left)} fits", (least, most)), flush=True)


def _place(config: Compare, number: int, path: Path) -> Path:
    """Where the fits of a seed lie: the first in the folder itself, as if it were alone."""
    return path / f"seed-{config.seed + number}" if number > 0 else path


def _fit(config: Compare, number: int, path: Path) -> list[Row]:
    """Every guide, with one seed."""
    path = _place(config, number, path)
    config = replace(config, seed=config.seed + number)
    frozen = _train_model(config, path) if config.decoder == "frozen" else None
    return [_run_guide(config, guide, path, frozen) for guide in config.guides]


def _by_seed(rows: list[Row]) -> list[Row]:
    """The rows with their seeds in their labels, if there are several."""
    if len({row.seed for row in rows}) == 1:
        return rows
    return [replace(row, label=f"{row.label}, seed {row.seed}") for row in rows]


def _train_model(config: Compare, path: Path) -> str:
    """Train the model that all guides share, with the first of them; returns its run folder."""
    out = str(path / "model")
    train_run(_train_config(config, config.guides[0], out))
    return out


def _run_guide(config: Compare, guide: str, path: Path, frozen: str | None) -> Row:
    out = path / _folder_name(guide)
    train_run(replace(_train_config(config, guide, str(out)), frozen_model=frozen), label=guide)
    return _evaluated(config, out)


def _reading(config: Compare) -> Reading:
    """Its classes are those on the command line: else it would have been refused as another run."""
    return Reading(data_root=config.data_root, device=config.device, trust=True)


def _evaluated(config: Compare, out: Path) -> Row:
    options = {field.name: getattr(config, field.name) for field in fields(Estimation)}
    wanted = Evaluate(run=str(out), **asdict(_reading(config)), **options)
    on_data = replace(wanted, estimator="ais") if config.estimator == "bdmc" else wanted
    row = _row_of(out)
    if row is None or row.evaluation != settings(on_data) or not per_datum.is_of(out, row):
        row = evaluate_run(on_data)
    if config.estimator == "bdmc" and not is_bracket_of(row, wanted):
        row = bracket_run(wanted)
    for details in (row.annealing, row.bracket):
        remove_snapshots_of(RunFolder(out), details)
    return row


def _row_of(out: Path) -> Row | None:
    document = RunFolder(out).read_results()
    return None if document is None else replace(document.rows[0], folder=str(out))


def _draw_planes(config: Compare, rows: list[Row], path: Path) -> None:
    """The posterior of a datum and every guide's, for a model in the plane."""
    if all(row.divergences is None for row in rows):
        return
    runs = {row.label: load_run(RunFolder(row.folder), _reading(config))[0] for row in rows}
    suites = {label: pair.of_the_suite for label, pair in runs.items()}
    pairs = {label: (*pair[:2], pair[2][:1]) for label, pair in suites.items() if pair}
    datum = None if config.data == "none" else f"datum 0 of the {rows[0].split} data"
    draw_planes(path, pairs, datum)


def _draw_posteriors(
    config: Compare, rows: list[Row], folder: RunFolder
) -> list[dict[str, Any]] | None:
    """Every guide's draws, over those of NUTS if these are asked for: then how far they are."""
    runs = [row.folder for row in rows]
    where = _reading(config)
    if config.reference:
        document, figure = compared(Reference(runs=runs, seed=config.seed, **asdict(where)))
        print(f"\n{reference_table(document)}\n\n{document['verdict']}", flush=True)
        plots.save_with(figure, PICTURE, folder, NAME, document)
        return in_brief(document)
    if rows[0].is_of_data_set:
        loaded = (load_run(RunFolder(run), where)[0] for run in runs)
        pairs = {row.label: pair for row, pair in zip(rows, loaded, strict=True)}
        plots.save(draw_joint(pairs, None, seed=config.seed), folder.path / "posterior.png")
    return None


def _train_config(config: Compare, guide: str, out: str) -> Train:
    shared = {field.name: getattr(config, field.name) for field in fields(Experiment)}
    return Train(**shared, guide=guide, out=out, resume=True)


def _folder_name(guide: str) -> str:
    spec = Spec.parse(guide)
    words = [spec.name, *(f"{name}-{value}" for name, value in spec.options.items())]
    return folder_name("-".join(words).translate({ord(c): "_" for c in " /\\:[](),'\""}))
