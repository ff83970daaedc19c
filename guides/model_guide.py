"""The guide of any model: a density on R^Z, mapped onto the model's latent sites."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, cast

import pyro
import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.guides.inputs import Inputs
from evidence.guides.placement import Placement
from evidence.guides.posterior import AbstractPosterior
from evidence.guides.standardization import (
    Standardization,
    Standardize,
    Standardized,
    standardization,
)
from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch, Data, as_data, takes
from evidence.inference.programs.latents import latents_of

# Makes a family on R^Z from the entries of every site and the size of what its encoder sees.
MakeFamily = Callable[[Mapping[str, int], int], AbstractPosterior]


class ModelGuide(AbstractPosterior):
    """Any family on R^Z as a guide of any Pyro model, called with the model's arguments.

        v ~ q(v),  u = loc + L v,  z = T(u),  log q(z) = log q(v) − log|det L| − log|det ∂T/∂u|

    T takes each latent site's part of u into its support by Pyro's `biject_to`. v is drawn at one
    auxiliary site, which has its density, and the model's sites, inside the model's plates, repeat
    what is made of it, with the Jacobians for their log-densities, as those of Pyro's autoguides.

    Reference: A. Kucukelbir et al., "Automatic Differentiation Variational Inference", 2017,
    https://arxiv.org/abs/1603.00788, section 2.3.

    Args:
        guide: the family.
        placement: which entries of u belong where.
        unit: loc and L.
        inputs: what the encoder sees; None for one λ for all data.
    """

    def __init__(
        self,
        guide: AbstractPosterior,
        placement: Placement,
        unit: Standardization,
        inputs: Inputs | None = None,
    ) -> None:
        super().__init__(guide.latent_dim, guide.data_dim, site=next(iter(placement.sites)))
        self.guide, self.placement, self.unit, self.inputs = guide, placement, unit, inputs

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample every latent of the model, given its arguments: the values by site."""
        self.register()
        data = Data(args, kwargs)
        self.placement.expect_size(len(data))
        posterior = self._over_v(data, self._outer_dims)
        plates = self.placement.plates(len(data))
        if isinstance(base_distribution(posterior), dist.Delta):  # a point has no density to keep
            return self.placement.sample(self.unit(posterior.rsample()), None, data, plates)
        with self.placement.inside_data(plates):
            v = pyro.sample("_latent", posterior, infer={"is_auxiliary": True})
        return self.placement.sample(self.unit(v), self.unit.log_slopes, data, plates)

    @property
    def _outer_dims(self) -> tuple[int, ...]:
        """Sizes of the batch dimensions between that of the data and the last: all one."""
        dim = self.placement.data_dim
        return () if self.inputs is None or dim is None else (1,) * (-1 - dim)

    def _over_v(self, data: Data, outer: tuple[int, ...] = ()) -> TorchDistribution:
        """q(v): batch shape `[B, *outer]`, or `[]` with one λ for all data."""
        if self.inputs is None:
            return self.guide.posterior(cast("Tensor", data))  # it looks at none
        x = self.inputs(data)
        return self.guide.posterior(x.reshape(len(x), *outer, -1))

    def posterior(self, *args: Any, **kwargs: Any) -> TorchDistribution:
        """Q over the values of all sites side by side: event shape `[Y]`.

        The batch shape is `[B]` where every datum has latents of its own, else `[]`.

        Raises:
            NotImplementedError: a support depends on other latents.
        """
        posterior = self._over_v(Data(args, kwargs))
        maps = [Standardized(self.unit), self.placement.onto_sites()]
        if not isinstance(base_distribution(posterior), dist.Delta):
            return dist.TransformedDistribution(posterior, maps)
        value = posterior.rsample()
        for part in maps:
            value = part(value)
        return dist.Delta(value, event_dim=1)

    def local_parameters(self, *args: Any, **kwargs: Any) -> Tensor:
        """λ of every datum, `[B, P]`, or the one of all data, `[1, P]`."""
        if self.inputs is None:
            return self.guide.local_parameters(cast("Tensor", None)).reshape(1, -1)
        return self.guide.local_parameters(self.inputs(Data(args, kwargs)))

    def given(self, local_parameters: Tensor) -> "ModelGuide":
        """This guide for one batch whose λ, `[B, P]` or `[1, P]`, is given."""
        num_data = local_parameters.shape[:1] if self.inputs else ()
        inside = self.guide.given(local_parameters.reshape(*num_data, *self._outer_dims, -1))
        twin = copy.copy(self)
        twin._modules = {**self._modules, "guide": inside}
        return twin

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The values of the model's latent sites in `z` of shape `[..., Y]`."""
        return self.placement.values(z)


def guide_of(
    make: MakeFamily, model: Callable[..., Any], data: Any, *, standardize: Standardize
) -> AbstractPosterior:
    """A family as the guide of a model: see `AbstractGuide.for_model`."""
    x = as_data(data)
    program = takes(model, x)
    latents = latents_of(program, x)
    by_datum = not latents.layout.is_joint
    placement = Placement(model, latents, frozenset(latents.sites), by_datum=by_datum)
    inputs = Inputs(model, _arguments(x)) if by_datum else None
    guide = make(placement.dims, inputs.dim if inputs else 0).to(latents.like)
    kind: Standardize = getattr(guide, "unit", "diagonal") if standardize == "auto" else standardize
    kind = "prior" if by_datum and kind != "none" else kind
    unit = standardization(program, x, latents, placement.packing, kind)
    if isinstance(x, Tensor) and x.ndim == 2 and unit.is_identity and placement.is_plain:
        guide.site = next(iter(placement.sites))
        if guide.site_values(unit.loc.expand(0, -1)).keys() == placement.dims.keys():
            return guide  # it draws the model's own sites: there is nothing to map
    return ModelGuide(guide, placement, unit, inputs).to(latents.like)


def _arguments(x: Batch) -> Data:
    return x if isinstance(x, Data) else Data((x,))
