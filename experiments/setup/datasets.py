"""The data sets: digits bundled with scikit-learn, MNIST and Fashion-MNIST, and a simulated one."""

import gzip
import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evidence.experiments.config import default_root
from evidence.experiments.storage.files import replaced
from evidence.inference.programs.data import Batch
from evidence.models import AbstractModel
from evidence.models.networks import expect_choice

SPLITS = ("test", "validation", "all")


@dataclass(frozen=True)
class Dataset:
    """One data set, flattened once, at loading.

    Args:
        name: as on the command line.
        split: what `x_test` holds, "test" or "validation".
        x_train: training data `[N, D]`; pixels are in [0, 1].
        y_train: their labels `[N]`.
        x_test: held-out data `[M, D]`.
        y_test: their labels `[M]`.
        image_shape: (height, width) of the images, or None for data that are no images.
        num_levels: number of grey levels of a pixel, or None for real-valued data.
        sha256: digest of the whole data set, as loaded.
        unused: columns of a user's file that the model has no parameter for.
    """

    name: str
    split: str
    x_train: Batch
    y_train: Tensor
    x_test: Batch
    y_test: Tensor
    image_shape: tuple[int, int] | None
    num_levels: int | None
    sha256: str
    unused: tuple[str, ...] = ()

    @property
    def data_dim(self) -> int:
        """D, the number of entries of one datum."""
        return self.vectors[0].shape[1]

    @property
    def vectors(self) -> tuple[Tensor, Tensor]:
        """Training and held-out data of one vector each, as models of the suite take them."""
        assert isinstance(self.x_train, Tensor)
        assert isinstance(self.x_test, Tensor)
        return self.x_train, self.x_test


def is_built_in(name: str) -> bool:
    """Whether this is no file and no callable of the user's."""
    return name in _READERS or "." not in name


@dataclass(frozen=True)
class _Archive:
    """A data set in full; the last `num_validation` training data are held out on demand."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_validation: int
    image_shape: tuple[int, int] | None
    num_levels: int | None


def load(name: str, *, split: str = "test", data_root: str | Path | None = None) -> Dataset:
    """Load a data set by name.

    With `split="test"`, training data are all but the test data. With `split="validation"`, a fixed
    part of the training data is held out instead, and the test data are not touched: choose on
    validation data, then train on everything and report on test data. With `split="all"`, all data
    are both.

    Args:
        name: "digits", "mnist", "fashion", "toy" or "none".
        split: "test", "validation" or "all".
        data_root: folder with (or for) the archives of mnist and fashion; by default the
            environment variable EVIDENCE_DATA, else `data`.

    Raises:
        ValueError: an unknown name or split, or archives that are corrupt or cannot be had.
    """
    reader = _READERS[expect_choice("data set", name, _READERS)]
    expect_choice("split", split, SPLITS)
    archive = reader(Path(data_root or default_root()).expanduser())
    x_train, y_train = archive.x_train, archive.y_train
    x_test, y_test = archive.x_test, archive.y_test
    if split == "all":
        x_train, y_train = x_test, y_test = (
            np.concatenate([x_train, x_test]),
            np.concatenate([y_train, y_test]),
        )
    if split == "validation":
        kept = len(x_train) - archive.num_validation
        x_test, y_test = x_train[kept:], y_train[kept:]
        x_train, y_train = x_train[:kept], y_train[:kept]
    return Dataset(
        name=name,
        split=split,
        x_train=_flatten(x_train, archive.num_levels),
        y_train=torch.from_numpy(y_train.astype(np.int64)),
        x_test=_flatten(x_test, archive.num_levels),
        y_test=torch.from_numpy(y_test.astype(np.int64)),
        image_shape=archive.image_shape,
        num_levels=archive.num_levels,
        sha256=_digest(archive.x_train, archive.y_train, archive.x_test, archive.y_test),
    )


def simulated(model: AbstractModel, *, split: str = "test") -> Dataset:
    """4,000 training and 1,000 held-out data drawn from the model as it is.

    Raises:
        ValueError: the model cannot be simulated, or an unknown split.
    """
    expect_choice("split", split, SPLITS)
    with torch.no_grad():
        x = model(None, size=5000).detach()
    labels = torch.zeros(len(x), dtype=torch.int64)
    train, test = (slice(None),) * 2 if split == "all" else (slice(4000), slice(4000, None))
    return Dataset(
        name="simulated",
        split=split,
        x_train=x[train],
        y_train=labels[train],
        x_test=x[test],
        y_test=labels[test],
        image_shape=None,
        num_levels=None,
        sha256=digest(x),
    )


def with_labels(dataset: Dataset) -> Dataset:
    """The data with their labels, one of C, in C more columns."""
    num_classes = int(dataset.y_train.max()) + 1

    def join(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, torch.nn.functional.one_hot(y, num_classes).to(x)], 1)

    x_train, x_test = dataset.vectors
    return replace(
        dataset, x_train=join(x_train, dataset.y_train), x_test=join(x_test, dataset.y_test)
    )


def digest(*data: Batch) -> str:
    """SHA-256 of shapes, types and bytes of the tensors, and of what else there is beside them."""
    return _digest(*(array for x in data for array in _arrays(x)))


def _arrays(x: Batch) -> Iterator[np.ndarray]:
    for part in [x] if isinstance(x, Tensor) else [*x.args, *x.kwargs, *x.kwargs.values()]:
        is_tensor = isinstance(part, Tensor)
        yield part.detach().cpu().numpy() if is_tensor else np.array(repr(part))


def _digest(*arrays: np.ndarray) -> str:
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(f"{array.dtype.str}{array.shape}".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def _flatten(x: np.ndarray, num_levels: int | None) -> Tensor:
    """`[N, ...]` grey levels or reals -> `[N, D]` float32, grey levels scaled to [0, 1]."""
    flat = torch.from_numpy(x.reshape(len(x), -1)).float()
    return flat if num_levels is None else flat.div_(num_levels - 1)


def _read_digits(_: Path) -> _Archive:
    """1,797 images of 8×8 pixels with 17 grey levels; every fifth is a test image."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 (slow to import)

    digits = load_digits()
    x, y = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    # The images come writer by writer: every fifth takes from all of them.
    place = np.arange(len(x)) % 5
    order = np.argsort(place == 1, kind="stable")  # the validation images come last
    train = order[place[order] != 0]
    return _Archive(
        x_train=x[train],
        y_train=y[train],
        x_test=x[place == 0],
        y_test=y[place == 0],
        num_validation=int((place == 1).sum()),
        image_shape=(8, 8),
        num_levels=17,
    )


def _read_toy(_: Path) -> _Archive:
    """3,000 draws of a linear Gaussian model with 3 factors in 10 dimensions, unit-free."""
    generator = np.random.Generator(np.random.PCG64(0))
    weight = generator.normal(size=(3, 10))
    z = generator.normal(size=(3000, 3))
    x = 1.0 + z @ weight + 0.5 * generator.normal(size=(3000, 10))
    labels = (z[:, 0] > 0).astype(np.uint8)
    return _Archive(x[:2500], labels[:2500], x[2500:], labels[2500:], 500, None, None)


def _read_none(_: Path) -> _Archive:
    """25,600 ones, for densities without data: the rows of a minibatch are then particles."""
    x, y = np.ones((26_600, 1)), np.zeros(26_600, dtype=np.uint8)
    return _Archive(x[:25_600], y[:25_600], x[25_600:], y[25_600:], 1000, None, None)


def _read_torchvision(class_name: str) -> Callable[[Path], _Archive]:
    def read(root: Path) -> _Archive:
        import torchvision  # noqa: PLC0415 (slow to import)

        archive_class = getattr(torchvision.datasets, class_name)
        raw = root / class_name / "raw"
        try:
            _fetch(archive_class, raw)
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(_how_to_get(archive_class, raw, error)) from None
        x_train, y_train, x_test, y_test = (
            _unpacked(raw / name, md5) for name, md5 in archive_class.resources
        )
        return _Archive(
            x_train=x_train,
            y_train=y_train,
            x_test=x_test,
            y_test=y_test,
            num_validation=10_000,
            image_shape=(28, 28),
            num_levels=256,
        )

    return read


def _fetch(archive_class: Any, raw: Path) -> None:
    """Download the archives that are missing, each in full or not at all."""
    from torchvision.datasets.utils import download_url  # noqa: PLC0415 (slow to import)

    for name, md5 in archive_class.resources:
        failure: Exception | None = None
        for mirror in archive_class.mirrors:
            if (raw / name).exists():
                break
            raw.mkdir(parents=True, exist_ok=True)
            try:
                with replaced(raw / name) as partial:
                    download_url(f"{mirror}{name}", str(raw), filename=partial.name, md5=md5)
            except (OSError, RuntimeError) as error:
                failure = error
        if failure is not None and not (raw / name).exists():
            raise failure


def _unpacked(archive: Path, md5: str) -> np.ndarray:
    """What a gzipped IDX file of bytes holds, once its checksum is right.

    Files that lie unpacked beside it are not looked at: nothing tells whether they are whole.

    Raises:
        ValueError: the archive is not the one that was published.
    """
    payload = archive.read_bytes()
    found = hashlib.md5(payload, usedforsecurity=False).hexdigest()
    if found != md5:
        raise ValueError(
            f"corrupt archive {archive}: expected MD5 {md5}, got {found}: delete it and fetch it "
            "again"
        )
    idx = gzip.decompress(payload)
    num_dims = idx[3]  # the header: two zeros, the type (8, bytes), dims, and each size
    shape = struct.unpack(f">{num_dims}I", idx[4 : 4 + 4 * num_dims])
    return np.frombuffer(idx, np.uint8, offset=4 + 4 * num_dims).reshape(shape).copy()


def _how_to_get(archive_class: Any, raw: Path, error: Exception) -> str:
    files = ", ".join(file_name for file_name, _ in archive_class.resources)
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"no usable copy of {archive_class.__name__} in {raw}, and the download failed ({reason}): "
        f"put {files} there, or point --data_root or EVIDENCE_DATA to the folder that holds "
        f"{archive_class.__name__}/raw"
    )


_READERS: dict[str, Callable[[Path], _Archive]] = {
    "digits": _read_digits,
    "fashion": _read_torchvision("FashionMNIST"),
    "mnist": _read_torchvision("MNIST"),
    "none": _read_none,
    "toy": _read_toy,
}
