"""How a family becomes the guide of a model: one λ, an encoder, or both."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from evidence.guides.inputs import Inputs
from evidence.guides.model_guide import ModelGuide
from evidence.guides.placement import Placement
from evidence.guides.posterior import AbstractPosterior
from evidence.guides.standardization import Standardize, by_mode, by_prior, identity
from evidence.guides.two_level import Part, TwoLevel
from evidence.inference.programs.data import Batch, Data, as_data, takes
from evidence.inference.programs.latents import Latents, latents_of

# Makes a family on R^Z from the entries of every site and the size of what its encoder sees.
MakeFamily = Callable[[Mapping[str, int], int], AbstractPosterior]

MOST_JOINT = 1000  # unconstrained entries of one λ for all latents, unless it is asked for


def guide_of(
    make: MakeFamily,
    model: Callable[..., Any],
    data: Any,
    *,
    amortized: bool | None,
    standardize: Standardize,
    start: int | None,
) -> AbstractPosterior:
    """A family as the guide of a model: see `AbstractGuide.for_model`."""
    x = as_data(data)
    latents = latents_of(takes(model, x), x)
    if amortized and not latents.local:
        raise ValueError(
            "expected a model with latents of each datum for amortized=True, inside a plate over "
            "the data, got shared ones alone: leave it out"
        )
    builder = _Builder(make, model, x, latents, standardize, start)
    if not latents.layout.is_joint and amortized is not False:
        return builder.by_datum()
    joint = Placement(model, latents, frozenset(latents.sites), by_datum=False)
    if latents.local and (amortized or (amortized is None and joint.packing.dim > MOST_JOINT)):
        return builder.two_level()
    return builder.joint(joint)


class _Builder:
    """Makes guides of one model."""

    def __init__(
        self,
        make: MakeFamily,
        model: Callable[..., Any],
        x: Batch,
        latents: Latents,
        standardize: Standardize,
        start: int | None,
    ) -> None:
        self.make, self.model, self.x, self.latents = make, model, x, latents
        self.standardize, self.start = standardize, start
        self.program = takes(model, x)

    def joint(self, placement: Placement) -> AbstractPosterior:
        """One λ for all latents of all data.

        Without a mode latents are in units of their priors: what keeps a hierarchy from having one
        makes a funnel of its posterior, too.
        """
        guide, latents = self.make(placement.dims, 0), self.latents
        kind = self.standardize
        if kind == "auto":
            kind = getattr(guide, "unit", "diagonal")
        unit = identity(latents, placement.packing) if kind == "none" else None
        if kind in ("dense", "diagonal"):
            dense = kind == "dense"
            unit = by_mode(
                self.program, self.x, latents, placement.packing, dense=dense, start=self.start
            )
        if unit is None:
            names = frozenset(latents.sites)
            placement = Placement(self.model, latents, names, by_datum=False, relative=True)
            unit = by_prior(self.program, latents, placement.packing, start=self.start)
        return ModelGuide(guide, placement, unit).to(latents.like)

    def by_datum(self) -> AbstractPosterior:
        """λ from an encoder; the family itself, where it draws the model's own sites."""
        latents = self.latents
        placement = Placement(self.model, latents, frozenset(latents.sites), by_datum=True)
        inputs = self._inputs()
        guide = self.make(placement.dims, inputs.dim).to(latents.like)
        unit = self._of_prior(placement)
        if isinstance(self.x, Tensor) and self.x.ndim == 2 and unit.is_identity:
            guide.site = next(iter(placement.sites))
            drawn = guide.site_values(unit.loc.expand(0, -1)).keys()
            if placement.is_plain and drawn == placement.dims.keys():
                return guide
        return ModelGuide(guide, placement, unit, inputs).to(latents.like)

    def two_level(self) -> AbstractPosterior:
        """One λ for what the data share, an encoder for what they do not."""
        inputs, local = self._inputs(), self.latents.local
        shared = self._part(frozenset(self.latents.sites) - local, 0, by_datum=False)
        below = self._part(local, inputs.dim + shared[0].latent_dim, by_datum=True)
        return TwoLevel(shared, below, inputs).to(self.latents.like)

    def _part(self, names: frozenset[str], data_dim: int, *, by_datum: bool) -> Part:
        is_relative = self.standardize != "none"
        placement = Placement(
            self.model,
            self.latents,
            names,
            by_datum=by_datum,
            relative=is_relative,
            imputes=by_datum,
        )
        return self.make(placement.dims, data_dim), placement, self._of_prior(placement)

    def _of_prior(self, placement: Placement) -> Any:
        if self.standardize == "none":
            return identity(self.latents, placement.packing)
        return by_prior(self.program, self.latents, placement.packing)

    def _inputs(self) -> Inputs:
        return Inputs(self.model, self.x if isinstance(self.x, Data) else Data((self.x,)))
