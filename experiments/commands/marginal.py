"""`evidence marginal`: marginal likelihoods of models, Bayes factors, prior sensitivity."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evidence.experiments.config import Marginal, Train
from evidence.experiments.launching.base import Task
from evidence.experiments.launching.choice import launched
from evidence.experiments.own.code import own_code
from evidence.experiments.reports import plots
from evidence.experiments.reports.marginal import (
    Found,
    factors_text,
    marginal_table,
    picture,
    scale_table,
    to_json,
)
from evidence.experiments.setup.assembly import run_name
from evidence.experiments.setup.model_and_data import load_with_model
from evidence.experiments.setup.prior_scales import PriorScales
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import ScaledPrior, marginal_likelihood
from evidence.inference.programs.data import Batch


@dataclass(frozen=True)
class _Loaded:
    """A model and the data that it takes."""

    name: str
    model: Callable[..., Any]
    data: Batch
    sha256: str


@dataclass(frozen=True)
class _Question:
    """Which marginal likelihood is asked for: of a model, or of it with one prior stretched."""

    name: str
    site: str | None = None
    factor: float = 1.0

    def __str__(self) -> str:
        stretched = "" if self.site is None else f", {self.site} × {self.factor:g}"
        return f"{self.name}{stretched}"


def marginal(config: Marginal) -> None:
    """Estimate, print the tables, then write them and the picture."""
    if not config.models or len(set(config.models)) < len(config.models):
        raise ValueError(
            f"expected one or more different --models, got {' '.join(config.models) or 'none'}"
        )
    scales = [PriorScales.parse(text) for text in config.prior_scale]
    folder = _folder(config)
    loaded = [_load(config, name) for name in config.models]
    _expect_same_data(loaded)
    met = {scale: _with_site(scale, loaded) for scale in scales}
    found, stretched = _estimates(config, loaded, met)
    size = len(loaded[0].data)
    texts = [marginal_table(found, config.data, size)]
    if len(found) > 1:
        texts.append(factors_text(found))
    texts += [scale_table(site, grid) for site, grid in stretched.items()]
    text = "\n\n".join(texts)
    print(text, flush=True)
    rows = to_json(found, data=config.data, num_data=size, sha256=loaded[0].sha256, config=config)
    grids = {
        site: [
            {"factor": factor, "log_ml": {name: [one.log_ml, one.se] for name, one in at.items()}}
            for factor, at in grid.items()
        ]
        for site, grid in stretched.items()
    }
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.locked():
        folder.write_results("marginal", rows, prior_scales=grids)
        folder.write_text("table.md", text + "\n")
        plots.save(picture(found, stretched), folder.path / "marginal.png")
    print(f"\nwrote {folder.path}")


def _folder(config: Marginal) -> RunFolder:
    """Where to write, before anything is estimated.

    Raises:
        ValueError: it is a file, or a folder of something else.
    """
    path = Path(config.out or run_name("marginal", config.data))
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path} is a file: expected a folder")
    if (path / "config.yaml").exists():
        raise ValueError(f"{path} is the folder of a run: choose another --out")
    return RunFolder(path)


def _load(config: Marginal, name: str) -> _Loaded:
    """A model, without parameters to train, on all of the data."""
    wanted = Train(model=name, data=config.data, data_root=config.data_root, seed=config.seed,
                   split="all")  # fmt: skip
    with own_code() as code:
        dataset, model, _ = load_with_model(wanted, code)
    if any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"{name} has parameters that are to be trained, and no marginal likelihood until they "
            "are: use `evidence train` and `evidence evaluate`, or give them priors"
        )
    return _Loaded(name, model, dataset.x_test, dataset.sha256)


def _expect_same_data(loaded: list[_Loaded]) -> None:
    sizes = {one.name: len(one.data) for one in loaded}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"expected models of the same data, got of {sizes}")


def _estimates(
    config: Marginal, loaded: Sequence[_Loaded], met: Mapping[PriorScales, Sequence[_Loaded]]
) -> tuple[dict[str, Found], dict[str, dict[float, dict[str, Found]]]]:
    """All models as they are and, by site and factor, with a prior stretched.

    Args:
        config: the options.
        loaded: the models.
        met: those that have the site of a prior; without it, a model stays as it is.
    """
    questions = [_Question(one.name) for one in loaded]
    questions += [
        _Question(one.name, scale.site, factor)
        for scale, with_site in met.items()
        for factor in scale.factors
        if factor != 1
        for one in with_site
    ]
    tasks = [Task(str(one), _answer, (config, one)) for one in dict.fromkeys(questions)]
    with launched(config) as launcher:
        done = launcher.run(tasks, unit="estimate", have_bars=True)
        answers = {task.arguments[1]: found for task, found in done}
    found = {one.name: answers[_Question(one.name)] for one in loaded}

    def stretched(site: str, factor: float) -> dict[str, Found]:
        return {n: answers.get(_Question(n, site, factor), one) for n, one in found.items()}

    grids = {scale.site: {f: stretched(scale.site, f) for f in scale.factors} for scale in met}
    return found, grids


def _answer(config: Marginal, question: _Question) -> Found:
    one = _load(config, question.name)
    model = one.model
    if question.site is not None:
        model = ScaledPrior(question.site, question.factor)(model)
    return marginal_likelihood(
        model,
        one.data,
        target_se=config.target_se,
        max_rounds=config.max_rounds,
        nested=config.nested,
        seed=config.seed,
        progress=sys.stderr.isatty(),
    )


def _with_site(scales: PriorScales, loaded: list[_Loaded]) -> list[_Loaded]:
    """The models that have the site, before anything is estimated.

    Raises:
        ValueError: none has it, or its prior has no scale.
    """
    probe = max(scales.factors, key=lambda factor: abs(factor - 1))
    found = [one for one in loaded if ScaledPrior(scales.site, probe).meets(one.model, one.data)]
    if not found:
        raise ValueError(
            f"no model has a latent {scales.site!r} (--prior_scale): expected the name of a site"
        )
    return found
