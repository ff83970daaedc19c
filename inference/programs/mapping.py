"""One call of a program for many particles by `torch.vmap`: each is what it is alone."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_DATA: Any = torch.Tensor.data


class AsVmapNeeds(TorchFunctionMode):
    """What programs, Pyro and torch's distributions do, in ways that `torch.vmap` takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DATA.__get__:
            return args[0].detach()
        if func is torch.Tensor.new_tensor:
            like = {"dtype": args[0].dtype, "device": args[0].device}
            return torch.tensor(args[1], **like | kwargs)
        if func is torch.Tensor.__setitem__ and _is_mask(args[1], args[0]):  # of `Multinomial`
            return args[0].masked_fill_(args[1], args[2])
        if func is torch.Tensor.requires_grad_ and args[0].requires_grad:  # of Pyro's store
            return args[0]
        if func is torch.Tensor.normal_ and len(args) == 1 and not kwargs:  # of `Normal.rsample`
            return torch.randn(args[0].shape, dtype=args[0].dtype, device=args[0].device)
        return func(*args, **kwargs)


def _is_mask(index: Any, values: Tensor) -> bool:
    """Whether an index says of every entry whether it is meant."""
    is_mask = isinstance(index, Tensor) and index.dtype is torch.bool
    return is_mask and index.shape == values.shape


def mapped(draw: Callable[[], Tensor], num_particles: int) -> Tensor:
    """Independent draws of what a program makes at random: `[K, ...]`.

    Raises:
        RuntimeError: the program does what vmap refuses, such as a branch on a value.
    """
    with AsVmapNeeds():
        particles = torch.arange(num_particles)
        return torch.vmap(lambda _: draw(), randomness="different")(particles)
