"""`evidence compare`: several guides on one model, with ELBO, evidence and error bars."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
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
from evidence.experiments.launching.base import AbstractLauncher, Task
from evidence.experiments.launching.choice import launched
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
    with launched(config) as launcher, folder.opened(config, resume=True):
        fits = _fits(config, folder.path)
        _announce(config, fits, pairs, launcher)
        rows = _run_fits(fits, launcher)
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
        launcher=config.launcher,
        jobs=config.jobs,
        ray_address=config.ray_address,
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


@dataclass(frozen=True)
class _Fit:
    """A guide to be fitted with one seed, which needs no other fit.

    Args:
        config: the comparison, with this seed alone.
        guide: which one.
        path: where the fits of this seed lie.
    """

    config: Compare
    guide: str
    path: Path

    @property
    def out(self) -> Path:
        """Its run folder."""
        return self.path / _folder_name(self.guide)

    @property
    def model(self) -> Path:
        """The run folder of the model that all guides of this seed share, if they do."""
        return self.path / "model"

    def task(self, call: Callable[["_Fit"], None], what: str) -> Task:
        """A call with this fit."""
        return Task(f"{what}, seed {self.config.seed}", call, (self,), self.config.device)


def _fits(config: Compare, path: Path) -> list[_Fit]:
    """Every guide with every seed; those of the first lie in the folder, as if it were alone."""
    return [
        _Fit(
            replace(config, seed=seed, seeds=1),
            guide,
            path / f"seed-{seed}" if seed > config.seed else path,
        )
        for seed in range(config.seed, config.seed + config.seeds)
        for guide in config.guides
    ]


def _announce(
    config: Compare, fits: list[_Fit], pairs: dict[str, Assembly], launcher: AbstractLauncher
) -> None:
    """Say about how long it will take to train and evaluate what is not there yet."""
    left = [fit for fit in fits if _row_of(fit.out) is None]
    wanted = dict.fromkeys(fit.guide for fit in left)
    found = fit_seconds({guide: pairs[guide] for guide in wanted}, config)
    if not left or found is None:
        return
    seconds = [found[fit.guide] for fit in left]
    if config.decoder == "frozen":  # the first guide trains the model, once for each seed
        training, _ = next(iter(found.values()))
        seconds += [(training, (0.0, 0.0))] * len({fit.config.seed for fit in left})
    least, most = (sum(span[end] for spans in seconds for span in spans) for end in (0, 1))
    at_once = min(launcher.width or 1, len(left))
    together = f", {at_once} at a time," if at_once > 1 else ""
    what = f"training and evaluating {len(left)} fits{together}"
    print(told(what, (least / at_once, most / at_once)), flush=True)


def _run_fits(fits: list[_Fit], launcher: AbstractLauncher) -> list[Row]:
    """Train and evaluate what is not there yet, wherever that is; returns what is there then.

    Raises:
        ValueError: a fit failed.
    """
    if fits[0].config.decoder == "frozen":
        firsts = {fit.path: fit for fit in reversed(fits)}
        models = [first.task(_train_model, "the model") for first in reversed(firsts.values())]
        list(launcher.run(models, unit="model", have_bars=True))
    tasks = [fit.task(_run_guide, fit.guide) for fit in fits]
    list(launcher.run(tasks, unit="fit", have_bars=True))
    return [row for fit in fits if (row := _row_of(fit.out)) is not None]


def _by_seed(rows: list[Row]) -> list[Row]:
    """The rows with their seeds in their labels, if there are several."""
    if len({row.seed for row in rows}) == 1:
        return rows
    return [replace(row, label=f"{row.label}, seed {row.seed}") for row in rows]


def _train_model(fit: _Fit) -> None:
    """Train the model that all guides share, with the first of them."""
    train_run(_train_config(fit.config, fit.guide, str(fit.model)))


def _run_guide(fit: _Fit) -> None:
    """Train and evaluate one guide."""
    wanted = _train_config(fit.config, fit.guide, str(fit.out))
    frozen = str(fit.model) if fit.config.decoder == "frozen" else None
    train_run(replace(wanted, frozen_model=frozen), label=fit.guide)
    _evaluate(fit.config, fit.out)


def _reading(config: Compare) -> Reading:
    """Its classes are those on the command line: else it would have been refused as another run."""
    return Reading(data_root=config.data_root, device=config.device, trust=True)


def _evaluate(config: Compare, out: Path) -> None:
    """Evaluate what was trained, unless it is done."""
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
