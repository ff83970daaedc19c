"""From a configuration to data, model and guide, ready to train or evaluate."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, ImproperUniform
from torch import Tensor, nn

from evidence.experiments.config import Train
from evidence.experiments.own.arguments import (
    each_tensor,
)
from evidence.experiments.own.code import OwnCode, own_code
from evidence.experiments.own.pair import (
    AUTOGUIDES,
    has_joint_weights,
    is_autoguide,
    names_autoguide,
    own_guide,
)
from evidence.experiments.own.program import OwnProgram
from evidence.experiments.setup import catalogue, datasets, optimizers
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.datasets import Dataset
from evidence.experiments.setup.labels import folder_name
from evidence.experiments.setup.model_and_data import Model, load_with_model
from evidence.experiments.setup.preprocessing import prepare, resolve_binarization
from evidence.experiments.setup.trained import freeze
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.training_state import (
    weights,
)
from evidence.experiments.storage.versions import RECORDED, version_of
from evidence.guides import AbstractPosterior
from evidence.inference.estimation.evidence import Unit
from evidence.inference.programs.checks import base_distribution, check_density
from evidence.inference.programs.data import Batch, takes
from evidence.inference.programs.parameters import evaluation_store
from evidence.inference.programs.random_state import isolated_rng
from evidence.models import AbstractModel
from evidence.models.networks import expect_choice


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
    transform: Callable[[Any], Any] | None
    model: Model
    guide: nn.Module
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_amortized(self) -> bool:
        """Whether the guide tells of other data than those that it was fitted to."""
        is_of_these = is_autoguide(self.guide) or not getattr(self.guide, "is_amortized", True)
        return not (is_of_these or self.is_joint)

    @cached_property
    def is_joint(self) -> bool:
        """Whether a draw has one weight, of the data set, as data share latents; not one each."""
        if isinstance(self.model, AbstractModel) and isinstance(self.guide, AbstractPosterior):
            return False
        return has_joint_weights(self.model, self.guide, self.x_test)

    @property
    def unit(self) -> Unit:
        """Of what an estimate is: "datum" or "data set"."""
        return "data set" if self.is_joint else "datum"

    @property
    def of_the_suite(self) -> tuple[AbstractModel, AbstractPosterior, Tensor] | None:
        """Model, guide and evaluation data, where all are such as the suite has."""
        model, guide, x = self.model, self.guide, self.x_test
        is_suites = isinstance(model, AbstractModel) and isinstance(guide, AbstractPosterior)
        return (model, guide, x) if is_suites and isinstance(x, Tensor) else None

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
    catalogue.build_objective(Spec.parse(config.objective))
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
        freeze(model, model_spec, Path(config.frozen_model), dataset)
    if isinstance(model, OwnProgram) and config.device == "auto":
        return assembly  # whose tensors may all have been made on the CPU
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
    x_train: Batch, share: float, transform: Callable[[Any], Any] | None, seed: int
) -> tuple[Batch, Batch | None]:
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


def has_prior(model: Model) -> bool:
    """Whether p(z) is a density, as it is not of a plain autoencoder."""
    prior = model.prior() if isinstance(model, AbstractModel) else None
    return prior is None or not isinstance(base_distribution(prior), ImproperUniform)


def _expect_point(model: Model, guide: nn.Module, name: str, x: Batch) -> None:
    """Check that a model without a prior has a guide without a density.

    Raises:
        ValueError: nothing would keep the guide's spread from vanishing.
    """
    if has_prior(model):
        return
    with torch.no_grad():
        is_suites = isinstance(guide, AbstractPosterior) and isinstance(x, Tensor)
        if not (is_suites and isinstance(base_distribution(guide.posterior(x[:1])), Delta)):
            raise ValueError(
                f"{type(model).__name__} has no prior p(z), so a density q(z | x) such as {name} "
                "has no meaning beside it, nor has their loss: use --guide Delta, or --model VAE"
            )


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
    if not has_prior(model):
        raise ValueError(
            f"{type(model).__name__} has no prior p(z), so there is no log p(x) to estimate: its "
            "loss is in the results.json of its training"
        )
    with evaluation_store(), torch.no_grad():
        run = partial(poutine.trace(takes(guide, x)).get_trace, x)
        check_density(run(), again=run)
