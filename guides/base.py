"""What the families of guides have in common: an encoder, or free parameters in its place."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from evidence.guides.building import guide_of
from evidence.guides.posterior import AbstractPosterior
from evidence.guides.standardization import Standardize
from evidence.inference.programs.random_state import isolated_rng
from evidence.models.networks import encoder_network, expect_vectors, last_layer

_NOISE = 0.1  # the length of what the free parameters start with: a flow of zeros has no gradient
_ENCODER_OPTIONS = ("hidden_dims", "activation", "channels")


class AbstractGuide(AbstractPosterior):
    """A family of densities on R^Z whose parameters come from an encoder, or are free.

    With an encoder it is an amortized Pyro guide q(z | x) of a model with one real latent vector
    per datum. `for_model` makes a guide of the family for any model, whatever its latent sites.

    To write a guide of your own, put a file like this one into `guides/` (or anywhere, and name it
    by its dotted path): the base class supplies encoder, plate and site.

        class Laplace(AbstractGuide):
            '''Independent Laplace posteriors.'''

            def __init__(self, latent_dim: int, data_dim: int, **encoder: Any) -> None:
                sizes = (latent_dim, latent_dim)
                super().__init__(latent_dim, data_dim, output_dims=sizes, **encoder)

            def posterior(self, x):
                loc, log_scale = self.encode(x)
                return dist.Laplace(loc, log_scale.exp()).to_event(1)

    Args:
        latent_dim: Z, the number of entries of one latent vector.
        data_dim: D, the number of entries of one datum; 0 for no encoder, and one λ for all data.
        output_dims: sizes of the tensors that `encode` returns, the location first; all others
            start near zero.
        hidden_dims: sizes of the encoder's hidden layers, from x to z.
        activation: nonlinearity between the layers.
        channels: channels of convolutions before the hidden layers, for square images.
        site: the model's latent site.
    """

    # The unit of the unconstrained space: see `guides.standardization`.
    unit: ClassVar[Standardize] = "diagonal"

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        output_dims: Sequence[int],
        hidden_dims: Sequence[int] = (600,),
        activation: str = "elu",
        channels: Sequence[int] = (),
        site: str = "z",
    ) -> None:
        super().__init__(latent_dim, data_dim, site=site)
        self.output_dims = tuple(output_dims)
        self.encoder: nn.Module = (
            encoder_network(
                data_dim, hidden_dims, sum(output_dims), activation=activation, channels=channels
            )
            if data_dim
            else nn.Sequential(_FreeParameters(self.output_dims))
        )
        if data_dim:
            self._start_calmly(last_layer(self.encoder))

    @classmethod
    def for_model(
        cls,
        model: Callable[..., Any],
        data: Any,
        *,
        amortized: bool | None = None,
        standardize: Standardize = "auto",
        seed: int | None = None,
        start: int | None = None,
        **options: Any,
    ) -> AbstractPosterior:
        """A guide of this family for any Pyro model, called with the same arguments as the model.

        Where every datum has latents of its own alone, an encoder of the data's rows gives λ. Where
        the data share a latent there is one λ for all latents side by side, of all data; or, with
        `amortized` and by default above 1,000 entries, one for what they share and an encoder for
        the rest, which serves minibatches. Discrete latents that the model enumerates are left to
        Pyro. See `ModelGuide` for sites and supports, `TwoLevel` for the encoder.

        Args:
            model: called with the data; scores them.
            data: a tensor; a tuple, `model(*data)`; or a mapping, `model(**data)`, see `fit`.
            amortized: whether λ of latents of each datum is an encoder's.
            standardize: the unit of the unconstrained space, see `guides.standardization`.
            seed: of the first parameters; by default they are drawn as those of any torch module.
            start: seed of the draw from the prior where the mode is looked for, of a λ for all
                data; by default at the prior's median. See `best_start`.
            options: the family's own, and the encoder's where there is one.

        Raises:
            ValueError: the model has no latents, or one that no density on real numbers draws.
        """
        of_model = getattr(model, "encoder_options", {})  # of a model of this suite
        mirrored = {name: option for name, option in of_model.items() if cls._takes(name)}
        make = partial(cls.over, **mirrored | options)
        with nullcontext() if seed is None else isolated_rng(seed):
            return guide_of(
                make, model, data, amortized=amortized, standardize=standardize, start=start
            )

    @classmethod
    def _takes(cls, name: str) -> bool:
        """Whether the constructor has an option of this name, or hands all on to the encoder."""
        parameters = inspect.signature(cls).parameters
        return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    @classmethod
    def over(cls, dims: Mapping[str, int], data_dim: int, **options: Any) -> Self:
        """The family on R^Z, Z = Σ dims; options of an encoder are of no use without data.

        Args:
            dims: the number of unconstrained entries of every latent site.
            data_dim: D, or 0.
            options: of the constructor.
        """
        if not data_dim:
            options = {n: o for n, o in options.items() if n not in _ENCODER_OPTIONS}
        return cls(sum(dims.values()), data_dim, **options)

    def local_parameters(self, x: Tensor) -> Tensor:
        """The encoder's outputs side by side, for `x` of shape `[B, D]`: `[B, P]`.

        Without an encoder they are the free parameters `[P]`, whatever `x` is.

        Raises:
            ValueError: `x` is of another shape.
        """
        if self.data_dim and not isinstance(self.encoder, _Constant):
            if x.ndim < 2:
                raise ValueError(f"expected x of shape (B, {self.data_dim}), got {tuple(x.shape)}")
            expect_vectors("x", x, self.data_dim)
        return self.encoder(x)

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """λ for `x` of shape `[B, D]` in parts, one `[B, size]` per output dim.

        Raises:
            ValueError: `x` is of another shape.
        """
        return self.local_parameters(x).split(self.output_dims, dim=-1)

    def given(self, local_parameters: Tensor) -> Self:
        """This guide for one batch whose λ, `[B, P]`, is given; all else is shared with it."""
        twin = copy.copy(self)
        twin._modules = {**self._modules, "encoder": _Constant(local_parameters)}
        return twin

    @torch.no_grad()
    def _start_calmly(self, last: nn.Linear) -> None:
        """Start all outputs but the first, the location, small.

        Scales are exponentials of outputs: at full size a few data start with enormous ones, whose
        gradients drown all others.
        """
        last.weight[self.output_dims[0] :] *= 0.1


class _Constant(nn.Module):
    """An encoder that has been told its outputs."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, _: Tensor) -> Tensor:
        return self.outputs


class _FreeParameters(nn.Module):
    """One λ for all data, in an encoder's place.

    It starts with the location at zero and a little noise in all else, where all is zero that makes
    a standard normal: there the gradients of many a flow are zero as well.

    Args:
        sizes: of the parts of λ, the location first.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        noise = _NOISE * torch.randn(sum(sizes)) / max(sizes[0], 1) ** 0.5
        noise[: sizes[0]] = 0
        self.bias = nn.Parameter(noise)  # [P]

    def forward(self, _: Any) -> Tensor:
        return self.bias
