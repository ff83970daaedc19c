"""`evidence train`: fit a model and a guide."""

import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from evidence.experiments.config import Train
from evidence.experiments.launching.torchrun import ranks_of_torchrun
from evidence.experiments.reports.pictures import draw_run
from evidence.experiments.reports.report import table, training_row
from evidence.experiments.setup import catalogue
from evidence.experiments.setup.assembly import Assembly, assemble, run_name, say_unused
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.loading import changed_sources, load_snapshot
from evidence.experiments.setup.optimizers import build_optimizer, build_scheduler
from evidence.experiments.setup.trained import expect_config_of
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.records import Row
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import (
    History,
    NotConvergedWarning,
    RankLostError,
    Ranks,
    Snapshot,
    fit,
)
from evidence.inference.programs.evaluation import no_training
from evidence.inference.training.ranks import ALONE

Announce = Callable[[Assembly, Row], None]


def train(config: Train) -> None:
    """Train a pair into its run folder, draw its pictures and print its row."""
    with ranks_of_torchrun(config.device) as ranks:
        if not ranks.is_first:
            _follow(config, ranks)
            return
        row = train_run(config, announce=_announce, ranks=ranks)
    print(f"\nwrote {row.folder}")


def _follow(config: Train, ranks: Ranks) -> None:
    """Take the steps of the first process along with it; that one alone writes the folder."""
    try:
        ranks.wait()  # until the folder is open, and the options are known to be good
    except RankLostError:
        sys.exit(2)  # the first says why
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first tells these, too
        fit_assembly(assemble(config), _folder(config), ranks=ranks)


def _announce(assembly: Assembly, row: Row) -> None:
    say_unused(assembly)
    print(table([row]), flush=True)


def train_run(
    config: Train,
    *,
    label: str | None = None,
    announce: Announce | None = None,
    ranks: Ranks = ALONE,
) -> Row:
    """Train a pair, or go on with it.

    Args:
        config: the options.
        label: how tables call the guide, if not by its name.
        announce: called with the pair and its row before anything of it is written.
        ranks: the processes that train it together, of which this is the first.

    Returns:
        The row of results.json.

    Raises:
        ValueError: options that do not fit, or a folder that holds something else.
    """
    assembly = assemble(config)
    is_of_these_data = not (assembly.is_amortized or assembly.is_joint)
    learns = any(parameter.requires_grad for parameter in assembly.model.parameters())
    if is_of_these_data and learns:
        raise ValueError(
            f"{config.guide} has no encoder to train a model with: train the model with another "
            "guide and fit this one to it with --frozen_model RUN, or compare with --decoder frozen"
        )
    folder = _folder(config)
    with folder.opened(assembly.config, resume=config.resume):
        before = folder.read_results()  # what is wrong with it shows before anything is trained
        ranks.wait()
        history = fit_assembly(assembly, folder, ranks=ranks)
        folder.set_aside()
        row = training_row(assembly, history, folder.path, label=label or config.guide)
        if announce is not None:
            announce(assembly, row)
        if before is None or not before.rows[0].is_of_weights(row):
            folder.write_results("train", [row])
        with no_training(assembly.model, assembly.guide):
            draw_run(folder.path, assembly, history)
    return row


def _folder(config: Train) -> RunFolder:
    default = run_name(Spec.parse(config.model).name, config.guide, config.data)
    return RunFolder(config.out or default)


def fit_assembly(assembly: Assembly, folder: RunFolder, *, ranks: Ranks = ALONE) -> History:
    """Run `fit` with checkpoints into the folder, from the newest one if there is any."""
    config = assembly.config
    context = {"config": asdict(config), **assembly.fingerprint()}
    has_log = config.tensorboard and ranks.is_first
    is_first = True

    def save(snapshot: Snapshot) -> None:
        nonlocal is_first
        checkpoints.save(folder.checkpoints, snapshot, context)
        if is_first:  # it makes what was found of earlier weights a thing of the past
            folder.set_aside()
        is_first = False

    with (
        _tensorboard(folder.path if has_log else None) as writer,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", NotConvergedWarning)  # every table says it
        return fit(
            assembly.model,
            assembly.guide,
            assembly.x_train,
            num_epochs=config.num_epochs,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            lr=config.lr,
            lr_decay=config.lr_decay,
            optimizer=build_optimizer(Spec.parse(config.optimizer), lr=config.lr),
            scheduler=build_scheduler(Spec.parse(config.scheduler)) if config.scheduler else None,
            objective=catalogue.objective_of(config.objective),
            compile={"on": True, "off": False}.get(config.compile, "auto"),
            x_test=None if assembly.is_joint else assembly.x_test,
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
            ranks=ranks,
        )


def _snapshot_to_resume(assembly: Assembly, folder: RunFolder) -> Snapshot | None:
    """The newest snapshot of the run; of a frozen model it must hold the very weights.

    Raises:
        ValueError: the model that the guide was fitted to has been trained on since.
    """
    newest = checkpoints.newest(folder.checkpoints)
    if newest is None:
        return None
    expect_config_of(newest, assembly.config)
    if changed := changed_sources(newest, assembly):
        raise ValueError(
            f"{', '.join(changed)} has changed since {folder.path} was trained: choose another "
            "--out"
        )
    snapshot = load_snapshot(newest, assembly)
    if assembly.config.frozen_model is not None:
        for name, tensor in assembly.model.state_dict().items():
            if not torch.equal(snapshot.tensors[f"model.{name}"], tensor.cpu()):
                raise ValueError(
                    f"{folder.path} was fitted to other weights than those of "
                    f"{assembly.config.frozen_model}: choose another --out"
                )
    return snapshot


@contextmanager
def _tensorboard(folder: Path | None) -> Generator[Any]:
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
