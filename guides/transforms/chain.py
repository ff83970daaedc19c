"""Maps made of other maps."""

from collections.abc import Sequence

from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform


class Chain(AbstractTransform):
    """Maps one after the other, as a single one: a draw is remembered for all of them at once.

    Args:
        parts: the maps, first to last.
    """

    def __init__(self, parts: Sequence[AbstractTransform]) -> None:
        super().__init__()
        self.parts = tuple(parts)

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        total = x.new_zeros(x.shape[:-1])
        for part in self.parts:
            x, ladj = part.push(x)
            total = total + ladj
        return x, total

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        total = y.new_zeros(y.shape[:-1])
        for part in reversed(self.parts):
            y, ladj = part.pull(y)
            total = total + ladj
        return y, total


class Reversed(AbstractTransform):
    """A map of the entries in reversed order, turned back after it.

    Args:
        part: the map.
    """

    def __init__(self, part: AbstractTransform) -> None:
        super().__init__()
        self.part = part

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        y, ladj = self.part.push(x.flip(-1))
        return y.flip(-1), ladj

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        x, ladj = self.part.pull(y.flip(-1))
        return x.flip(-1), ladj


def alternating(layers: Sequence[AbstractTransform]) -> list[AbstractTransform]:
    """Every second layer in reversed order."""
    return [Reversed(layer) if k % 2 else layer for k, layer in enumerate(layers)]
