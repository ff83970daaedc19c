"""The guide of any model: a density on R^Z, mapped onto the model's latent sites."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import pyro
import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.guides.inputs import Inputs
from evidence.guides.placement import Placement, Plates, plates_of
from evidence.guides.posterior import AbstractPosterior
from evidence.guides.standardization import Standardization, Standardized
from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Data


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
        plates = plates_of((self.placement,), len(data))
        posterior = self._over_v(data, self._outer_dims)
        _, values = draw("_latent", posterior, self.placement, self.unit, data, plates)
        return values

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


def draw(
    name: str,
    posterior: TorchDistribution,
    placement: Placement,
    unit: Standardization,
    data: Data,
    plates: Plates,
    known: Mapping[str, Tensor] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw v at an auxiliary site, and put what is made of it at the model's.

    Args:
        name: of the auxiliary site.
        posterior: q(v).
        placement: of u.
        unit: of u.
        data: the arguments of the model.
        plates: of the model.
        known: the values of latents drawn before.

    Returns:
        v, and the values of the sites.
    """
    if isinstance(base_distribution(posterior), dist.Delta):  # a point has no density to keep
        v, log_slopes = posterior.rsample(), None
    else:
        with placement.inside_data(plates):
            v = pyro.sample(name, posterior, infer={"is_auxiliary": True})
        log_slopes = unit.log_slopes
    return v, placement.sample(unit(v), log_slopes, data, plates, known or {})
