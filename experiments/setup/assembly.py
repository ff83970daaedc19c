"""From a configuration to data, model and guide, ready to train or evaluate."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from evidence.experiments.config import Experiment, Train, differences
from evidence.experiments.setup import catalogue, datasets, optimizers
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.datasets import Dataset
from evidence.experiments.setup.labels import folder_name
from evidence.experiments.setup.preprocessing import prepare, resolve_binarization
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.runs import RunFolder
from evidence.experiments.storage.schema import typed
from evidence.experiments.storage.training_state import (
    expect_history,
    training_state,
    weights,
    within,
)
from evidence.experiments.storage.trust import expect_trusted, trusted_root
from evidence.experiments.storage.versions import RECORDED, version_of
from evidence.guides import AbstractPosterior, Unamortized
from evidence.inference import Snapshot, restore_tensors
from evidence.inference.programs.checks import base_distribution, check_density
from evidence.inference.programs.random_state import expect_rng_state, isolated_rng
from evidence.models import AbstractModel, Autoencoder

_SIMULATED_DIM = 20  # of data simulated from a model that may have any size


@dataclass(frozen=True)
class Assembly:
    """Everything a command works on.

    Args:
        config: the configuration with every option resolved.
        dataset: the data as loaded.
        x_train: training data `[N, D]`, on the device.
        x_test: evaluation data `[M, D]`, on the device, binarized or dequantized once.
        held_out: training data `[H, D]` that decide when to stop, fixed as `x_test` is, or None.
        transform: what to do with each minibatch, or None.
        model: the model, on the device.
        guide: the guide, on the device.
    """

    config: Train
    dataset: Dataset
    x_train: Tensor
    x_test: Tensor
    held_out: Tensor | None
    transform: Callable[[Tensor], Tensor] | None
    model: AbstractModel
    guide: AbstractPosterior

    def weights_sha256(self) -> str:
        """Digest of model and guide as they are now."""
        return checkpoints.weights_sha256(weights(self.model, self.guide))

    def fingerprint(self) -> dict[str, Any]:
        """Which data and which software: what a result must be recorded with."""
        return {
            "data_sha256": self.dataset.sha256,
            "test_sha256": datasets.digest(self.x_test),
            "versions": {name: version_of(name) for name in RECORDED},
        }


def assemble(config: Train) -> Assembly:
    """Load the data and build the pair; with `frozen_model`, its weights are loaded and fixed.

    Raises:
        ValueError: anything in the configuration that does not fit.
    """
    device = find_device(config.device)
    catalogue.build_elbo(Spec.parse(config.elbo))
    optimizers.build_optimizer(Spec.parse(config.optimizer), lr=config.lr)
    with isolated_rng(config.seed):
        dataset, model, model_spec = load_with_model(config)
        binarize = resolve_binarization(
            config.binarize, pixels=model.pixels, num_levels=dataset.num_levels
        )
        x_train, x_test, transform = prepare(
            dataset.x_train,
            dataset.x_test,
            binarize=binarize,
            num_levels=dataset.num_levels,
            seed=config.data_seed,
            dequantized=model.pixels != "levels",
        )
        guide, guide_spec = catalogue.build_guide(Spec.parse(config.guide), model, x_test)
    _expect_point(model, guide, config.guide, x_test[:1])
    if isinstance(guide, Unamortized):  # nothing is learnt about other data than these
        if config.held_out:
            raise ValueError(f"{config.guide} has no encoder for data --held_out: leave it out")
        x_train, transform = x_test, None
    x_train, held_out = _hold_out(x_train, config.held_out, transform, config.seed)
    if config.frozen_model is not None:
        _freeze(model, model_spec, Path(config.frozen_model), dataset)
    resolved = replace(config, model=str(model_spec), guide=str(guide_spec), binarize=binarize)
    return Assembly(
        config=resolved,
        dataset=dataset,
        x_train=x_train.to(device),
        x_test=x_test.to(device),
        held_out=None if held_out is None else held_out.to(device),
        transform=transform,
        model=model.to(device),
        guide=guide.to(device),
    )


def _hold_out(
    x_train: Tensor, share: float, transform: Callable[[Tensor], Tensor] | None, seed: int
) -> tuple[Tensor, Tensor | None]:
    """What is left of the training data, and a share of them, drawn and transformed once."""
    if not 0 <= share < 1:
        raise ValueError(f"expected --held_out to be a share of at least 0, below 1, got {share}")
    if share == 0:
        return x_train, None
    size = max(1, round(share * len(x_train)))
    if size == len(x_train):
        raise ValueError(f"--held_out {share} leaves none of {len(x_train)} data to train on")
    with isolated_rng(seed):
        order = torch.randperm(len(x_train))
        held_out = x_train[order[:size]]
        held_out = held_out if transform is None else transform(held_out)
    return x_train[order[size:]], held_out


def _expect_point(model: AbstractModel, guide: AbstractPosterior, name: str, x: Tensor) -> None:
    """Check that a model without a prior has a guide without a density.

    Raises:
        ValueError: nothing would keep the guide's spread from vanishing.
    """
    if not isinstance(model, Autoencoder):
        return
    with torch.no_grad():
        if not isinstance(base_distribution(guide.posterior(x)), Delta):
            raise ValueError(
                f"Autoencoder has no prior p(z), so a density q(z | x) such as {name} has no "
                "meaning beside it, nor has their loss: use --guide Delta, or --model VAE"
            )


def load_with_model(config: Experiment) -> tuple[Dataset, AbstractModel, Spec]:
    """The data, in the form that the model takes, the model, and its spec in full.

    Raises:
        ValueError: no such data or model, or they do not fit.
    """
    spec = Spec.parse(config.model)
    kind = catalogue.find_model(spec.name)
    if config.data == "simulated":
        with isolated_rng(config.data_seed):  # the truth, where every fit starts
            size = kind.fixed_data_dim or _SIMULATED_DIM
            model, full = catalogue.build_model(spec, data_dim=size)
            return datasets.simulated(model, split=config.split), model, full
    dataset = datasets.load(config.data, split=config.split, data_root=config.data_root)
    if kind.responses and dataset.image_shape is not None:
        height, width = dataset.image_shape
        raise ValueError(
            f"{spec.name} expects {kind.responses}, got images of {height} × {width} pixels "
            f"({config.data}): choose --data simulated, or a model of images such as VAE"
        )
    if kind.labelled:
        dataset = datasets.with_labels(dataset)
    if spec.options.get("likelihood") == "discretized-logistic":
        spec = Spec(spec.name, {"num_levels": dataset.num_levels, **spec.options})
    return dataset, *catalogue.build_model(spec, data_dim=dataset.data_dim)


def load_run(
    folder: RunFolder,
    *,
    trust: bool = False,
    data_root: str | None = None,
    device: str | None = None,
) -> tuple[Assembly, Snapshot]:
    """The assembly of a trained run, with its trained weights.

    Args:
        folder: the run.
        trust: whether its classes from elsewhere are imported, and its data_root is used.
        data_root: folder with the archives of mnist or fashion, if not the default.
        device: where to, if not as in training.

    Raises:
        ValueError: no run folder, no checkpoint, or one of other data or another model; or the run
            asks for what the user has not named.
    """
    config = read_train_config(folder)
    expect_trusted(config, folder.path, trust=trust)
    newest = checkpoints.newest(folder.checkpoints)
    if newest is None:
        raise ValueError(f"{folder.path} has no checkpoint yet: train it first")
    expect_config_of(newest, config)
    # The checkpoint holds the fixed model too: the run that it came from is not needed any more.
    root = trusted_root(config, data_root, trust=trust)
    assembly = assemble(
        replace(config, frozen_model=None, data_root=root, device=device or config.device)
    )
    resolved = replace(assembly.config, frozen_model=config.frozen_model)
    assembly = replace(assembly, config=resolved)
    snapshot = load_snapshot(newest, assembly)
    restore_tensors(snapshot, model=assembly.model.eval(), guide=assembly.guide.eval())
    return assembly, snapshot


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


def load_snapshot(checkpoint: Path, assembly: Assembly) -> Snapshot:
    """A checkpoint of just this data, model and guide; every tensor is checked before it is used.

    Raises:
        ValueError: it is corrupt, foreign, or of other data or another pair.
    """
    snapshot = load_of_data(checkpoint, assembly.dataset)
    state = training_state(snapshot.tensors, assembly.model, assembly.guide)
    checkpoints.expect_tensors(checkpoint, snapshot.tensors, state)
    try:
        expect_history(snapshot.meta["position"])
        expect_rng_state(within("rng.", snapshot.tensors))
    except ValueError as error:
        raise ValueError(f"corrupt checkpoint {checkpoint}: {error}") from None
    return snapshot


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


def read_train_config(folder: RunFolder) -> Train:
    """The configuration of a training run.

    Raises:
        ValueError: the folder is of another command or version.
    """
    config = folder.read_config()
    if not isinstance(config, Train):
        raise ValueError(f"{folder.path} is a comparison: name the folder of one of its guides")
    return config


def find_device(name: str) -> torch.device:
    """The device of this name; "auto" is CUDA if there is any.

    Raises:
        ValueError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # a number comes back, which "meta" has none of
    except Exception as error:  # whatever a backend that is not there raises
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}): try --device cpu") from None
    return device


def _freeze(model: AbstractModel, spec: Spec, run: Path, dataset: Dataset) -> None:
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


def run_name(*parts: str) -> str:
    """A folder name below `runs` out of specs and names."""
    words = ("".join(c if c.isalnum() or c in "._" else "-" for c in part) for part in parts)
    return os.path.join("runs", folder_name("-".join(word.strip("-") for word in words)))


def expect_evidence(model: AbstractModel, guide: AbstractPosterior, x: Tensor) -> None:
    """Check on a datum or more, `[B, D]`, that the pair defines importance weights at all.

    Raises:
        ValueError: the model has no prior, or the guide no density.
    """
    if isinstance(model, Autoencoder):
        raise ValueError(
            "Autoencoder has no prior p(z), so there is no log p(x) to estimate: its squared error "
            "is in the results.json of its training"
        )
    check_density(poutine.trace(guide).get_trace(x))
