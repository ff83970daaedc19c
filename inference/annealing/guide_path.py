"""The path of annealing from a guide to the posterior."""

from typing import NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from evidence.inference.annealing.log_joint import AbstractPath, PriorPath, Way, latents_of
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.supports import has_narrow_image, reaches_beyond
from evidence.inference.programs.traces import Program, layout_of, random_sites
from evidence.inference.programs.unconstrained import (
    Assignment,
    Given,
    Packing,
    Site,
    is_point,
    trace_of,
)


class GuideTerms(NamedTuple):
    """Log q(u | x) and log p(x, u), both in unconstrained space, each `[C, B]`, in nats."""

    log_q_z: Tensor
    log_p_xz: Tensor


class GuidePath(AbstractPath):
    """From a guide to the posterior: log f_β = (1 − β) log q(u | x) + β log p(x, u).

    u are the guide's own draws, unconstrained: the model's latents, or the auxiliary draws from
    which `Delta` sites make them, as Pyro's autoguides do.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model, scores any value of it.
        x: data `[B, *data_shape]`.

    Raises:
        ValueError: as `PriorPath`; a pair that does not match; a guide that is a point mass, has
            draws that are no function of the latents, or cannot score what it did not draw.
    """

    @torch.no_grad()
    def __init__(self, model: Program, guide: Program, x: Batch) -> None:
        layout = layout_of(model, guide, x, require_density=True)
        with isolated_rng(device=x.device):
            trace = trace_of(guide, x, None, layout)
        sites = random_sites(trace)
        drawn = {name: site for name, site in sites.items() if not is_point(site)}
        latents = latents_of(model, x, layout)
        packing = Packing(drawn, layout, _true_supports(drawn, latents))
        super().__init__(model, x, layout, packing)
        self.guide = guide
        self._made = sites.keys() - drawn.keys()  # sites that only move a draw
        # A single distribution depends on x alone: it need not be made anew at each evaluation.
        self._only = next(iter(sites.values())) if len(sites) == 1 else None
        self._latents = Packing(latents, layout)
        if packing.dim != self._latents.dim:
            raise ValueError(
                f"expected a guide that draws as many entries as the model has latents "
                f"({self._latents.dim}), got {packing.dim}: anneal from the prior (guide=None)"
            )
        self._check_scores()

    @staticmethod
    def weights(beta: float) -> tuple[float, float]:
        """The weights of log q(u | x) and log p(x, u) at inverse temperature β."""
        return 1.0 - beta, beta

    def locate(self, values: dict[str, Tensor]) -> Tensor:
        """The u `[1, B, Z]` of values of the model's latents, shaped as in a trace of the model.

        Raises:
            ValueError: the guide makes the latents from other draws.
        """
        if self._made:
            raise ValueError(
                f"the guide makes the latents {sorted(self._made)} from auxiliary draws, which "
                "cannot be found from the latents: anneal from the prior (guide=None)"
            )
        with Given(values):
            return self.packing.pack(self._run(self.guide, None), 1, len(self.x))

    @torch.no_grad()
    def model_latents(self, z: Tensor) -> Tensor:
        """The model's own latents at `z`, in the coordinates of `PriorPath`, both `[C, B, Z]`."""
        if self.way is Way.PLATE:
            return self._own_latents(z, len(z))
        return torch.cat([self._own_latents(row.unsqueeze(0), None) for row in z])

    def _own_latents(self, z: Tensor, plate: int | None) -> Tensor:
        return self._latents.pack(self._scored(z, plate), plate or 1, len(self.x))

    def _scored(self, z: Tensor, plate: int | None) -> dict[str, Site]:
        """The model's sites, given the guide's at `z`."""
        sites, _ = self._guide_sites(z, plate)
        with Given({name: site["value"] for name, site in sites.items()}):
            return self._run(self.model, plate, sum_out=True)

    def _terms(self, z: Tensor, plate: int | None) -> GuideTerms:
        sites, assignment = self._guide_sites(z, plate)
        log_q_z = log_p_xz = z.new_zeros(z.shape[:2])
        for name, site in sites.items():
            log_q = self._log_prob(site, plate)
            if name in self._made:  # −log|det ∂z/∂u|
                log_p_xz = log_p_xz - log_q
            else:
                log_jacobian = self._log_jacobian(site, assignment, plate)
                log_q_z = log_q_z + log_q + log_jacobian
                log_p_xz = log_p_xz + log_jacobian
        with Given({name: site["value"] for name, site in sites.items()}):
            scored = self._run(self.model, plate, sum_out=True)
        for site in scored.values():
            log_p_xz = log_p_xz + self._log_prob(site, plate)
        return GuideTerms(log_q_z, log_p_xz)

    def _guide_sites(self, z: Tensor, plate: int | None) -> tuple[dict[str, Site], Assignment]:
        assignment = Assignment(self.packing, z, has_chains=plate is not None)
        if self._only is not None:
            site = {**self._only, "value": None}
            assignment.assign(site)
            return {str(site["name"]): site}, assignment
        with assignment:
            return self._run(self.guide, plate), assignment

    def _draw(self, plate: int | None) -> Tensor:
        return self.packing.pack(self._run(self.guide, plate), plate or 1, len(self.x))

    def _values(self, z: Tensor, plate: int | None) -> dict[str, Tensor]:
        return self._latents.values(self._scored(z, plate), plate or 1, len(self.x))

    def _check_scores(self) -> None:
        """Score draws that the guide has forgotten."""
        with isolated_rng(device=self.x.device):
            z = self._draw(None).clone()
        try:
            self._terms(z, None)
        except (KeyError, NotImplementedError):
            raise ValueError(
                "the guide cannot score latents that it did not just draw: anneal from the prior "
                "(guide=None)"
            ) from None


def _true_supports(
    drawn: dict[str, Site], latents: dict[str, Site]
) -> dict[str, constraints.Constraint]:
    """The model's supports of sites whose distribution does not tell its own.

    All other sites move in the coordinates of the guide, whose draws, and no others, have the
    density log q: where it reaches beyond the model's support, p(x, z) is zero.
    """
    supports = {
        name: latents[name]["fn"].support
        for name, site in drawn.items()
        if name in latents and has_narrow_image(site["fn"])
    }
    for name, support in supports.items():
        if reaches_beyond(drawn[name]["fn"], support):
            raise ValueError(
                f"the guide reaches beyond the support of {name!r}, {support}, and does not say "
                "how far: let it have that support, by biject_to(support), or anneal from the "
                "prior (guide=None)"
            )
    return supports


def path_of(model: Program, guide: Program | None, x: Batch) -> AbstractPath:
    """The path from the guide, or from the prior if there is none.

    Raises:
        ValueError: as `PriorPath` and `GuidePath`.
    """
    if guide is None:
        return PriorPath(model, x)
    return GuidePath(model, guide, x)
