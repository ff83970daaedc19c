"""Images beside their labels, where the labels are given."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.constraints import Constraint
from torch import Tensor

_NO_SHAPE = torch.Size()

# From one-hot labels [..., C] to the distribution of images with batch shape [...].
Decode = Callable[[Tensor], TorchDistribution]


class LabelledImages(TorchDistribution):
    """Images beside their one-hot labels; `log_prob` is that of the image given the label.

    Draws are of the labels given, or of labels that are drawn uniformly.

    Args:
        decode: from one-hot labels `[..., C]` to the distribution of images.
        batch_shape: that of the images.
        image_dim: number of pixels.
        num_classes: C.
        pixels: support of an image.
        labels: one-hot labels to draw images of, `[..., C]`.
    """

    arg_constraints = {}  # noqa: RUF012 (torch's name and type)

    def __init__(
        self,
        decode: Decode,
        batch_shape: Sequence[int],
        image_dim: int,
        num_classes: int,
        *,
        pixels: Constraint,
        labels: Tensor | None = None,
    ) -> None:
        self.decode, self.labels, self.pixels = decode, labels, pixels
        self.image_dim, self.num_classes = image_dim, num_classes
        event_shape = torch.Size([image_dim + num_classes])
        super().__init__(torch.Size(batch_shape), event_shape, validate_args=False)

    @property
    def support(self) -> Constraint:
        """Images in their support, beside one-hot labels."""
        return _ImageAndLabel(self.pixels, self.image_dim)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "LabelledImages":
        """The same distribution for a larger batch."""
        sizes = (self.image_dim, self.num_classes)
        return LabelledImages(
            self.decode, batch_shape, *sizes, pixels=self.pixels, labels=self.labels
        )

    @property
    def mean(self) -> Tensor:
        """The mean of what `sample` draws: `[*batch_shape, D]`."""
        if self.labels is not None:
            return self._beside(self.decode(self.labels).mean, self.labels)
        each = torch.eye(self.num_classes)
        images = sum(self.decode(label).mean for label in each) / self.num_classes
        return self._beside(images, each.mean(0))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = _NO_SHAPE) -> Tensor:
        """Draw a label, unless given, and an image: `[*sample_shape, *batch_shape, D]`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        labels = self.labels
        if labels is None:
            labels = F.one_hot(torch.randint(self.num_classes, shape), self.num_classes)
        labels = labels.expand(*shape, -1)
        return self._beside(self.decode(labels).sample(), labels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log p(image | label) in nats of `value` of shape `[..., D]`: `[...]`."""
        image, labels = value.split([self.image_dim, self.num_classes], dim=-1)
        return self.decode(labels).log_prob(image)

    def _beside(self, image: Tensor, labels: Tensor) -> Tensor:
        shape = self.batch_shape if image.ndim <= len(self.batch_shape) else image.shape[:-1]
        return torch.cat([image.expand(*shape, -1), labels.to(image).expand(*shape, -1)], dim=-1)


class _ImageAndLabel(Constraint):
    """An image in `pixels`, beside a one-hot label.

    Args:
        pixels: the constraint on the vector of pixels.
        image_dim: their number.
    """

    event_dim = 1

    def __init__(self, pixels: Constraint, image_dim: int) -> None:
        self.pixels, self.image_dim = pixels, image_dim

    def check(self, value: Tensor) -> Tensor:
        """Which vectors are both, `[...]`."""
        image, label = value[..., : self.image_dim], value[..., self.image_dim :]
        return self.pixels.check(image) & constraints.one_hot.check(label)

    def __repr__(self) -> str:
        entry = getattr(self.pixels, "base_constraint", self.pixels)
        return f"{self.image_dim} pixels ({entry}) beside a one-hot label"
