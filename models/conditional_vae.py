"""A variational autoencoder of images whose labels are given."""

from collections.abc import Sequence

import pyro
import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.models.base import AbstractModel
from evidence.models.likelihoods import LabelledImages, PixelLikelihood
from evidence.models.networks import decoder_network, mirrored


class ConditionalVAE(AbstractModel):
    """Images given their labels: z ~ N(0, I), image | z, label with an MLP's outputs.

    A datum x is an image and its one-hot label side by side, so guides see both and infer
    q(z | image, label). The label is given, not explained: it adds nothing to log p, and the
    evidence is log p(image | label).

    z does not depend on the label, as in the model "M2" of Kingma et al. (2014).

    Reference: K. Sohn, H. Lee, X. Yan, "Learning Structured Output Representation using Deep
    Conditional Generative Models", 2015, https://papers.nips.cc/paper/5775; the decoder is that of
    D. P. Kingma et al., "Semi-supervised Learning with Deep Generative Models", 2014,
    https://arxiv.org/abs/1406.5298, eq. 2.

    Args:
        data_dim: D, the number of pixels and classes together.
        latent_dim: Z, the number of latent variables.
        num_classes: C, the number of classes.
        hidden_dims: sizes of the decoder's hidden layers, from z and label to x.
        activation: nonlinearity between the layers.
        likelihood: of pixels, as in `VAE`: "bernoulli", "gaussian(scale_floor=0.1)", …

    Raises:
        ValueError: an unknown name or option, or no pixel beside the classes.
    """

    labelled = True

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 6,
        *,
        num_classes: int = 10,
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(data_dim, latent_dim)
        if not 1 <= num_classes < data_dim:
            raise ValueError(
                f"expected data of pixels and num_classes={num_classes} classes side by side, got "
                f"data_dim={data_dim}"
            )
        self.num_classes, self.image_dim = num_classes, data_dim - num_classes
        self.encoder_options = mirrored(hidden_dims, activation)
        self.pixel_likelihood = PixelLikelihood(likelihood)
        self.pixels = self.pixel_likelihood.pixels
        self.decoder = decoder_network(
            latent_dim + num_classes,
            hidden_dims,
            self.image_dim,
            activation=activation,
            outputs_per_pixel=self.pixel_likelihood.outputs_per_pixel,
        )

    def prior(self) -> TorchDistribution:
        """p(z) = N(0, I): event shape `[Z]`."""
        return self.standard_normal()

    def decode(self, z: Tensor, labels: Tensor) -> TorchDistribution:
        """p(image | z, label): batch shape `[...]`, event shape `[image_dim]`.

        Args:
            z: `[..., Z]`.
            labels: one-hot, `[..., C]`.
        """
        shape = torch.broadcast_shapes(z.shape[:-1], labels.shape[:-1])
        both = torch.cat([z.expand(*shape, -1), labels.to(z).expand(*shape, -1)], dim=-1)
        return self.pixel_likelihood(self.decoder(both))

    def likelihood(self, z: Tensor, labels: Tensor | None = None) -> TorchDistribution:
        """p(image | z, label) of data `[image, label]`: batch shape `[...]`, event shape `[D]`.

        Args:
            z: `[..., Z]`.
            labels: classes 0 … C − 1 to draw images of, `[...]`; drawn uniformly by default.
        """
        one_hot = None if labels is None else self.one_hot(labels)
        return LabelledImages(
            lambda given: self.decode(z, given),
            z.shape[:-1],
            self.image_dim,
            self.num_classes,
            pixels=self.pixel_likelihood.support,
            labels=one_hot,
        )

    def one_hot(self, labels: Tensor) -> Tensor:
        """Classes `[...]`, integers in 0 … C − 1, as `[..., C]`.

        Raises:
            ValueError: other numbers.
        """
        whole = labels.long()
        if not ((whole == labels) & (whole >= 0) & (whole < self.num_classes)).all():
            raise ValueError(
                f"expected labels in 0 … {self.num_classes - 1}, got {labels.tolist()}"
            )
        return F.one_hot(whole, self.num_classes)

    def forward(
        self, x: Tensor | None = None, *, size: int | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Score a batch `x` of shape `[B, D]`, or simulate one.

        Args:
            x: images and one-hot labels side by side.
            size: B, how many to simulate.
            labels: classes `[B]` to simulate images of; drawn uniformly by default.

        Raises:
            ValueError: as in `AbstractModel`; labels beside an `x` that has its own, of another
                number than `size`, or out of range.
        """
        if labels is not None:
            if x is not None or size not in (None, len(labels)):
                raise ValueError(
                    f"expected labels for a simulation of as many data, got {len(labels)} labels "
                    f"and {f'size={size}' if x is None else 'a batch x, which has its own'}"
                )
            size = len(labels)
        self.register()
        with pyro.plate("data", self._batch_size(x, size)):
            return pyro.sample("x", self.likelihood(self.sample_latents(), labels), obs=x)
