"""What a checkpoint was made by and of, before its tensors are looked at."""

from dataclasses import asdict
from pathlib import Path

from torch import nn

from evidence.experiments.config import Train, differences
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.datasets import Dataset
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.runs import RunFolder
from evidence.experiments.storage.schema import typed
from evidence.inference import Snapshot, restore_tensors


def read_train_config(folder: RunFolder) -> Train:
    """The configuration of a training run.

    Raises:
        ValueError: the folder is of another command or version.
    """
    config = folder.read_config()
    if not isinstance(config, Train):
        raise ValueError(f"{folder.path} is a comparison: name the folder of one of its guides")
    return config


def expect_config_of(checkpoint: Path, config: Train) -> None:
    """Check that a configuration is the one that a checkpoint was trained with.

    Raises:
        ValueError: it is not, or the checkpoint has none.
    """
    try:
        trained = typed(Train, checkpoints.read_meta(checkpoint).get("config"))
    except ValueError as error:
        raise ValueError(f"checkpoint {checkpoint} is of no training run: {error}") from None
    if differing := differences("Train", asdict(config), asdict(trained)):
        raise ValueError(
            f"config.yaml is not what checkpoint {checkpoint} was trained with "
            f"({'; '.join(differing)}): restore config.yaml"
        )


def load_of_data(checkpoint: Path, dataset: Dataset) -> Snapshot:
    """A checkpoint whose tensors are not checked yet.

    Raises:
        ValueError: it is corrupt, foreign, or of other data.
    """
    snapshot, meta = checkpoints.load(checkpoint)
    if meta.get("data_sha256") != dataset.sha256:
        raise ValueError(
            f"checkpoint {checkpoint} was trained on other data: expected SHA-256 "
            f"{dataset.sha256}, got {meta.get('data_sha256')}"
        )
    return snapshot


def freeze(model: nn.Module, spec: Spec, run: Path, dataset: Dataset) -> None:
    """Load the model of a trained run into `model` and keep it as it is."""
    folder = RunFolder(run)
    trained = read_train_config(folder)
    if trained.model != str(spec):
        raise ValueError(
            f"--frozen_model {run} holds {trained.model}, got --model {spec}: pass the same model"
        )
    newest = checkpoints.newest(folder.checkpoints)
    if newest is None:
        raise ValueError(f"--frozen_model {run} has no checkpoint yet: train it first")
    expect_config_of(newest, trained)
    tensors = load_of_data(newest, dataset).tensors
    of_model = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    expected = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    checkpoints.expect_tensors(newest, of_model, expected)
    restore_tensors(Snapshot(of_model, {}), model=model)
    model.requires_grad_(False)
