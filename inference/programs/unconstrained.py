"""The continuous latents of a Pyro program, side by side in one unconstrained tensor."""

import math
from collections.abc import Collection
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import Transform, biject_to
from pyro.distributions.util import sum_rightmost
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import IndependentTransform
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch
from evidence.inference.programs.enumeration import ONLY_DISCRETE, trace_summed_out
from evidence.inference.programs.masking import counted_inside
from evidence.inference.programs.scoring import log_prob_per_datum
from evidence.inference.programs.sites import Site
from evidence.inference.programs.supports import entry_of
from evidence.inference.programs.traces import Layout, Program, particle_plate
from evidence.inference.programs.whitening import whitening


class _Part(NamedTuple):
    """What one site has of the packed tensor.

    Args:
        size: entries per datum.
        plates: sizes of the batch dimensions, that of the data taken out.
        event_shape: of the unconstrained value.
        outer: batch dimensions of the pair that the site is left of, where it has none.
    """

    size: int
    plates: tuple[int, ...]
    event_shape: tuple[int, ...]
    outer: int


class Packing:
    """How the values of latent sites lie in one tensor `[C, B, Z]`, unconstrained.

    T = `biject_to(support)` takes a site's part u into its support; where it is the identity
    nothing is computed.

    Args:
        sites: the sites, from a trace without chains.
        layout: where data and chains are among the batch dimensions.
        supports: of sites whose own distribution does not tell it.
        whitened: sites of which u is what is left without the location and scale of their priors:
            T then moves with the latents that were drawn before.

    Raises:
        ValueError: a site that is discrete, a point mass, without a bijection, or outside the plate
            over the data.
    """

    def __init__(
        self,
        sites: dict[str, Site],
        layout: Layout,
        supports: dict[str, constraints.Constraint] | None = None,
        *,
        whitened: Collection[str] = (),
    ) -> None:
        self._layout, self._supports, self._whitened = layout, supports or {}, whitened
        self._depth = -layout.particle_dim - 1  # batch dimensions without that of the chains
        self._data_axis = layout.data_axis(self._depth)  # None: all data share the latents
        self._parts = {name: self._part(site) for name, site in sites.items()}
        self.dim = sum(part.size for part in self._parts.values())
        if not self._parts:
            raise ValueError(f"expected a program with latent sites, got none, or {ONLY_DISCRETE}")

    @property
    def dims(self) -> dict[str, int]:
        """The entries of every site in a vector, in their order."""
        return {name: part.size for name, part in self._parts.items()}

    def num_per_draw(self, name: str) -> int:
        """The entries of one draw of a site's distribution, unconstrained."""
        return math.prod(self._parts[name].event_shape)

    def _part(self, site: Site) -> _Part:
        _check_latent(site)
        transform = self.transform(site)
        batch, event = site["fn"].batch_shape, site["fn"].event_shape
        if transform is not None:
            event = transform.inverse_shape(batch + event)[len(batch) :]
        plates = [1] * (self._depth - len(batch)) + list(batch)
        if self._data_axis is not None:
            del plates[self._data_axis]
        outer = self._depth - len(batch)
        return _Part(math.prod(plates) * math.prod(event), tuple(plates), tuple(event), outer)

    def transform(self, site: Site) -> Transform | None:
        """T of a site as it is drawn now, or None if it is the identity.

        Asked for anew in every run: a support may depend on latents drawn before.
        """
        if site["name"] in self._whitened:
            return whitening(site["fn"])
        return transform_to(site["name"], self._supports.get(site["name"], site["fn"].support))

    def unpack(self, z: Tensor, *, has_chains: bool) -> dict[str, Tensor]:
        """The unconstrained values of the sites, with batch dimensions as in a trace.

        Args:
            z: `[C, B, Z]`.
            has_chains: whether the values are to have a dimension of chains; else C is 1.
        """
        values = {}
        pieces = z.split([part.size for part in self._parts.values()], dim=-1)
        for (name, part), piece in zip(self._parts.items(), pieces, strict=True):
            u = piece.reshape(*z.shape[:2], *part.plates, *part.event_shape)
            u = u.squeeze(1) if self._data_axis is None else u.movedim(1, 1 + self._data_axis)
            # Alone, a site has the dims that it was drawn with: a program may index from the left.
            values[name] = u if has_chains else u[0].reshape(u.shape[1 + part.outer :])
        return values

    def pack(self, sites: dict[str, Site], num_chains: int, num_data: int) -> Tensor:
        """The unconstrained values of sites that have been drawn or given: `[C, B, Z]`."""
        pieces = []
        for name, part in self._parts.items():
            value, transform = sites[name]["value"], self.transform(sites[name])
            u = value if transform is None else transform.inv(value)
            u = self._data_first(u, num_chains, num_data, part, len(part.event_shape))
            pieces.append(u.reshape(*u.shape[:2], part.size))
        return torch.cat(pieces, dim=-1)

    def values(self, sites: dict[str, Site], num_chains: int, num_data: int) -> dict[str, Tensor]:
        """The values of sites, each `[C, B, *plates, *event_shape]`."""
        values = {}
        for name, part in self._parts.items():
            value, event_dim = sites[name]["value"], sites[name]["fn"].event_dim
            event = value.shape[value.ndim - event_dim :]
            value = self._data_first(value, num_chains, num_data, part, event_dim)
            plates = [size for size in part.plates if size != 1]
            values[name] = value.reshape(*value.shape[:2], *plates, *event)
        return values

    def with_chains(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values of the sites, `[C, ...]` as one run has each, as a run under chains has them."""
        outer = {name: (1,) * self._parts[name].outer for name in values}
        return {n: v.reshape(len(v), *outer[n], *v.shape[1:]) for n, v in values.items()}

    def without_chains(self, values: dict[str, Tensor], num_chains: int) -> dict[str, Tensor]:
        """The reverse of `with_chains`; values of a single run become those of one chain."""
        if num_chains == 1:
            return {name: values[name].unsqueeze(0) for name in self._parts}
        outer = {name: part.outer for name, part in self._parts.items()}
        return {n: values[n].reshape(num_chains, *values[n].shape[1 + outer[n] :]) for n in outer}

    def _data_first(
        self, value: Tensor, num_chains: int, num_data: int, part: _Part, event_dim: int
    ) -> Tensor:
        """`[C?, ..., B, ..., *event] -> [C, B, *plates, *event]`."""
        event = value.shape[value.ndim - event_dim :]
        batch = list(part.plates)
        if self._data_axis is None:
            return value.expand(num_chains, *batch, *event).unsqueeze(1)
        batch.insert(self._data_axis, num_data)
        return value.expand(num_chains, *batch, *event).movedim(1 + self._data_axis, 1)


class Assignment(Messenger):
    """Gives latent sites the values T(u), and keeps log|det ∂T/∂u| `[...batch]` of each.

    Args:
        packing: of the sites.
        z: `[C, B, Z]`.
        has_chains: see `Packing.unpack`.
    """

    def __init__(self, packing: Packing, z: Tensor, *, has_chains: bool) -> None:
        super().__init__()
        self.packing, self.values = packing, packing.unpack(z, has_chains=has_chains)
        self.ladj: dict[str, Tensor] = {}

    def assign(self, site: Site) -> None:
        """Give the site its value."""
        name, fn = site["name"], site["fn"]
        u, transform = self.values[name], self.packing.transform(site)
        if transform is None:
            site["value"] = u
            return
        site["value"] = value = transform(u)
        ladj = transform.log_abs_det_jacobian(u, value)
        self.ladj[name] = sum_rightmost(ladj, ladj.ndim - value.ndim + fn.event_dim)

    def counted_ladj(self, site: Site) -> Tensor:
        """The same, of a site that has its value, without entries masked in its distribution."""
        fn, value, transform = site["fn"], site["value"], self.packing.transform(site)
        while isinstance(transform, IndependentTransform):
            transform = transform.base_transform
        assert transform is not None
        ladj = transform.log_abs_det_jacobian(self.values[site["name"]], value)
        num_summed = value.ndim - ladj.ndim  # dims of the events that are mapped as a whole
        counts = counted_inside(fn)
        counts = counts.reshape(counts.shape[: max(0, counts.ndim - num_summed)])
        ladj = torch.where(counts.to(ladj.device), ladj, 0.0)
        return sum_rightmost(ladj, ladj.ndim - value.ndim + fn.event_dim)

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            self.assign(msg)


class Given(Messenger):
    """Gives latent sites values that are known.

    Args:
        values: by site name.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Site) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]


def trace_of(
    program: Program, x: Batch, num_chains: int | None, layout: Layout, *, sum_out: bool = False
) -> Trace:
    """A run of the program on the batch, under a plate of chains unless `num_chains` is None.

    With all latents given, the discrete ones that it enumerates can be summed out.
    """
    dim = None if num_chains is None else layout.particle_dim
    with particle_plate(num_chains or 1, dim):
        return trace_summed_out(program, x) if sum_out else poutine.trace(program).get_trace(x)


def log_prob_of(site: Site, num_chains: int, num_data: int, layout: Layout) -> Tensor:
    """The site's unscaled log-probability per chain and datum: `[C, B]`, or 1 where constant."""
    return log_prob_per_datum(site, num_chains, num_data, layout)


def log_jacobian_of(
    site: Site, ladj: Tensor, num_chains: int, num_data: int, layout: Layout
) -> Tensor:
    """Log|det ∂T/∂u| `[...batch]` of a site, masked and summed as its density is: `[C, M]`."""
    unit = {"fn": dist.Unit(ladj), "value": ladj.new_empty(0)}
    return log_prob_of({**site, **unit}, num_chains, num_data, layout)


def is_point(site: Site) -> bool:
    """Whether the site is a `Delta`: it only moves what was drawn elsewhere."""
    return isinstance(base_distribution(site["fn"]), dist.Delta)


def transform_to(name: str, support: constraints.Constraint) -> Transform | None:
    """T from the real line onto the support, or None if it is the identity.

    Raises:
        ValueError: Pyro knows none; `name` is that of the site.
    """
    if isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    if entry_of(support) is constraints.real:
        return None
    try:
        return biject_to(support)
    except NotImplementedError:
        raise ValueError(
            f"latent site {name!r} has the support {support}, onto which Pyro knows no smooth map: "
            "annealing cannot move it"
        ) from None


def _check_latent(site: Site) -> None:
    name, fn = site["name"], site["fn"]
    if getattr(fn.support, "is_discrete", False):
        raise ValueError(
            f"latent site {name!r} is discrete ({type(base_distribution(fn)).__name__}): annealing "
            "moves latents along gradients; decorate the model with pyro.infer.config_enumerate "
            "to sum it out"
        )
    if is_point(site):
        raise ValueError(
            f"latent site {name!r} is a point mass (Delta): use pyro.deterministic for what is no "
            "latent"
        )
