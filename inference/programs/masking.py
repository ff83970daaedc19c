"""Which entries of a site count: masks around it (`poutine.mask`), and inside its distribution."""

import copy
from typing import Any

import torch
from pyro.distributions import MaskedDistribution, TorchDistribution
from torch import Tensor

from evidence.inference.programs.sites import Site

# What a mask may be inside of; `SummedOut` has a sum of its own, in which masks are counted.
_AROUND = ("Independent", "ExpandedDistribution")


def unmasked(fn: TorchDistribution) -> TorchDistribution:
    """The distribution without the masks inside of it, which stays as it is."""
    if isinstance(fn, MaskedDistribution):
        return unmasked(fn.base_dist)
    if not is_masked_inside(fn):
        return fn
    bare: Any = copy.copy(fn)
    bare.base_dist = unmasked(bare.base_dist)
    return bare


def is_masked_inside(fn: Any) -> bool:
    """Whether `.mask` was called on a distribution, or on one inside of it."""
    while type(fn).__name__ in _AROUND:
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def is_masked(site: Site) -> bool:
    """Whether there is a mask, around the site or inside its distribution."""
    return site["mask"] is not None or is_masked_inside(site["fn"])


def counted_inside(fn: Any) -> Tensor:
    """Which entries of a value `[*batch, *event]` no mask inside the distribution leaves out.

    Of a shape that broadcasts with the value's: a mask of whole events has 1 for their sizes.
    """
    if isinstance(fn, MaskedDistribution):
        return _of_events(fn._mask, fn.event_dim) & counted_inside(fn.base_dist)
    if type(fn).__name__ in _AROUND:
        return counted_inside(fn.base_dist)
    return torch.tensor(True)


def counted(site: Site) -> Tensor:
    """Which entries of a site's value `[*batch, *event]` count; of a shape that broadcasts."""
    around = True if site["mask"] is None else site["mask"]
    fn = site["fn"]
    return _of_events(around, fn.event_dim) & counted_inside(fn)


def share_counted(fn: TorchDistribution) -> Tensor:
    """The share of an event's entries that masks inside the distribution let count: `[*batch]`."""
    found = counted_inside(fn).expand(fn.batch_shape + fn.event_shape).double()
    return found.flatten(len(fn.batch_shape)).mean(-1) if fn.event_dim else found


def _of_events(mask: Tensor | bool, event_dim: int) -> Tensor:
    if isinstance(mask, bool):
        return torch.tensor(mask)
    return mask.reshape(mask.shape + (1,) * event_dim)
