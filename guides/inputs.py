"""What an encoder sees of the data: the arguments with one row per datum, side by side."""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from evidence.inference.programs.data import Data


class Inputs(nn.Module):
    """The arguments of a model that have a row for each datum, as one standardized tensor `[B, D]`.

    Arguments are known by their name, however a call passes them. Means and standard deviations are
    those of the data that the guide was made for.

    Args:
        model: the program whose arguments are meant.
        data: its arguments.

    Raises:
        ValueError: none of them has a row for each datum.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, model: Callable[..., Any], data: Data) -> None:
        super().__init__()
        self._signature = _signature(model)
        size = len(data)
        self.names = [
            name
            for name, value in self._by_name(data).items()
            if isinstance(value, Tensor) and value.ndim and len(value) == size
        ]
        if not self.names:
            raise ValueError(
                "expected data with a row for each datum, for an encoder to see, got none: pass "
                "the model's data, as for fit"
            )
        x = self._rows(data).double()
        loc, scale = x.mean(0), x.std(0, correction=0)
        varies = scale > 1e-6 * loc.abs()  # else it is a one, as in a design matrix
        self.register_buffer("loc", torch.where(varies, loc, loc - 1).to(data.dtype))
        self.register_buffer("scale", torch.where(varies, scale, 1.0).to(data.dtype))

    @property
    def dim(self) -> int:
        """D, the entries of one row."""
        return len(self.loc)

    def forward(self, data: Data) -> Tensor:
        """What there is of these data: `[B, D]`.

        Raises:
            ValueError: an argument is missing, or has rows of another size.
        """
        x = self._rows(data)
        if x.shape[-1] != self.dim:
            raise ValueError(
                f"expected rows of {self.dim} entries ({', '.join(self.names)}), got "
                f"{x.shape[-1]}: make the guide with data of this shape"
            )
        return (x.to(self.loc) - self.loc) / self.scale

    def _rows(self, data: Data) -> Tensor:
        values = self._by_name(data)
        if missing := [n for n in self.names if not isinstance(values.get(n), Tensor)]:
            raise ValueError(
                f"expected the arguments {', '.join(self.names)}, got none for {missing[0]}: call "
                "the guide as the model is called"
            )
        return torch.cat([values[n].reshape(len(values[n]), -1) for n in self.names], -1)

    def _by_name(self, data: Data) -> dict[str, Any]:
        """The arguments by the names of the parameters; by their place where there are none."""
        bound: dict[str, Any] = {}
        if self._signature is not None:
            with suppress(TypeError):
                bound = self._signature.bind(*data.args, **data.kwargs).arguments
        if set(map(id, bound.values())) == set(map(id, (*data.args, *data.kwargs.values()))):
            return dict(bound)
        return {**{str(i): value for i, value in enumerate(data.args)}, **data.kwargs}


def _signature(model: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):
        return None
