"""The posterior over the layers of a hierarchical model, one after the other."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, get_args

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from evidence.guides.base import AbstractGuide
from evidence.models.chain import Chain, Factor, Values
from evidence.models.networks import expect_choice, last_layer, mlp

Direction = Literal["bottom-up", "top-down"]


class Hierarchical(AbstractGuide):
    """Diagonal Gaussians layer by layer, each given the one before it.

    For a model p(z_L) … p(z_1 | z_2) p(x | z_1):

        bottom-up  q(z_1 | x) q(z_2 | z_1) …        against the model's order (Burda et al. 2016)
        top-down   q(z_L | x) q(z_{L−1} | z_L, x) … in the model's order

    Top-down layers see x through `context_dim` outputs of the encoder.

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, section 2.

    Args:
        latent_dim: Z, the number of latent variables of all layers together.
        data_dim: D, the number of entries of one datum.
        latents: size and support of every latent site in the model's order, as `model.latents`.
        direction: "bottom-up" or "top-down".
        layer_hidden_dims: sizes of the hidden layers between one latent layer and the next.
        context_dim: what a lower layer of a top-down guide sees of x.
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, ...
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        latents: Mapping[str, tuple[int, Any]],
        direction: Direction = "bottom-up",
        layer_hidden_dims: Sequence[int] = (100,),
        context_dim: int = 100,
        **encoder: Any,
    ) -> None:
        expect_choice("direction", direction, get_args(Direction))
        if len(latents) < 2:
            raise ValueError(
                f"expected a model with two or more latent layers, got {list(latents)}: choose "
                "another guide, such as MeanField"
            )
        if bounded := [n for n, (_, support) in latents.items() if not _is_real(support)]:
            raise ValueError(
                f"expected latents that are real, got {bounded[0]!r}: Hierarchical.for_model maps "
                "onto the supports of a model"
            )
        self.order = tuple(latents)
        top_down = direction == "top-down"
        drawn = self.order if top_down else self.order[::-1]
        self.dims = {name: latents[name][0] for name in drawn}
        first, context = self.dims[drawn[0]], context_dim if top_down else 0
        super().__init__(latent_dim, data_dim, output_dims=(first, first, context), **encoder)
        self.layers = nn.ModuleDict(
            {
                name: mlp(self.dims[before] + context, layer_hidden_dims, 2 * self.dims[name])
                for before, name in itertools.pairwise(drawn)
            }
        )
        for layer in self.layers.values():
            with torch.no_grad():
                last = last_layer(layer)
                last.weight[last.out_features // 2 :] *= 0.1  # scales start near one

    @classmethod
    def over(cls, dims: Mapping[str, int], data_dim: int, **options: Any) -> Self:
        """The family on R^Z, a layer for each site, in the model's order."""
        latents = {name: (dim, constraints.real_vector) for name, dim in dims.items()}
        return super().over(dims, data_dim, latents=latents, **options)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """All layers side by side, as in the model: batch shape `[B]`, event shape `[Z]`."""
        loc, log_scale, context = self.encode(x)
        first, *_ = self.dims
        factors: dict[str, Factor] = {
            first: lambda _: dist.Normal(loc, log_scale.exp()).to_event(1),
            **{
                name: _Conditional(self.layers[name], before, context)
                for before, name in itertools.pairwise(self.dims)
            },
        }
        return Chain(self.dims, factors, order=self.order, batch_shape=loc.shape[:-1])

    def sample_sites(self, posterior: TorchDistribution) -> Tensor:
        """Draw every layer at its own site: `[B, Z]`."""
        return posterior.sample_sites()

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The values of the model's latent sites in `z` of shape `[..., Z]`."""
        sizes = [self.dims[name] for name in self.order]
        return dict(zip(self.order, z.split(sizes, dim=-1), strict=True))


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


class _Conditional:
    """q(z_l | z_before, x), a diagonal Gaussian.

    Args:
        network: `[..., Z_before + C] -> [..., 2 Z_l]`.
        before: name of the layer it is given.
        context: what it sees of x, `[B, C]`; C may be 0.
    """

    def __init__(self, network: nn.Module, before: str, context: Tensor) -> None:
        self.network, self.before, self.context = network, before, context

    def __call__(self, values: Values) -> TorchDistribution:
        z = values[self.before]
        context = self.context.expand(*z.shape[:-1], -1)
        loc, log_scale = self.network(torch.cat([z, context], dim=-1)).chunk(2, dim=-1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)
