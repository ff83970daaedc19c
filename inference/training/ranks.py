"""Training by several processes at once: each takes its share of every minibatch."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor


class RankLostError(ConnectionError):
    """Another process of the training has ended; nothing was updated."""


class Ranks:
    """The place of this process among those that train one pair, which all see the same data.

    Every process takes its share of each minibatch, with the very noise that one process would have
    drawn for these data; gradients are added up, and every process takes the same step.

    Reference: S. Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel
    Training", 2020, https://arxiv.org/abs/2006.15704.

    Args:
        rank: of this process.
        size: how many processes there are.
        add: makes a tensor the sum of all processes' tensors, in place.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, add: Callable[[Tensor], object] = lambda tensor: None
    ) -> None:
        self.rank, self.size, self._add = rank, size, add

    @classmethod
    def of_torch(cls) -> "Ranks":
        """Those of the default group of `torch.distributed`, such as `torchrun` starts.

        Raises:
            RuntimeError: there is none.
        """
        return cls(dist.get_rank(), dist.get_world_size(), _all_reduce)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that tells and saves what all of them do."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all processes are here.

        Raises:
            RankLostError: another process has ended.
        """
        self._add(torch.zeros(()))

    def share(self, total: int) -> slice:
        """The rows of a minibatch that are this process's; all rows of one that is too small."""
        if total < self.size:
            return slice(0, total)
        return slice(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def weight(self, total: int) -> float:
        """By what a mean over this process's rows goes into that over all `total` rows."""
        share = self.share(total)
        return (share.stop - share.start) / total if total >= self.size else 1 / self.size

    def mean(self, loss: float, total: int) -> float:
        """The mean over a minibatch, of this process's mean over its share.

        Raises:
            RankLostError: another process has ended.
        """
        if self.size == 1:
            return loss
        value = torch.tensor(loss * self.weight(total), dtype=torch.float64)
        self._add(value)
        return value.item()

    @torch.no_grad()
    def average(self, parameters: Iterable[Tensor], total: int) -> None:
        """Put in place of the gradients of this process's share those of the whole minibatch.

        Raises:
            RankLostError: another process has ended.
        """
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            alike = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.flatten() for gradient in alike]) * self.weight(total)
            self._add(flat)
            parts = flat.split([gradient.numel() for gradient in alike])
            for gradient, part in zip(alike, parts, strict=True):
                gradient.copy_(part.view_as(gradient))


ALONE = Ranks()


def _all_reduce(tensor: Tensor) -> None:
    try:
        there = tensor.to(_device(), copy=True) if _device() != tensor.device.type else tensor
        dist.all_reduce(there)
        if there is not tensor:
            tensor.copy_(there)
    except RuntimeError as error:
        raise RankLostError(
            f"another of the {dist.get_world_size()} processes of the training has ended, and so "
            "this one does: go on from the newest snapshot (--resume true)"
        ) from error


def _device() -> str:
    """Where the processes' backend adds."""
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
