"""Data that need not fit in memory: torch's datasets and loaders, read some rows at a time."""

from collections import deque
from collections.abc import Callable, Iterator, Sized
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from evidence.inference.programs.random_state import isolated_rng

_KNOWN_SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class StoredData:
    """The rows of a dataset, each read when it is asked for: `x[rows]` is a batch.

    Args:
        dataset: read by index, of a known length.
        collate: makes a batch of a list of items.
    """

    def __init__(self, dataset: Dataset, collate: Callable[[list[Any]], Any]) -> None:
        name = type(dataset).__name__
        if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
            raise ValueError(
                f"expected a map-style dataset, with __getitem__ and __len__, got {name}: the "
                "evidence is that of a known number of data, which are read in any order"
            )
        if not len(dataset):
            raise ValueError(f"expected at least one datum, got {name} of length 0")
        self.dataset, self._collate = dataset, collate

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, rows: slice | Tensor) -> Any:
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        read_all = getattr(self.dataset, "__getitems__", None)
        items = read_all([*numbers]) if read_all else [self.dataset[i] for i in numbers]
        return self._collate(items).detach()

    def split(self, size: int) -> Iterator[Any]:
        """So many data at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    @cached_property
    def first(self) -> Any:
        """A batch of the first datum, read once; what is drawn for it is nobody else's."""
        with isolated_rng():
            return self[:1]

    @property
    def device(self) -> torch.device:
        """Where batches are."""
        return self.first.device

    def detach(self) -> "StoredData":
        """Itself: batches have no gradients."""
        return self

    def minibatches(self, size: int, seed: int, start: int) -> Iterator[Any]:
        """One pass over the data in an order that the seed decides, from a minibatch on.

        Args:
            size: data of each.
            seed: of this pass.
            start: minibatches to leave out.
        """
        for rows in order_of(len(self), size, seed)[start:]:
            yield self[rows]


class LoadedData(StoredData):
    """What a `DataLoader` loads: minibatches of a pass are its own, single rows its dataset's.

    Args:
        loader: of a map-style dataset.
        collate: makes a batch of what the loader yields.
    """

    def __init__(self, loader: DataLoader, collate: Callable[[Any], Any]) -> None:
        sampler, dataset = loader.sampler, loader.dataset
        if isinstance(sampler, SubsetRandomSampler):
            dataset = Subset(dataset, sorted(sampler.indices))
        super().__init__(dataset, lambda items: collate(loader.collate_fn(items)))
        if loader.batch_size is None or type(loader.batch_sampler) is not BatchSampler:
            raise ValueError(
                "expected a DataLoader with a batch_size, got one whose batches have sizes of "
                "their own: pass batch_size and, for another order, sampler"
            )
        if loader.drop_last and isinstance(sampler, SequentialSampler) and self._has_rest(loader):
            raise ValueError(
                "expected every datum to be loaded, got a DataLoader with drop_last and without "
                "shuffle, which never loads the last ones: leave drop_last out, or shuffle"
            )
        self.loader, self._collate_batch = loader, collate

    def _has_rest(self, loader: DataLoader) -> bool:
        return len(self) % (loader.batch_size or 1) > 0

    @property
    def batch_size(self) -> int:
        """Data of a minibatch, but perhaps for the last one of a pass."""
        return self.loader.batch_size or 1

    @property
    def draws_all_alike(self) -> bool:
        """Whether no datum is loaded more often than another, as far as can be told."""
        return not isinstance(self.loader.sampler, WeightedRandomSampler)

    def expect_resumable(self) -> None:
        """Refuse what goes on otherwise after a break.

        Raises:
            ValueError: the order, or what the workers draw, is not known from a seed.
        """
        sampler = self.loader.sampler
        if type(sampler) not in _KNOWN_SAMPLERS or self.loader.persistent_workers:
            what = f"the sampler {type(sampler).__name__}"
            what = "persistent_workers" if self.loader.persistent_workers else what
            raise ValueError(
                f"expected a DataLoader that can be taken up bit by bit, got one with {what}: use "
                "a sampler of torch and no persistent_workers, or train in one go"
            )

    def minibatches(self, size: int, seed: int, start: int) -> Iterator[Any]:
        """One pass of the loader, whose samplers and workers draw from this seed; see there."""
        with isolated_rng(seed % 2**32):  # numpy takes no more
            for drawing in (self.loader, self.loader.sampler):
                if isinstance(generator := getattr(drawing, "generator", None), torch.Generator):
                    generator.manual_seed(seed)
            batches = iter(self.loader)
            first = deque(islice(batches, max(start, 1)), maxlen=1)  # samplers draw the order here
        for batch in () if start else first:
            yield self._collate_batch(batch).detach()
        for batch in batches:
            yield self._collate_batch(batch).detach()


def order_of(total: int, size: int, seed: int) -> tuple[Tensor, ...]:
    """The rows of each minibatch of a pass: the order depends on the seed alone.

    A batch of all data is in their own order, for a guide may have a parameter for each.
    """
    if size >= total:
        return (torch.arange(total),)
    return torch.randperm(total, generator=torch.Generator().manual_seed(seed)).split(size)
