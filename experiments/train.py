"""`evidence train`: fit a model and a guide."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments import checkpoints
from experiments.assembly import Assembly, assemble, load_snapshot, run_name
from experiments.catalogue import Spec, build_elbo
from experiments.config import Train
from experiments.optimizers import build_optimizer, build_scheduler
from experiments.pictures import draw_run
from experiments.report import Row, table, training_row
from experiments.runs import RunFolder
from guides import Unamortized
from inference import History, Snapshot, UntilFlat, fit
from inference.evaluation import no_training


def train(config: Train) -> None:
    """Train a pair into its run folder, draw its pictures and print its row."""
    row = train_run(config)
    print(table([row]))
    print(f"\nwrote {row['folder']}")


def train_run(config: Train, *, label: str | None = None) -> Row:
    """Train a pair, or go on with it; returns its row of results.json."""
    assembly = assemble(config)
    if isinstance(assembly.guide, Unamortized) and config.frozen_model is None:
        raise ValueError(
            f"{config.guide} has no encoder to train a model with: train the model with another "
            "guide and fit this one to it with --frozen_model RUN, or compare with --decoder frozen"
        )
    out = config.out or run_name(Spec.parse(config.model).name, config.guide, config.data)
    folder = RunFolder(out)
    with folder.opened(assembly.config, resume=config.resume):
        history = fit_assembly(assembly, folder)
        row = training_row(assembly, history, label=label or config.guide)
        row["folder"] = str(folder.path)
        if not _results_are_newer(folder, row):
            folder.write_results("train", [row])
        with no_training(assembly.model, assembly.guide):
            draw_run(folder.path, assembly, history)
    return row


def fit_assembly(assembly: Assembly, folder: RunFolder) -> History:
    """Run `fit` with checkpoints into the folder, from the newest one if there is any."""
    config = assembly.config
    context = {"config": asdict(config), **assembly.fingerprint()}

    def save(snapshot: Snapshot) -> None:
        checkpoints.save(folder.checkpoints, snapshot, context)

    with _tensorboard(folder.path if config.tensorboard else None) as writer:
        return fit(
            assembly.model,
            assembly.guide,
            assembly.x_train,
            num_epochs=config.num_epochs,
            until=UntilFlat(max_steps=config.max_steps),
            batch_size=config.batch_size,
            lr=config.lr,
            lr_decay=config.lr_decay,
            optimizer=build_optimizer(Spec.parse(config.optimizer), lr=config.lr),
            scheduler=config.scheduler and build_scheduler(Spec.parse(config.scheduler)),
            elbo=build_elbo(Spec.parse(config.elbo)),
            x_test=assembly.x_test,
            held_out=assembly.held_out,
            transform=assembly.transform,
            kl_warmup_epochs=config.kl_warmup_epochs,
            likelihood_warmup_epochs=config.likelihood_warmup_epochs,
            clip_norm=config.clip_norm,
            seed=config.seed,
            progress=sys.stderr.isatty(),
            writer=writer,
            resume_from=_snapshot_to_resume(assembly, folder) if config.resume else None,
            on_snapshot=save,
            snapshot_every=config.checkpoint_every,
        )


def _snapshot_to_resume(assembly: Assembly, folder: RunFolder) -> Snapshot | None:
    """The newest snapshot of the run; of a frozen model it must hold the very weights.

    Raises:
        ValueError: the model that the guide was fitted to has been trained on since.
    """
    snapshot = load_snapshot(folder, assembly.dataset)
    if snapshot is not None and assembly.config.frozen_model is not None:
        for name, tensor in assembly.model.state_dict().items():
            if not torch.equal(snapshot.tensors[f"model.{name}"], tensor.cpu()):
                raise ValueError(
                    f"{folder.path} was fitted to other weights than those of "
                    f"{assembly.config.frozen_model}: choose another --out"
                )
    return snapshot


def _results_are_newer(folder: RunFolder, row: Row) -> bool:
    """Whether the folder already holds an evaluation of just this training."""
    document = folder.read_results()
    return document is not None and document["rows"][0]["num_epochs"] == row["num_epochs"]


@contextmanager
def _tensorboard(folder: Path | None) -> Iterator[Any]:
    if folder is None:
        yield None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 (optional)
    except ImportError:
        raise ValueError(
            "--tensorboard needs the package tensorboard: pip install 'evidence[tensorboard]'"
        ) from None
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        yield writer
