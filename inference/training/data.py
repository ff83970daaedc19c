"""What a run is trained on, minibatch by minibatch, and what else there is to look at."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, Data
from evidence.inference.programs.stored import LoadedData, StoredData, order_of


@dataclass(frozen=True)
class TrainingData:
    """Data, as they are trained on and as they are judged by.

    Args:
        x_train: in memory, or read when used.
        x_test: to report on.
        held_out: to end training by.
        transform: of each minibatch, as it is drawn.
    """

    x_train: Batch | StoredData
    x_test: Batch | StoredData | None
    held_out: Batch | StoredData | None
    transform: Callable[[Any], Any] | None

    def __len__(self) -> int:
        return len(self.x_train)

    @property
    def device(self) -> torch.device:
        """Where they are trained on."""
        return self.x_train.device

    def expect_all_alike(self) -> None:
        """Refuse a loader under which no posterior of what data share is that of the data.

        Raises:
            ValueError: it loads some more often than others.
        """
        if isinstance(self.x_train, LoadedData) and not self.x_train.draws_all_alike:
            raise ValueError(
                "expected a DataLoader that loads all data alike, as they share latents, got a "
                "WeightedRandomSampler: weigh them in the model (poutine.scale), and shuffle"
            )

    def expect_resumable(self) -> None:
        """See `LoadedData.expect_resumable`."""
        if isinstance(self.x_train, LoadedData):
            self.x_train.expect_resumable()

    @property
    def is_unseen(self) -> bool:
        """Whether a minibatch may hold what no check has seen before."""
        return self.transform is not None or isinstance(self.x_train, StoredData)

    def num_batches(self, size: int) -> int:
        """Minibatches of a pass."""
        if isinstance(self.x_train, LoadedData):
            return len(self.x_train.loader)
        return math.ceil(len(self) / size)

    def batch(self, rows: Tensor | slice) -> Batch:
        """Rows of the training data, as they are trained on."""
        return self.transformed(self.x_train[rows])

    def batches(self, size: int, seed: int, start: int) -> Iterator[Batch]:
        """The minibatches of a pass, from one on; see `StoredData.minibatches`."""
        if isinstance(self.x_train, StoredData):
            for x in self.x_train.minibatches(size, seed, start):
                yield self.transformed(x)
            return
        if size >= len(self):
            if start == 0:
                yield self.transformed(_copied(self.x_train))
            return
        for rows in order_of(len(self), size, seed)[start:]:
            yield self.batch(rows.to(self.device))

    def transformed(self, x: Batch) -> Batch:
        """Training data as they are trained on."""
        if isinstance(self.x_train, StoredData):
            check_data(x, "x_train")
        return x if self.transform is None else self.transform(x)


def _copied(x: Batch) -> Batch:
    """All rows in their own order, as indexing lays them out, and in half its time."""
    if isinstance(x, Data):
        return x.map(_copied_tensor)
    return _copied_tensor(x)


def _copied_tensor(x: Tensor) -> Tensor:
    return x.clone() if x.is_contiguous() else x[torch.arange(len(x), device=x.device)]
