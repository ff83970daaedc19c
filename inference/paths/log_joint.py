"""A Pyro model as a differentiable log-density of unconstrained latents, per chain and datum.

`PriorPath` leads from the prior to the posterior; `guide_path.GuidePath` from a guide. Use them
inside `evaluation_mode`.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from evidence.inference.compilation.functions import Compile
from evidence.inference.paths import hmc
from evidence.inference.paths.hmc import weighted_sum
from evidence.inference.programs.broadcasting import agree
from evidence.inference.programs.data import Batch
from evidence.inference.programs.enumeration import is_enumerated, prior_of, undrawn
from evidence.inference.programs.mapping import AsVmapNeeds
from evidence.inference.programs.masking import is_masked_inside
from evidence.inference.programs.masks import without_effect
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.recorded import RecordedFunction
from evidence.inference.programs.sites import latent_sites
from evidence.inference.programs.supports import on_edge, support_of
from evidence.inference.programs.traces import Layout, Program, layout_of, random_sites
from evidence.inference.programs.unconstrained import (
    Assignment,
    Given,
    Packing,
    Site,
    log_jacobian_of,
    log_prob_of,
    trace_of,
)


class PriorTerms(NamedTuple):
    """Log p(u), the prior in unconstrained space, and log p(x | z), each `[C, B]`, in nats."""

    log_p_z: Tensor
    log_p_x: Tensor

    @property
    def log_p_xz(self) -> Tensor:
        """Log p(x, u) `[C, B]`."""
        return self.log_p_z + self.log_p_x


class Way(Enum):
    """How several chains are run: under a plate, by `torch.vmap`, or one after the other."""

    PLATE = auto()
    VMAP = auto()
    ONE_BY_ONE = auto()


class AbstractPath(ABC):
    """A path of densities, log f_β = Σ_k weight_k(β) · term_k, over unconstrained latents u.

    f_0 is a density that can be drawn from; f_1 is p(x, z) |∂z/∂u|, whose integral is p(x). Called
    with u `[C, B, Z]`, for C chains and B data, it gives the two terms, each `[C, B]` in nats and
    differentiable.

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]`.
        layout: where data and chains are among the batch dimensions.
        packing: of the sites that hold u.
        latents: of the model's latent sites, where these are others.

    Attributes:
        num_evaluations: of the terms so far, of one chain and datum each.
    """

    def __init__(
        self,
        model: Program,
        x: Batch,
        layout: Layout,
        packing: Packing,
        latents: Packing | None = None,
    ) -> None:
        self.model, self.x = model, x
        self.layout, self.packing, self.latents = layout, packing, latents or packing
        self._way: Way | None = None
        self._begin()
        self.num_evaluations = 0

    def _begin(self) -> None:
        """No graph yet of this path: one of another would hold that one's data."""
        self._recorded = RecordedFunction(lambda z: self._differentiated(z)[1:])

    @property
    def way(self) -> Way:
        """How several chains are run."""
        if self._way is None:
            with isolated_rng(device=self.x.device), torch.no_grad():
                self._way = self._probed_way()
        return self._way

    def _probed_way(self) -> Way:
        """The fastest way in which three chains are what each of them is alone."""
        z = torch.cat([self._draw(None) for _ in range(3)])
        alone = self._terms_by(Way.ONE_BY_ONE, z)
        for way in (Way.PLATE, Way.VMAP):
            try:
                together = self._terms_by(way, z)
            except Exception:  # whatever a program raises that was not written for it
                continue
            if all(agree(*terms) for terms in zip(together, alone, strict=True)):
                return way
        return Way.ONE_BY_ONE

    @property
    def dim(self) -> int:
        """Z, the number of entries of u per datum."""
        return self.packing.dim

    @staticmethod
    @abstractmethod
    def weights(beta: float) -> tuple[float, float]:
        """The weights of the two terms at inverse temperature β."""

    def log_ratio(self, log_probs: Tensor) -> Tensor:
        """Log f_1 − log f_0, of the two terms `[2, ...]`: `[...]`, in float64."""
        ends = zip(self.weights(0.0), self.weights(1.0), strict=True)
        return weighted_sum([end - start for start, end in ends], log_probs.double())

    @torch.no_grad()
    def locate(self, values: dict[str, Tensor]) -> Tensor:
        """The u `[C, B, Z]` of values of the model's latents, each `[C, ...]` as in its trace.

        Raises:
            ValueError: the path's coordinates are not a function of the latents.
        """
        way = self._way_of(values)
        return self._by(way, self._locate, self._under(way, values))

    def _way_of(self, values: dict[str, Tensor]) -> Way:
        """How so many rows are run; there is nothing to probe for one."""
        return Way.ONE_BY_ONE if len(next(iter(values.values()))) == 1 else self.way

    def _under(self, way: Way, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """Values `[C, ...]` with the batch dimensions that they have under a plate of chains."""
        return self.latents.with_chains(values) if way is Way.PLATE else values

    def _by(
        self, way: Way, compute: Callable[[Any, int | None], Tensor], rows: dict[str, Tensor]
    ) -> Tensor:
        """What is computed, `[1, ...]` of each chain alone, of all chains: `[C, ...]`."""
        if way is Way.PLATE:
            return compute(rows, len(next(iter(rows.values()))))
        if way is Way.VMAP:
            with AsVmapNeeds():
                return torch.vmap(lambda row: compute(row, None).squeeze(0))(rows)
        columns = zip(*rows.values(), strict=True)
        return torch.cat([compute(dict(zip(rows, row, strict=True)), None) for row in columns])

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms at `z` `[C, B, Z]`, each `[C, B]`."""
        self.num_evaluations += z.shape[0] * z.shape[1]
        return self._terms_by(self.way, z)

    def expect_calls(self, num_calls: int, compile: Compile) -> None:
        """Say how often `state` will be called about, and whether the user has it compiled."""
        self._recorded.expect(num_calls, compile)

    def state(self, z: Tensor) -> hmc.State:
        """The terms and their gradients at `z` `[C, B, Z]`."""
        self.num_evaluations += z.shape[0] * z.shape[1]
        if self.way is Way.ONE_BY_ONE:  # one graph of all chains would be as long as they are many
            return self._differentiated(z)
        return hmc.State(z.detach(), *self._recorded(z))

    def _differentiated(self, z: Tensor) -> hmc.State:
        return hmc.init(z, lambda z: self._terms_by(self.way, z))

    def _terms_by(self, way: Way, z: Tensor) -> tuple[Tensor, Tensor]:
        if way is Way.PLATE:
            return self._terms(z, len(z))
        if way is Way.VMAP:
            with AsVmapNeeds():
                vectorized = torch.vmap(lambda row: self._terms(row.unsqueeze(0), None))
                together: Any = vectorized(z)
            return together._make(part.squeeze(1) for part in together)
        rows: list[Any] = [self._terms(row.unsqueeze(0), None) for row in z]
        return rows[0]._make(torch.cat(parts) for parts in zip(*rows, strict=True))

    @torch.no_grad()
    def sample(self, num_chains: int) -> Tensor:
        """Draws from f_0: `[C, B, Z]`."""
        if self.way is Way.PLATE:
            return self._draw(num_chains)
        return torch.cat([self._draw(None) for _ in range(num_chains)])

    @torch.no_grad()
    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The model's latents at `z` `[C, B, Z]` by site name, `[C, B, *plates, *event_shape]`."""
        if self.way is Way.PLATE:
            return self._values(z, len(z))
        if self.way is Way.VMAP:
            with AsVmapNeeds():
                together = torch.vmap(lambda row: self._values(row.unsqueeze(0), None))(z)
            return {name: value.squeeze(1) for name, value in together.items()}
        rows = [self._values(row.unsqueeze(0), None) for row in z]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def on_edge(self, z: Tensor) -> Tensor:
        """Whether chains at `z` `[C, B, Z]` have a latent on the edge of its support: `[C, B]`.

        See `supports.on_edge`.
        """
        latents = latents_of(self.model, self.x, self.layout)
        found = torch.zeros(z.shape[:2], dtype=torch.bool, device=z.device)
        for name, value in self.site_values(z).items():
            if value.is_floating_point():
                edge = on_edge(support_of(latents[name]["fn"]), value)
                found |= edge.reshape(*z.shape[:2], -1).any(-1)
        return found

    @torch.no_grad()
    def unsound_site(self, z: Tensor) -> str | None:
        """The first site of the model whose density at one chain `[1, B, Z]` is NaN or +inf."""
        for name, site in self._sites(z, None).items():
            if not (site["fn"].log_prob(site["value"]) < torch.inf).all():
                return name
        return None

    # Below, `plate` is the number of chains under a plate, or None for one chain without a plate.

    @abstractmethod
    def _terms(self, z: Tensor, plate: int | None) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _locate(self, values: dict[str, Tensor], plate: int | None) -> Tensor: ...

    @abstractmethod
    def _draw(self, plate: int | None) -> Tensor: ...

    @abstractmethod
    def _sites(self, z: Tensor, plate: int | None) -> dict[str, Site]:
        """Those of the model."""

    def _values(self, z: Tensor, plate: int | None) -> dict[str, Tensor]:
        return self.latents.values(self._sites(z, plate), plate or 1, len(self.x))

    def _run(
        self, program: Program, plate: int | None, *, sum_out: bool = False
    ) -> dict[str, Site]:
        return random_sites(trace_of(program, self.x, plate, self.layout, sum_out=sum_out))

    def _log_prob(self, site: Site, plate: int | None) -> Tensor:
        num_chains = plate or 1
        log_p = log_prob_of(site, num_chains, len(self.x), self.layout)
        return log_p.expand(num_chains, self.layout.num_weights(len(self.x)))

    def _log_jacobian(
        self, site: Site, assignment: Assignment, plate: int | None
    ) -> Tensor | float:
        """Log|det ∂T/∂u| of the entries of one site that count, 0 where T is the identity."""
        ladj = assignment.ladj.get(site["name"])
        if ladj is None:
            return 0.0
        if site["name"] not in self.layout.in_full and is_masked_inside(site["fn"]):
            ladj = assignment.counted_ladj(site)
        return log_jacobian_of(site, ladj, plate or 1, len(self.x), self.layout)


class PriorPath(AbstractPath):
    """From the prior to the posterior: log f_β = log p(u) + β log p(x | z).

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]`.
        whitened: sites of which u is what is left without the location and scale of their priors,
            see `Packing`.

    Raises:
        ValueError: bad data, a missing data plate, or latents that annealing cannot move.
    """

    @torch.no_grad()
    def __init__(self, model: Program, x: Batch, *, whitened: Collection[str] = ()) -> None:
        try:
            layout = layout_of(model, prior_of(model), x, require_density=False)
        except NotImplementedError:
            raise ValueError(
                "a latent site of the model has a prior that cannot be drawn from: without a "
                "proper prior there is no evidence"
            ) from None
        # The prior draws what it masks: unscored, there would be no density of these entries.
        with isolated_rng(device=x.device):
            in_full = without_effect(model, x, poutine.trace(model).get_trace(x))
        layout = dataclasses.replace(layout, in_full=in_full)
        packing = Packing(latents_of(model, x, layout), layout, whitened=whitened)
        super().__init__(model, x, layout, packing)

    @staticmethod
    def weights(beta: float) -> tuple[float, float]:
        """The weights of log p(u) and log p(x | z) at inverse temperature β."""
        return 1.0, beta

    def _run(
        self, program: Program, plate: int | None, *, sum_out: bool = False
    ) -> dict[str, Site]:
        sites = super()._run(program, plate, sum_out=sum_out)
        found = {
            name for name, site in sites.items() if not (site["is_observed"] or is_enumerated(site))
        }
        if odd := found.symmetric_difference(self.packing.dims):
            raise ValueError(
                f"latent site {min(odd)!r} is there in some runs of the model and not in others: "
                "draw every latent in each run, and use torch.where for what it does in some"
            )
        return sites

    @torch.no_grad()
    def at_latents_of(self, other: "PriorPath", z: Tensor) -> Tensor:
        """The u of the latents that `other`, of the same model, has at z, both `[C, B, Z]`."""

        def compute(rows: dict[str, Tensor], plate: int | None) -> Tensor:
            u = rows["u"].unsqueeze(0) if plate is None else rows["u"]
            return self.packing.pack(other._sites(u, plate), plate or 1, len(self.x))

        return self._by(self.way, compute, {"u": z})

    def _locate(self, values: dict[str, Tensor], plate: int | None) -> Tensor:
        with Given(values):
            sites = self._run(undrawn(self.model), plate)
        return self.packing.pack(sites, plate or 1, len(self.x))

    def _terms(self, z: Tensor, plate: int | None) -> PriorTerms:
        with Assignment(self.packing, z, has_chains=plate is not None) as assignment:
            sites = self._run(self.model, plate, sum_out=True)
        log_p_z = log_p_x = z.new_zeros(z.shape[:2])
        for site in sites.values():
            log_p = self._log_prob(site, plate)
            if site["is_observed"]:
                log_p_x = log_p_x + log_p
            else:
                log_p_z = log_p_z + log_p + self._log_jacobian(site, assignment, plate)
        return PriorTerms(log_p_z, log_p_x)

    def _draw(self, plate: int | None) -> Tensor:
        return self.packing.pack(self._run(self.model, plate), plate or 1, len(self.x))

    def _sites(self, z: Tensor, plate: int | None) -> dict[str, Site]:
        with Assignment(self.packing, z, has_chains=plate is not None):
            return self._run(undrawn(self.model), plate)


def latents_of(model: Program, x: Batch, layout: Layout) -> dict[str, Site]:
    """The model's latent sites but for those summed out, from a run whose draws are not used."""
    with isolated_rng(device=x.device):
        sites = latent_sites(trace_of(model, x, None, layout))
    return {name: site for name, site in sites.items() if not is_enumerated(site)}
