"""The model and the data of a configuration, of the suite or the user's own."""

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from evidence.experiments.config import Experiment
from evidence.experiments.own.arguments import (
    as_one,
    digest_of,
    expect_numbers,
    find_data,
    parts_of,
)
from evidence.experiments.own.code import OwnCode
from evidence.experiments.own.pair import (
    own_model_on,
    shares_latents,
)
from evidence.experiments.own.program import OwnProgram
from evidence.experiments.setup import catalogue, datasets
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.datasets import Dataset, is_built_in
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng
from evidence.models import AbstractModel

Model = AbstractModel | OwnProgram

_SIMULATED_DIM = 20  # of data simulated from a model that may have any size


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
        dataset = _vectors(config.data, split, code)
    if kind.responses and dataset.image_shape is not None:
        height, width = dataset.image_shape
        raise ValueError(
            f"{spec.name} expects {kind.responses}, got images of {height} × {width} pixels "
            f"({config.data}): choose --data simulated, or a model of images such as VAE"
        )
    if kind.labelled:
        dataset = datasets.with_labels(dataset)
    if spec.options.get("likelihood") == "discretized-logistic":
        levels = Spec("discretized-logistic", {"num_levels": dataset.num_levels})
        spec = Spec(spec.name, spec.options | {"likelihood": levels})
    return dataset, *catalogue.build(kind, spec, partial(kind, data_dim=dataset.data_dim))


def _with_own_model(
    config: Experiment, spec: Spec, code: OwnCode
) -> tuple[Dataset, OwnProgram, Spec]:
    if config.data == "simulated":
        raise ValueError(
            f"--data simulated are drawn from a model of the suite: {spec.name} needs its own data"
        )
    archive, found = None, ()
    if config.data != "none" and is_built_in(config.data):
        archive = datasets.load(config.data, split="all", data_root=config.data_root)
        found = (archive.vectors[0].numpy(),)
    elif config.data != "none":  # of a density that takes none
        found = find_data(config.data, code)
    model, x, unused = own_model_on(found, spec, code, seed=config.seed)
    split = config.split
    if split == "auto":
        split = "all" if shares_latents(model, x) else "test"
    dataset = _without_labels(config.data, split, x, digest_of(found))
    if archive is not None:
        dataset = replace(dataset, num_levels=archive.num_levels, sha256=archive.sha256)
    return replace(dataset, unused=tuple(unused)), model, spec


def _vectors(data: str, split: str, code: OwnCode) -> Dataset:
    """A user's data as one vector of real numbers per datum, for the models of the suite.

    Raises:
        ValueError: they cannot be read, or are none.
    """
    found = find_data(data, code)
    array = as_one(found)
    expect_numbers({data: array})
    x = torch.from_numpy(np.asarray(array, dtype=np.float32)).reshape(len(array), -1)
    return _without_labels(data, split, x, digest_of(found))


def _without_labels(data: str, split: str, x: Batch, sha256: str) -> Dataset:
    """The user's data, in the form that the model takes, as a data set without labels."""
    x_train, x_test = parts_of(x, split)
    labels = [torch.zeros(len(part), dtype=torch.int64) for part in (x_train, x_test)]
    return Dataset(
        name=data,
        split=split,
        x_train=x_train,
        y_train=labels[0],
        x_test=x_test,
        y_test=labels[1],
        image_shape=None,
        num_levels=None,
        sha256=sha256,
    )
