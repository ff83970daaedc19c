"""`evidence bench`: estimators on problems whose evidence is known."""

from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evidence.experiments.config import Bench
from evidence.experiments.launching.base import Task
from evidence.experiments.launching.choice import launched
from evidence.experiments.own.code import OwnCode, own_code
from evidence.experiments.reports import plots
from evidence.experiments.reports.bench import bench_table, claimed_against_true
from evidence.experiments.setup.trials import (
    BUILT_IN,
    Run,
    Scorecard,
    Trial,
    estimator_named,
    trial,
    weighted_by,
)
from evidence.experiments.storage.numbers import finite
from evidence.experiments.storage.runs import RunFolder
from evidence.experiments.storage.schema import (
    MAX_DOCUMENT_BYTES,
    expect_type,
    parse_signed,
    read_bytes,
    typed,
)
from evidence.models.networks import expect_choice
from evidence.models.problems import PROBLEMS

_NAME = "bench.json"
Cards = dict[tuple[str, str], Scorecard]


def bench(config: Bench) -> None:
    """Run what is left of the trials, and write and print what they say."""
    problems = config.problems or list(PROBLEMS)
    for name in problems:
        expect_choice("problem", name, list(PROBLEMS))
    with own_code() as code:
        names = list(_runs(config, code))
    folder = RunFolder(config.out)
    folder.path.mkdir(parents=True, exist_ok=True)
    with launched(config) as launcher, folder.locked():
        done = _read(folder.path / _NAME)
        asked = [
            (problem, name, seed)
            for problem in problems
            for name in names
            for seed in range(config.seed, config.seed + config.seeds)
        ]
        order = [*done, *(key for key in asked if key not in done)]
        tasks = [_task(config, *key) for key in asked if key not in done]
        for _, found in launcher.run(tasks, unit="trial"):
            done[found.problem, found.estimator, found.seed] = found
            _write(folder, [done[key] for key in order if key in done])
        wanted = {(problem, name) for problem in problems for name in names}
        cards = _cards([done[key] for key in order if key[:2] in wanted])
        text = bench_table(cards)
        print(text, flush=True)
        folder.write_text("bench.md", text + "\n")
        plots.save(claimed_against_true(cards), folder.path / "bench.png")
    print(f"\nwrote {folder.path}")


def _runs(config: Bench, code: OwnCode) -> dict[str, Run]:
    """By name, those of the guides with the guide's."""
    names = config.estimators or ([] if config.guides else list(BUILT_IN))
    own = {name: estimator_named(name, code) for name in names}
    return own | {f"iw, {guide}": weighted_by(guide, code) for guide in config.guides}


def _task(config: Bench, problem: str, name: str, seed: int) -> Task:
    return Task(f"{name} on {problem}, seed {seed}", _tried, (config, problem, name, seed))


def _tried(config: Bench, problem: str, name: str, seed: int) -> Trial:
    """A trial, with the user's files run for it alone."""
    with own_code() as code:
        return trial(PROBLEMS[problem], name, _runs(config, code)[name], seed)


def _cards(trials: list[Trial]) -> Cards:
    grouped = defaultdict(list)
    for one in trials:
        grouped[one.problem, one.estimator].append(one)
    return {key: Scorecard(found) for key, found in grouped.items()}


def _write(folder: RunFolder, trials: list[Trial]) -> None:
    rows = [finite(asdict(one)) for one in trials]
    folder.write_document(_NAME, {"version": 1, "command": "bench", "trials": rows})


def _read(path: Path) -> dict[tuple[str, str, int], Trial]:
    """The trials that are done.

    Raises:
        ValueError: the file is damaged, or not what was written.
    """
    try:
        document = parse_signed(read_bytes(path, MAX_DOCUMENT_BYTES))
        rows = expect_type("trials", document.get("trials"), list[dict[str, Any]])
        found = [typed(Trial, row) for row in rows]
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path} cannot be gone on with: {error}: move it away") from None
    return {(one.problem, one.estimator, one.seed): one for one in found}
