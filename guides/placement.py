"""From vectors of R^Z to the latent sites of a model: shapes, supports and plates."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.util import sum_rightmost
from torch import Tensor

from evidence.guides.relative import Relative, is_of_location_and_scale, is_of_scales
from evidence.guides.transforms.base import AbstractTransform
from evidence.inference.programs.data import Data
from evidence.inference.programs.enumeration import undrawn
from evidence.inference.programs.latents import Latents
from evidence.inference.programs.sites import sites_of
from evidence.inference.programs.traces import Layout
from evidence.inference.programs.unconstrained import (
    Assignment,
    Given,
    Packing,
    Site,
    log_jacobian_of,
)

Plates = Mapping[str, pyro.plate]


class Placement:
    """Where the entries of an unconstrained vector u belong among a model's latent sites.

    z = T(u) takes each site's part into its support by `biject_to`. If a support or a unit depends
    on other latents, the model is run on them to say what it is.

    Args:
        model: called as the guide is.
        latents: of the model.
        names: of the sites that u is for.
        by_datum: whether every datum has a u of its own, or all data one.
        imputes: whether what `obs_mask` leaves unobserved is drawn, too.
        relative: whether latents whose priors depend on others are in units of these priors.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        latents: Latents,
        names: frozenset[str],
        *,
        by_datum: bool,
        relative: bool = False,
        imputes: bool = True,
    ) -> None:
        self.sites = {name: site for name, site in latents.sites.items() if name in names}
        self.data_dim = latents.data_dim if by_datum else None
        self.layout = Layout(self.data_dim, latents.layout.particle_dim)
        of_prior = frozenset(relative_sites(latents)) & names if relative else frozenset()
        self.packing = (
            Relative(self.sites, self.layout, of_prior)
            if of_prior
            else Packing(self.sites, self.layout)
        )
        self.imputed = latents.imputed if imputes else {}
        self.num_data = len(latents.x) if names & latents.local and not by_datum else None
        # In a tuple, where torch does not take it for a part of the guide.
        self._model = (model,) if latents.supports_vary or of_prior or self.imputed else ()
        self._frames = {
            frame.name: frame
            for site in (*self.sites.values(), *self.imputed.values())
            for frame in site["cond_indep_stack"]
            if frame.vectorized
        }
        self._growing = latents.data_dim, len(latents.x)

    @property
    def dims(self) -> dict[str, int]:
        """The unconstrained entries of every site, of each datum if u is by datum."""
        return self.packing.dims

    @property
    def is_plain(self) -> bool:
        """Whether every site is a real vector of each datum, in the plate over the data alone."""
        return self.data_dim == -1 and all(
            site["fn"].event_dim == 1
            and self.packing.transform(site) is None
            and len(site["cond_indep_stack"]) == 1
            for site in self.sites.values()
        )

    def plate_sizes(self, num_data: int) -> dict[str, tuple[int, int]]:
        """Size and dim of the model's plates that the sites are in, for so many data, by name."""
        return {
            name: (num_data if (f.dim, f.size) == self._growing else f.size, f.dim)
            for name, f in self._frames.items()
        }

    def expect_size(self, num_data: int) -> None:
        """Check that there are as many data as there are latents of them.

        Raises:
            ValueError: there are not.
        """
        if self.num_data not in (None, num_data):
            raise ValueError(
                f"expected the {self.num_data} data that the guide was made for, each of which has "
                f"latents of its own, got {num_data}: pass amortized=True for a guide of any batch"
            )

    def inside_data(self, plates: Plates) -> ExitStack:
        """The plate over the data, if every datum has a u of its own."""
        stack = ExitStack()
        if self.data_dim is not None:
            name = next(n for n, f in self._frames.items() if f.dim == self.data_dim)
            stack.enter_context(plates[name])
        return stack

    def sample(
        self,
        u: Tensor,
        log_slopes: Tensor | None,
        data: Data,
        plates: Plates,
        known: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Put z = T(u) at the model's sites, with −log|det ∂z/∂v| for its log-density.

        Args:
            u: `[..., Z]`, with the batch dimensions of the site it was drawn at.
            log_slopes: log of the diagonal of ∂u/∂v, `[Z]`; None of a point, which has no density.
            data: the arguments of the model.
            plates: of `plates_of`.
            known: the values of latents drawn before.

        Returns:
            The values of the sites.
        """
        rows, has_chains = self._rows(u)
        assignment = Assignment(self.packing, rows, has_chains=has_chains)
        assignment.values = self._shaped(u)
        runs, values = self._assigned(assignment, data, known), {}
        slopes = None if log_slopes is None else self._shaped(log_slopes.expand_as(u))
        for name in self.sites:
            site = runs[name]
            value, event_dim = site["value"], site["fn"].event_dim
            log_density: Tensor | float = 0.0
            if slopes is not None:
                of_units = sum_rightmost(slopes[name], slopes[name].ndim + event_dim - value.ndim)
                log_density = -of_units - assignment.ladj.get(name, 0.0)
            with self._inside(self.sites[name], plates):
                point = dist.Delta(value, log_density=log_density, event_dim=event_dim)
                values[name] = pyro.sample(name, point)
        for name, site in self.imputed.items():  # by the model: there is nothing to learn of it
            now = runs[name]
            with self._inside(site, plates), poutine.mask(mask=now["mask"]):
                values[name] = pyro.sample(name, now["fn"])
        return values

    def _inside(self, site: Site, plates: Plates) -> ExitStack:
        """The plates of a site."""
        stack = ExitStack()
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                stack.enter_context(plates[frame.name])
        return stack

    def _assigned(
        self, assignment: Assignment, data: Data, known: Mapping[str, Tensor]
    ) -> dict[str, Site]:
        """The sites with their values: as one run of the model had them, or as they are now."""
        if self._model:
            with poutine.block(), poutine.trace() as tracer, Given(dict(known)), assignment:
                undrawn(self._model[0])(*data.args, **data.kwargs)
            sites = sites_of(tracer.trace)
            return {name: sites[name] for name in (*self.sites, *self.imputed)}
        sites = {name: dict(site) for name, site in self.sites.items()}
        for site in sites.values():
            assignment.assign(site)
        return sites

    def _lead(self, u: Tensor) -> torch.Size:
        """The batch dimensions left of the model's plates: those of particles."""
        return u.shape[: max(0, u.ndim + self.layout.particle_dim)]

    def _rows(self, u: Tensor) -> tuple[Tensor, bool]:
        """U `[..., Z]` as the packing has it, `[C, B, Z]`, and whether it has chains, C."""
        lead = self._lead(u)
        return u.reshape(lead.numel(), -1, u.shape[-1]), bool(lead)

    def _shaped(self, u: Tensor) -> dict[str, Tensor]:
        """U `[..., Z]` by site, with the batch dimensions that it is drawn with."""
        lead = self._lead(u)
        rows, has_chains = self._rows(u)
        values = self.packing.unpack(rows, has_chains=has_chains)
        return {n: v.reshape(lead + v.shape[1:]) if lead else v for n, v in values.items()}

    def values(self, y: Tensor) -> dict[str, Tensor]:
        """The sites' values in `y`, side by side: `[..., B, Y]` if by datum, else `[..., Y]`."""
        lead = y.shape[: -1 if self.layout.is_joint else -2]
        rows = y.reshape(lead.numel(), -1, y.shape[-1])
        values = self.side_by_side().unpack(rows, has_chains=bool(lead))
        return {n: v.reshape(lead + v.shape[1:]) if lead else v for n, v in values.items()}

    def onto_sites(self) -> "OntoSites":
        """T, from u to the values of all sites side by side.

        Raises:
            NotImplementedError: a support, or a unit, depends on other latents.
        """
        if self._model:
            raise NotImplementedError(
                "expected priors that stay the same, got one that depends on other latents: "
                "there is no density of all sites side by side"
            )
        return OntoSites(self)

    def side_by_side(self) -> Packing:
        """The values themselves in one vector."""
        real: dict[str, constraints.Constraint] = {
            name: constraints.independent(constraints.real, site["fn"].event_dim)
            for name, site in self.sites.items()
        }
        return Packing(self.sites, self.layout, real)


def plates_of(placements: Iterable[Placement], num_data: int) -> dict[str, pyro.plate]:
    """The model's plates that the sites are in, each made once, for so many data, by name."""
    sizes: dict[str, tuple[int, int]] = {}
    for placement in placements:
        sizes |= placement.plate_sizes(num_data)
    return {name: pyro.plate(name, size, dim=dim) for name, (size, dim) in sizes.items()}


def relative_sites(latents: Latents) -> list[str]:
    """The sites in units of their priors, if some of these depend on other latents."""
    priors = {name: site["fn"] for name, site in latents.sites.items()}
    linked = [name for name in latents.dependent if is_of_location_and_scale(priors[name])]
    return [*linked, *(name for name, fn in priors.items() if linked and is_of_scales(fn))]


class OntoSites(AbstractTransform):
    """T, from u `[..., Z]` to the values of all sites side by side, `[..., Y]`.

    Args:
        placement: of the sites.
    """

    def __init__(self, placement: Placement) -> None:
        super().__init__()
        self._sites, self._layout = placement.sites, placement.layout
        self._from, self._to = placement.packing, placement.side_by_side()

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values at u = `x`, and the ladj: `[..., Y]` and `[...]`."""
        rows = self._rows(x)
        assignment = Assignment(self._from, rows, has_chains=True)
        sites = {name: dict(site) for name, site in self._sites.items()}
        total = rows.new_zeros(rows.shape[:2])
        for name, site in sites.items():
            assignment.assign(site)
            if name in assignment.ladj:
                ladj = assignment.ladj[name]
                total = total + log_jacobian_of(site, ladj, *rows.shape[:2], self._layout)
        y = self._to.pack(sites, *rows.shape[:2])
        return y.reshape(*x.shape[:-1], -1), total.reshape(x.shape[:-1])

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin u of values `y`, and the ladj there: `[..., Z]` and `[...]`."""
        rows = self._rows(y)
        values = self._to.unpack(rows, has_chains=True)
        sites = {name: {**site, "value": values[name]} for name, site in self._sites.items()}
        u = self._from.pack(sites, *rows.shape[:2]).reshape(*y.shape[:-1], -1)
        return u, self.push(u)[1]

    def _rows(self, u: Tensor) -> Tensor:
        """`[..., B, Z]`, or `[..., Z]` of a vector for all data, as `[C, B, Z]`."""
        num_data = 1 if self._layout.is_joint else u.shape[-2]
        return u.reshape(-1, num_data, u.shape[-1])
