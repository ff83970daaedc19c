"""A guide over one vector of reals, for models with several latent sites or constrained ones."""

from collections.abc import Mapping

import pyro
import pyro.distributions as dist
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.transforms import CatTransform, Transform, biject_to
from torch import Tensor

from evidence.guides.posterior import AbstractPosterior


class Unpacked(AbstractPosterior):
    """Any guide over R^Z, mapped onto the supports of a model's latent sites.

    u ~ q(u | x) from the guide,  z = T(u),  log q(z | x) = log q(u | x) − log|det ∂T/∂u|.
    T takes each site's part of u into its support by Pyro's `biject_to`; `posterior(x)` is over
    all sites side by side.

    Reference: A. Kucukelbir et al., "Automatic Differentiation Variational Inference", 2017,
    https://arxiv.org/abs/1603.00788, section 2.3.

    Args:
        guide: a guide over vectors as long as all sites together.
        latents: size and support of every latent site, such as `model.latents`.
    """

    def __init__(
        self, guide: AbstractPosterior, latents: Mapping[str, tuple[int, constraints.Constraint]]
    ) -> None:
        super().__init__(guide.latent_dim, guide.data_dim, site=next(iter(latents)))
        self.dims = {name: dim for name, (dim, _) in latents.items()}
        if sum(self.dims.values()) != guide.latent_dim:
            raise ValueError(
                f"expected a guide over {sum(self.dims.values())} latents ({self.dims}), got one "
                f"over {guide.latent_dim}"
            )
        self.guide = guide
        self._supports = {n: _elementwise(n, support) for n, (_, support) in latents.items()}

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) over all sites side by side: batch shape `[B]`, event shape `[Z]`."""
        posterior = self.guide.posterior(x)
        transform = self._transform()
        if transform is None:
            return posterior
        return dist.TransformedDistribution(posterior, [transform])

    def _transform(self) -> Transform | None:
        """T, or None if every site is real already."""
        if all(support is constraints.real for support in self._supports.values()):
            return None
        parts = [biject_to(support) for support in self._supports.values()]
        if len(parts) == 1:
            return parts[0]
        return CatTransform(parts, dim=-1, lengths=list(self.dims.values()))

    def local_parameters(self, x: Tensor) -> Tensor:
        """The local parameters of the guide inside: `[B, P]`."""
        return self.guide.local_parameters(x)

    def given(self, local_parameters: Tensor) -> "Unpacked":
        """This guide for one batch whose local parameters, `[B, P]`, are given."""
        latents = {name: (dim, self._supports[name]) for name, dim in self.dims.items()}
        return Unpacked(self.guide.given(local_parameters), latents)

    def sample_sites(self, posterior: TorchDistribution) -> Tensor:
        """Draw z from the posterior and hand each site its part: `[B, Z]`."""
        if len(self.dims) == 1:
            return pyro.sample(self.site, posterior)
        # All of the density is at one auxiliary site; the model's sites only repeat its parts.
        z = pyro.sample("_unpacked", posterior, infer={"is_auxiliary": True})
        for name, value in self.site_values(z).items():
            pyro.sample(name, dist.Delta(value, event_dim=1))
        return z

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The values of the model's latent sites in `z` of shape `[..., Z]`."""
        return dict(zip(self.dims, z.split(list(self.dims.values()), dim=-1), strict=True))


def _elementwise(name: str, support: constraints.Constraint) -> constraints.Constraint:
    """The constraint on a single entry of a site."""
    entry = support.base_constraint if isinstance(support, constraints.independent) else support
    if entry.event_dim != 0:
        raise ValueError(
            f"expected the entries of site {name!r} to be constrained one by one, got {support}"
        )
    return entry
