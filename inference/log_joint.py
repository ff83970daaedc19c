"""A Pyro model as a differentiable log-density of unconstrained latents, per chain and datum.

`PriorPath` leads from the prior to the posterior; `guide_path.GuidePath` from a guide. Use them
inside `inference.weights.evaluation_mode`.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from inference.random_state import isolated_rng
from inference.supports import on_edge, support_of
from inference.traces import Layout, Program, layout_of, random_sites
from inference.unconstrained import (
    Assignment,
    Given,
    Packing,
    Site,
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
        vectorize_particles: all chains in one call, as a batch dimension left of the program's
            plates. False for programs that cannot be broadcast: one call per chain.
    """

    def __init__(
        self,
        model: Program,
        x: Tensor,
        layout: Layout,
        packing: Packing,
        *,
        vectorize_particles: bool,
    ) -> None:
        self.model, self.x = model, x
        self.layout, self.packing = layout, packing
        self.vectorize_particles = vectorize_particles

    @property
    def dim(self) -> int:
        """Z, the number of entries of u per datum."""
        return self.packing.dim

    @staticmethod
    @abstractmethod
    def weights(beta: float) -> tuple[float, float]:
        """The weights of the two terms at inverse temperature β."""

    @abstractmethod
    def locate(self, values: dict[str, Tensor]) -> Tensor:
        """The u `[1, B, Z]` of values of the model's latents, shaped as in a trace of the model.

        Raises:
            ValueError: the path's coordinates are not a function of the latents.
        """

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms at `z` `[C, B, Z]`, each `[C, B]`."""
        if self.vectorize_particles:
            return self._terms(z, len(z))
        terms = [self._terms(row.unsqueeze(0), None) for row in z]
        return type(terms[0])(*(torch.cat(parts) for parts in zip(*terms, strict=True)))

    @torch.no_grad()
    def sample(self, num_chains: int) -> Tensor:
        """Draws from f_0: `[C, B, Z]`."""
        if self.vectorize_particles:
            return self._draw(num_chains)
        return torch.cat([self._draw(None) for _ in range(num_chains)])

    @torch.no_grad()
    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """The model's latents at `z` `[C, B, Z]` by site name, `[C, B, *plates, *event_shape]`."""
        if self.vectorize_particles:
            return self._values(z, len(z))
        rows = [self._values(row.unsqueeze(0), None) for row in z]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    @torch.no_grad()
    def share_on_edge(self, z: Tensor) -> Tensor:
        """Share of the chains at `z` `[C, B, Z]` with a latent on the edge of its support: `[B]`.

        See `supports.on_edge`.
        """
        latents = latents_of(self.model, self.x, self.layout)
        found = torch.zeros(z.shape[:2], dtype=torch.bool, device=z.device)
        for name, value in self.site_values(z).items():
            if value.is_floating_point():
                edge = on_edge(support_of(latents[name]["fn"]), value)
                found |= edge.reshape(*z.shape[:2], -1).any(-1)
        return found.double().mean(0)

    # Below, `plate` is the number of chains under a plate, or None for one chain without a plate.

    @abstractmethod
    def _terms(self, z: Tensor, plate: int | None) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def _draw(self, plate: int | None) -> Tensor: ...

    @abstractmethod
    def _values(self, z: Tensor, plate: int | None) -> dict[str, Tensor]: ...

    def _run(self, program: Program, plate: int | None) -> dict[str, Site]:
        return random_sites(trace_of(program, self.x, plate, self.layout))

    def _log_prob(self, site: Site, plate: int | None) -> Tensor:
        num_chains = plate or 1
        log_p = log_prob_of(site, num_chains, len(self.x), self.layout)
        return log_p.expand(num_chains, len(self.x))

    def _log_jacobian(
        self, site: Site, assignment: Assignment, plate: int | None
    ) -> Tensor | float:
        """Log|det ∂T/∂u| of one site; masked and summed over plates as its density is."""
        ladj = assignment.ladj.get(site["name"])
        if ladj is None:
            return 0.0
        unit = {"fn": dist.Unit(ladj), "value": ladj.new_empty(0)}
        return self._log_prob({**site, **unit}, plate)


class PriorPath(AbstractPath):
    """From the prior to the posterior: log f_β = log p(u) + β log p(x | z).

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]`.
        vectorize_particles: see `AbstractPath`.

    Raises:
        ValueError: bad data, a missing data plate, or latents that annealing cannot move.
    """

    @torch.no_grad()
    def __init__(self, model: Program, x: Tensor, *, vectorize_particles: bool = True) -> None:
        prior = poutine.block(model, hide_fn=lambda site: site["is_observed"])
        try:
            layout = layout_of(model, prior, x, require_density=False)
        except NotImplementedError:
            raise ValueError(
                "a latent site of the model has a prior that cannot be drawn from: without a "
                "proper prior there is no evidence"
            ) from None
        packing = Packing(latents_of(model, x, layout), layout)
        super().__init__(model, x, layout, packing, vectorize_particles=vectorize_particles)

    @staticmethod
    def weights(beta: float) -> tuple[float, float]:
        """The weights of log p(u) and log p(x | z) at inverse temperature β."""
        return 1.0, beta

    def locate(self, values: dict[str, Tensor]) -> Tensor:
        """The u `[1, B, Z]` of values of the model's latents, shaped as in a trace of the model."""
        with Given(values):
            return self.packing.pack(self._run(self.model, None), 1, len(self.x))

    def _terms(self, z: Tensor, plate: int | None) -> PriorTerms:
        with Assignment(self.packing, z, has_chains=plate is not None) as assignment:
            sites = self._run(self.model, plate)
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

    def _values(self, z: Tensor, plate: int | None) -> dict[str, Tensor]:
        with Assignment(self.packing, z, has_chains=plate is not None):
            sites = self._run(self.model, plate)
        return self.packing.values(sites, plate or 1, len(self.x))


def latents_of(model: Program, x: Tensor, layout: Layout) -> dict[str, Site]:
    """The model's latent sites, from a run without chains whose draws are not used."""
    with isolated_rng(device=x.device):
        sites = random_sites(trace_of(model, x, None, layout))
    return {name: site for name, site in sites.items() if not site["is_observed"]}
