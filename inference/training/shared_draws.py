"""Noise of a share of a minibatch: the rows of what would be drawn for all of it."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
# Draws into a tensor, by numbers alone.
_IN_PLACE = (aten.normal_.default, aten.uniform_.default, aten.exponential_.default)


class ShareDraws(Messenger):
    """Sample what is of each datum for a whole minibatch, and keep some rows.

    Processes that begin a step with the same random state then draw the noise that one process
    draws for all data, and end the step with the same random state again. What the data share is
    drawn alike by all.

    Args:
        dims: of the plates over the data.
        share: the rows to keep.
        total: rows of the minibatch.
    """

    def __init__(self, dims: frozenset[int], share: slice, total: int) -> None:
        super().__init__()
        self.dims, self.share, self.total = dims, share, total

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["value"] is not None or msg["is_observed"] or msg["done"]:
            return
        size = self.share.stop - self.share.start
        frames = [f for f in msg["cond_indep_stack"] if f.dim in self.dims and f.size == size]
        if frames and size < self.total:
            dim = frames[0].dim - msg["fn"].event_dim
            with _RowsOfAll(msg["name"], dim, self.share, self.total):
                msg["value"] = msg["fn"](*msg["args"], **msg["kwargs"])


class _RowsOfAll(TorchDispatchMode):
    """Random operators draw for `total` rows along `dim`, from the right, and return a share."""

    def __init__(self, site: str, dim: int, share: slice, total: int) -> None:
        super().__init__()
        self.site, self.dim, self.share, self.total = site, dim, share, total

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        if func in _IN_PLACE:
            target: Tensor = args[0]
            whole = target.new_empty(self._whole(target.shape, func))
            return target.copy_(self._rows(func(whole, *args[1:], **kwargs)))
        if func in (aten.rand_like.default, aten.randn_like.default):
            whole = args[0].new_empty(self._whole(args[0].shape, func))
            return self._rows(func(whole, *args[1:], **kwargs))
        if func in (aten.rand.default, aten.randn.default):
            return self._rows(func(self._whole(args[0], func), *args[1:], **kwargs))
        if func is aten.normal.Tensor_Tensor:
            loc, scale = args
            whole = loc.new_empty(self._whole(loc.shape, func)).normal_(**kwargs)
            return self._rows(whole) * scale + loc
        raise self._refusal(func)

    def _whole(self, shape: Any, func: Any) -> list[int]:
        found = list(shape)
        if len(found) < -self.dim or found[self.dim] != self.share.stop - self.share.start:
            raise self._refusal(func)
        found[self.dim] = self.total
        return found

    def _rows(self, whole: Tensor) -> Tensor:
        size = self.share.stop - self.share.start
        return whole.narrow(self.dim, self.share.start, size)

    def _refusal(self, func: Any) -> ValueError:
        return ValueError(
            f"the site {self.site!r} draws by torch's {func}, which several processes cannot share "
            "out: train it in one process"
        )
