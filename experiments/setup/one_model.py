"""Trained runs by label, and whether they are of one and the same p(x, z)."""

from collections.abc import Sequence

import torch

from evidence.experiments.config import Reading
from evidence.experiments.setup import datasets
from evidence.experiments.setup.assembly import Assembly, expect_evidence
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage.runs import RunFolder

_PLAINLY = Reading()
_HOW = (
    "such as those of `evidence compare --decoder frozen`, or of a model without parameters on "
    "the same data"
)


def load_runs(runs: Sequence[str], how: Reading = _PLAINLY) -> dict[str, Assembly]:
    """The assemblies of runs that share one model and its evaluation data, by label.

    Labels are the guides' as they were given; runs of one guide have their folders added.

    Raises:
        ValueError: a run is no run, is named twice, has no density, or is of another model or of
            other data than the first.
    """
    if len({RunFolder(run).path.resolve() for run in runs}) < len(runs):
        raise ValueError(f"expected different runs, got {' '.join(runs)}")
    loaded = []
    for run in runs:
        folder = RunFolder(run)
        assembly, _ = load_run(folder, how)
        expect_evidence(assembly.model, assembly.guide, assembly.few)
        loaded.append((run_label(folder, assembly), assembly))
    for run, (_, assembly) in zip(runs[1:], loaded[1:], strict=True):
        _expect_shared(runs[0], loaded[0][1], run, assembly)
    labels = [label for label, _ in loaded]
    names = [
        label if labels.count(label) == 1 else f"{label} in {run}"
        for label, run in zip(labels, runs, strict=True)
    ]
    return dict(zip(names, (assembly for _, assembly in loaded), strict=True))


def run_label(folder: RunFolder, assembly: Assembly) -> str:
    """How a run calls its guide."""
    document = folder.read_results()
    if document is not None:
        return document.rows[0].label
    return Spec.parse(assembly.config.guide).name


def _expect_shared(first: str, ours: Assembly, other: str, theirs: Assembly) -> None:
    if datasets.digest(ours.x_test) != datasets.digest(theirs.x_test):
        raise ValueError(
            f"{first} and {other} have different evaluation data (another --data, --split, "
            f"--binarize or --data_seed): expected runs that share them, {_HOW}"
        )
    weights, their_weights = ours.model.state_dict(), theirs.model.state_dict()
    same = ours.config.model == theirs.config.model and all(
        torch.equal(tensor, their_weights[name]) for name, tensor in weights.items()
    )
    if not same:
        raise ValueError(
            f"{first} and {other} are of different models p(x, z): expected runs that share one, "
            f"{_HOW}"
        )
