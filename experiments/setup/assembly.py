"""From a configuration to data, model and guide, ready to train or evaluate."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor, nn

from evidence.experiments.config import Experiment, Train, differences
from evidence.experiments.setup import catalogue, datasets, optimizers
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.datasets import Dataset, is_built_in
from evidence.experiments.setup.labels import folder_name
from evidence.experiments.setup.own_code import OwnCode, own_code
from evidence.experiments.setup.own_data import (
    digest_of,
    each_tensor,
    find_data,
    own_vectors,
    parts_of,
)
from evidence.experiments.setup.own_pair import (
    AUTOGUIDES,
    has_joint_weights,
    is_autoguide,
    names_autoguide,
    own_guide,
    own_model_on,
    shares_latents,
)
from evidence.experiments.setup.own_program import OwnProgram
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
from evidence.inference.programs.data import Batch, takes
from evidence.inference.programs.parameters import evaluation_store
from evidence.inference.programs.random_state import expect_rng_state, isolated_rng
from evidence.models import AbstractModel, Autoencoder
from evidence.models.networks import expect_choice

Model = AbstractModel | OwnProgram

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
        sources: SHA-256 of the user's files that they come from.
    """

    config: Train
    dataset: Dataset
    x_train: Batch
    x_test: Batch
    held_out: Batch | None
    transform: Callable[[Tensor], Tensor] | None
    model: Model
    guide: nn.Module
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_amortized(self) -> bool:
        """Whether the guide tells of other data than those that it was fitted to."""
        of_one = isinstance(self.guide, Unamortized) or is_autoguide(self.guide)
        return not (of_one or self.is_joint)

    @cached_property
    def is_joint(self) -> bool:
        """Whether a draw has one weight, of the data set, as data share latents; not one each."""
        if isinstance(self.model, AbstractModel) and isinstance(self.guide, AbstractPosterior):
            return False
        return has_joint_weights(self.model, self.guide, self.x_test)

    @property
    def unit(self) -> str:
        """Of what an estimate is: "datum" or "data set"."""
        return "data set" if self.is_joint else "datum"

    @property
    def device(self) -> torch.device:
        """Where the data are."""
        return self.x_test.device

    @property
    def few(self) -> Batch:
        """As little of the evaluation data as shows what the pair is: a datum, or the data set."""
        return self.x_test if self.is_joint else self.x_test[:1]

    def weights_sha256(self) -> str:
        """Digest of model and guide as they are now."""
        return checkpoints.weights_sha256(weights(self.model, self.guide))

    def fingerprint(self) -> dict[str, Any]:
        """Which data and which software: what a result must be recorded with."""
        return {
            "data_sha256": self.dataset.sha256,
            "test_sha256": datasets.digest(self.x_test),
            "sources": dict(self.sources),
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
    with isolated_rng(config.seed), own_code() as code:
        dataset, model, model_spec = load_with_model(config, code)
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
        guide, guide_spec = build_guide(config, model, x_test, code)
    _expect_point(model, guide, config.guide, x_test)
    resolved = replace(config, split=dataset.split, binarize=binarize)
    assembly = Assembly(
        config=replace(resolved, model=str(model_spec), guide=str(guide_spec)),
        dataset=dataset,
        x_train=x_train,
        x_test=x_test,
        held_out=None,
        transform=transform,
        model=model,
        guide=guide,
        sources=code.sources,
    )
    assembly = _with_training_data(assembly)
    if config.frozen_model is not None:
        _freeze(model, model_spec, Path(config.frozen_model), dataset)
    return _on(assembly, device)


def with_guide(pair: Assembly, guide: str) -> Assembly:
    """Another guide for the model and the data of a pair, to look at and not to train.

    Raises:
        ValueError: there is no such guide, or it does not serve the model.
    """
    config = replace(pair.config, guide=guide)
    x = pair.x_test if isinstance(pair.model, OwnProgram) else pair.x_test[:1]
    with isolated_rng(config.seed), own_code() as code:
        found, spec = build_guide(config, pair.model, x, code)
    found = found.to(pair.x_test.device)
    return replace(pair, guide=found, config=replace(config, guide=str(spec)))


def _with_training_data(pair: Assembly) -> Assembly:
    """What the guide is to learn from: other data than the evaluation's, if it can tell of them."""
    config, x_train, transform = pair.config, pair.x_train, pair.transform
    if not pair.is_amortized:  # nothing is learnt about other data than these
        if config.held_out:
            raise ValueError(f"{config.guide} has no encoder for data --held_out: leave it out")
        x_train, transform = pair.x_test, None
    x_train, held_out = _hold_out(x_train, config.held_out, transform, config.seed)
    return replace(pair, x_train=x_train, held_out=held_out, transform=transform)


def _on(pair: Assembly, device: torch.device) -> Assembly:
    """Everything on a device."""

    def there(x: Batch | None) -> Batch | None:
        return None if x is None else each_tensor(x, lambda tensor: tensor.to(device))

    x_test = there(pair.x_test)
    return replace(
        pair,
        x_train=x_test if pair.x_train is pair.x_test else there(pair.x_train),
        x_test=x_test,
        held_out=there(pair.held_out),
        model=pair.model.to(device),
        guide=pair.guide.to(device),
    )


def build_guide(config: Train, model: Model, x: Batch, code: OwnCode) -> tuple[nn.Module, Spec]:
    """The guide of a configuration, and its spec in full: of the suite, of Pyro or the user's own.

    Raises:
        ValueError: there is no such guide, or it does not serve this model.
    """
    spec = Spec.parse(config.guide)
    if names_autoguide(spec.name):
        return own_guide(spec, model, x, code, seed=config.seed)
    if spec.is_elsewhere:
        found = code.find("guide", spec.name)
        if not (isinstance(found, type) and issubclass(found, AbstractPosterior)):
            return own_guide(spec, model, x, code, seed=config.seed)
    if not isinstance(model, AbstractModel):
        expect_choice("guide", spec.name, [*catalogue.all_guides(), *AUTOGUIDES])
    return catalogue.build_guide(spec, model, x, code)


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


def _expect_point(model: Model, guide: nn.Module, name: str, x: Batch) -> None:
    """Check that a model without a prior has a guide without a density.

    Raises:
        ValueError: nothing would keep the guide's spread from vanishing.
    """
    if not isinstance(model, Autoencoder):
        return
    with torch.no_grad():
        is_suites = isinstance(guide, AbstractPosterior)
        if not (is_suites and isinstance(base_distribution(guide.posterior(x[:1])), Delta)):
            raise ValueError(
                f"Autoencoder has no prior p(z), so a density q(z | x) such as {name} has no "
                "meaning beside it, nor has their loss: use --guide Delta, or --model VAE"
            )


def load_with_model(config: Experiment, code: OwnCode | None = None) -> tuple[Dataset, Model, Spec]:
    """The data, in the form that the model takes, the model, and its spec in full.

    Args:
        config: names both.
        code: where the user's own come from.

    Raises:
        ValueError: no such data or model, or they do not fit.
    """
    spec, code = Spec.parse(config.model), code or OwnCode()
    found = code.find("model", spec.name) if spec.is_elsewhere else catalogue.find_model(spec.name)
    if isinstance(found, type) and issubclass(found, AbstractModel):
        return _with_model_of_the_suite(config, spec, found, code)
    return _with_own_model(config, spec, code)


def _with_model_of_the_suite(
    config: Experiment, spec: Spec, kind: type[AbstractModel], code: OwnCode
) -> tuple[Dataset, AbstractModel, Spec]:
    split = "test" if config.split == "auto" else config.split
    if config.data == "simulated":
        with isolated_rng(config.data_seed):  # the truth, where every fit starts
            size = kind.fixed_data_dim or _SIMULATED_DIM
            model, full = catalogue.build(kind, spec, partial(kind, data_dim=size))
            return datasets.simulated(model, split=split), model, full
    if is_built_in(config.data):
        dataset = datasets.load(config.data, split=split, data_root=config.data_root)
    else:
        dataset = own_vectors(config.data, split, code)
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
    return dataset, *catalogue.build(kind, spec, partial(kind, data_dim=dataset.data_dim))


def _with_own_model(
    config: Experiment, spec: Spec, code: OwnCode
) -> tuple[Dataset, OwnProgram, Spec]:
    if config.data == "simulated":
        raise ValueError(
            f"--data simulated are drawn from a model of the suite: {spec.name} needs its own data"
        )
    archive = None
    if is_built_in(config.data):
        archive = datasets.load(config.data, split="all", data_root=config.data_root)
        found = (archive.x_train.numpy(),)
    else:
        found = find_data(config.data, code)
    model, x, unused = own_model_on(found, spec, code, seed=config.seed)
    split = config.split
    if split == "auto":
        split = "all" if shares_latents(model, x) else "test"
    x_train, x_test = parts_of(x, split)
    labels = [torch.zeros(len(part), dtype=torch.int64) for part in (x_train, x_test)]
    dataset = Dataset(
        name=config.data,
        split=split,
        x_train=x_train,
        y_train=labels[0],
        x_test=x_test,
        y_test=labels[1],
        image_shape=None,
        num_levels=None if archive is None else archive.num_levels,
        sha256=digest_of(found) if archive is None else archive.sha256,
        unused=tuple(unused),
    )
    return dataset, model, spec


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
    if changed := changed_sources(newest, assembly):
        print(
            f"evidence: {', '.join(changed)} has changed since {folder.path} was trained: numbers "
            "are of the model and the guide as they are now, with the parameters from then",
            file=sys.stderr,
        )
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


def changed_sources(checkpoint: Path, assembly: Assembly) -> list[str]:
    """The user's files that are not what they were when the checkpoint was made."""
    recorded = checkpoints.read_meta(checkpoint).get("sources", {})
    return sorted(n for n, sha256 in assembly.sources.items() if recorded.get(n) != sha256)


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


def say_unused(pair: Assembly) -> None:
    """One line on stderr about the columns of the user's data that the model does not take."""
    if pair.dataset.unused:
        names = ", ".join(pair.dataset.unused)
        print(
            f"evidence: {pair.config.model} takes no {names} of {pair.config.data}", file=sys.stderr
        )


def run_name(*parts: str) -> str:
    """A folder name below `runs` out of specs and names."""
    words = ("".join(c if c.isalnum() or c in "._" else "-" for c in part) for part in parts)
    return os.path.join("runs", folder_name("-".join(word.strip("-") for word in words)))


def expect_evidence(model: Model, guide: nn.Module, x: Batch) -> None:
    """Check on a datum or more, `[B, D]`, that the pair defines importance weights at all.

    Raises:
        ValueError: the model has no prior, or the guide no density.
    """
    if isinstance(model, Autoencoder):
        raise ValueError(
            "Autoencoder has no prior p(z), so there is no log p(x) to estimate: its squared error "
            "is in the results.json of its training"
        )
    with evaluation_store(), torch.no_grad():
        check_density(poutine.trace(takes(guide, x)).get_trace(x))
