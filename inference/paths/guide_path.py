"""The path of annealing from a guide to the posterior."""

import copy
from typing import NamedTuple

import torch
from pyro.distributions import constraints
from torch import Tensor

from evidence.inference.paths.inversion import solved
from evidence.inference.paths.log_joint import AbstractPath, PriorPath, Way, latents_of
from evidence.inference.programs.data import Batch
from evidence.inference.programs.enumeration import undrawn
from evidence.inference.programs.masking import share_counted
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.supports import has_narrow_image, reaches_beyond
from evidence.inference.programs.traces import Program, layout_of, random_sites
from evidence.inference.programs.unconstrained import (
    Assignment,
    Given,
    Packing,
    Site,
    is_point,
    log_jacobian_of,
    trace_of,
)

_OTHERWISE = "anneal from the prior (guide=None)"
_MOST_LOST = 0.1  # of draws of the prior: more are no matter of rounding


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
        otherwise: what to do without a path from this guide, in errors.

    Raises:
        ValueError: as `PriorPath`; a pair that does not match; a guide that is a point mass, has
            draws that are no function of the latents, or cannot score what it did not draw.
    """

    @torch.no_grad()
    def __init__(
        self, model: Program, guide: Program, x: Batch, *, otherwise: str = _OTHERWISE
    ) -> None:
        layout = layout_of(model, guide, x, require_density=True)
        with isolated_rng(device=x.device):
            trace = trace_of(guide, x, None, layout)
        sites = random_sites(trace)
        drawn = {name: site for name, site in sites.items() if not is_point(site)}
        latents = latents_of(model, x, layout)
        packing = Packing(drawn, layout, _true_supports(drawn, latents, otherwise))
        super().__init__(model, x, layout, packing, Packing(latents, layout))
        self.guide = guide
        self._made = sites.keys() - drawn.keys()  # sites that only move a draw
        self._only = _only_site(sites)
        if packing.dim != self.latents.dim:
            raise ValueError(
                f"expected a guide that draws as many entries as the model has latents "
                f"({self.latents.dim}), got {packing.dim}: {otherwise}"
            )
        with isolated_rng(device=x.device):
            self._start = self._draw(None).clone()
        self._check_scores(otherwise)

    @torch.no_grad()
    def renewed(self, x: Batch) -> "GuidePath":
        """This path for a guide whose parameters have changed, and for as many other data."""
        twin = copy.copy(self)
        twin.x = x
        with isolated_rng(device=x.device):
            twin._only = _only_site(random_sites(trace_of(self.guide, x, None, self.layout)))
            twin._start = twin._draw(None).clone()
        twin._begin()
        twin.expect_calls(0, compile=False)  # made anew at every step, a graph would not pay
        return twin

    @property
    def has_learned_map(self) -> bool:
        """Whether parameters say what the guide makes of its auxiliary draws."""
        with torch.enable_grad():
            return bool(self._made) and self._made_of({"u": self._start[0]}, None).requires_grad

    @torch.no_grad()
    def num_scored(self) -> Tensor:
        """How many entries of u have a density, `[M]`: Z, but for those of masked sites."""
        with Assignment(self.packing, self._start, has_chains=False):
            sites = self._run(self.guide, None)
        number = self._start.new_zeros(1, self.layout.num_weights(len(self.x)))
        for name in sites.keys() - self._made:
            counts = share_counted(sites[name]["fn"]).to(number)
            of_draws = self.packing.num_per_draw(name) * counts
            number = number + log_jacobian_of(sites[name], of_draws, 1, len(self.x), self.layout)
        return number[0]

    @staticmethod
    def weights(beta: float) -> tuple[float, float]:
        """The weights of log q(u | x) and log p(x, u) at inverse temperature β."""
        return 1.0 - beta, beta

    @torch.no_grad()
    def locate(self, values: dict[str, Tensor]) -> Tensor:
        """The u `[C, B, Z]` of values of the model's latents, each `[C, ...]` as in its trace.

        Where the guide makes latents from auxiliary draws these are solved for.

        Raises:
            ValueError: they cannot be found from the latents.
        """
        u = self._found(values)
        if lost := self._num_lost(u):
            raise ValueError(_not_found(lost, len(u)))
        return u

    def _found(self, values: dict[str, Tensor]) -> Tensor:
        """The same, with rows of NaN that cannot be found."""
        drawn = super().locate(values)
        if not self._made:
            return drawn
        way = self._way_of(values)
        wanted = self._by(way, self._unconstrained, self._under(way, values))
        return solved(lambda u: self._by(way, self._made_of, {"u": u}), wanted, drawn)

    def _num_lost(self, u: Tensor) -> int:
        """How many rows are of auxiliary draws that were not found."""
        return int(u.isnan().flatten(1).any(1).sum()) if self._made else 0

    @torch.no_grad()
    def sample_prior(self, num_chains: int) -> Tensor:
        """Draws from the model's prior, in the guide's coordinates: `[C, B, Z]`.

        Those that were rounded onto the edge of their support come from no u, and are NaN.

        Raises:
            ValueError: more than a tenth of them cannot be found.
        """
        plate = num_chains if self.way is Way.PLATE and num_chains > 1 else None
        runs = [self._run(self.model, plate) for _ in range(1 if plate else num_chains)]
        rows = [
            self.latents.without_chains({n: run[n]["value"] for n in self.latents.dims}, plate or 1)
            for run in runs
        ]
        u = self._found({name: torch.cat([row[name] for row in rows]) for name in rows[0]})
        if (lost := self._num_lost(u)) > _MOST_LOST * len(u):
            raise ValueError(_not_found(lost, len(u)))
        return u

    @torch.no_grad()
    def parts(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log q(u | x), log p(u) and log p(x | u) at u `[C, B, Z]`, each `[C, B]`, in nats."""
        self.num_evaluations += u.shape[0] * u.shape[1]

        def compute(rows: dict[str, Tensor], plate: int | None) -> Tensor:
            at = rows["u"].unsqueeze(0) if plate is None else rows["u"]
            return torch.stack(self._parts(at, plate), -1)

        log_q_z, log_p_z, log_p_x = self._by(self._way_for(u), compute, {"u": u}).unbind(-1)
        return log_q_z, log_p_z, log_p_x

    def log_q(self, u: Tensor) -> Tensor:
        """Log q(u | x) `[C, B]`, differentiable in u and in the guide's parameters."""
        return self._by(self._way_for(u), self._log_q, {"u": u})

    def _way_for(self, u: Tensor) -> Way:
        return Way.ONE_BY_ONE if len(u) == 1 else self.way

    def _log_q(self, rows: dict[str, Tensor], plate: int | None) -> Tensor:
        u = rows["u"].unsqueeze(0) if plate is None else rows["u"]
        with Assignment(self.packing, u, has_chains=plate is not None) as assignment:
            sites = self._run(self.guide, plate)
        log_q = u.new_zeros(u.shape[:2])
        for name, site in sites.items():
            if name not in self._made:
                log_q = log_q + self._log_prob(site, plate)
                log_q = log_q + self._log_jacobian(site, assignment, plate)
        return log_q

    def _locate(self, values: dict[str, Tensor], plate: int | None) -> Tensor:
        """All that is drawn is where it is drawn; auxiliary draws are anywhere."""
        num_chains = plate or 1
        start = self._start.expand(num_chains, -1, -1)
        with Given(values), Assignment(self.packing, start, has_chains=plate is not None):
            sites = self._run(self.guide, plate)
        return self.packing.pack(sites, num_chains, len(self.x))

    def _unconstrained(self, values: dict[str, Tensor], plate: int | None) -> Tensor:
        """The model's latents, by its own bijections: `[C, B, Z]`."""
        return self.latents.pack(self._given(values, plate), plate or 1, len(self.x))

    def _made_of(self, rows: dict[str, Tensor], plate: int | None) -> Tensor:
        """The same, of what the guide makes of u."""
        u = rows["u"].unsqueeze(0) if plate is None else rows["u"]
        return self.latents.pack(self._sites(u, plate), plate or 1, len(self.x))

    @torch.no_grad()
    def model_latents(self, z: Tensor) -> Tensor:
        """The model's own latents at `z`, in the coordinates of `PriorPath`, both `[C, B, Z]`."""
        return self._by(self._way_for(z), self._made_of, {"u": z})

    def _given(self, values: dict[str, Tensor], plate: int | None) -> dict[str, Site]:
        """The model's sites, given values of its latents, of which no density is asked."""
        with Given(values):
            return self._run(undrawn(self.model), plate)

    def _scored(self, values: dict[str, Tensor], plate: int | None) -> dict[str, Site]:
        """The model's sites, given values of its latents, with the discrete ones summed out."""
        with Given(values):
            return self._run(self.model, plate, sum_out=True)

    @torch.no_grad()
    def log_joint(self, values: dict[str, Tensor]) -> Tensor:
        """Log p(x, z) of values of the model's latents, each `[C, ...]` as in its trace: `[C, B]`.

        A density of z itself, not of unconstrained latents.
        """
        way = self._way_of(values)
        return self._by(way, self._log_joint, self._under(way, values))

    def _log_joint(self, values: dict[str, Tensor], plate: int | None) -> Tensor:
        parts = [self._log_prob(site, plate) for site in self._scored(values, plate).values()]
        return torch.stack(parts).sum(0)

    def _terms(self, z: Tensor, plate: int | None) -> GuideTerms:
        log_q_z, log_p_z, log_p_x = self._parts(z, plate)
        return GuideTerms(log_q_z, log_p_z + log_p_x)

    def _parts(self, z: Tensor, plate: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """Log q(u | x), log p(u) and log p(x | u), each `[C, B]`."""
        sites, assignment = self._guide_sites(z, plate)
        log_q_z = log_p_z = log_p_x = z.new_zeros(z.shape[:2])
        for name, site in sites.items():
            log_q = self._log_prob(site, plate)
            if name in self._made:  # −log|det ∂z/∂u|
                log_p_z = log_p_z - log_q
            else:
                log_jacobian = self._log_jacobian(site, assignment, plate)
                log_q_z = log_q_z + log_q + log_jacobian
                log_p_z = log_p_z + log_jacobian
        for site in self._scored(_values_of(sites), plate).values():
            if site["is_observed"]:
                log_p_x = log_p_x + self._log_prob(site, plate)
            else:
                log_p_z = log_p_z + self._log_prob(site, plate)
        return log_q_z, log_p_z, log_p_x

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

    def _sites(self, z: Tensor, plate: int | None) -> dict[str, Site]:
        sites, _ = self._guide_sites(z, plate)
        return self._given(_values_of(sites), plate)

    def _check_scores(self, otherwise: str) -> None:
        """Score draws that the guide has forgotten."""
        try:
            self._terms(self._start, None)
        except (KeyError, NotImplementedError):
            raise ValueError(
                f"the guide cannot score latents that it did not just draw: {otherwise}"
            ) from None


def _not_found(number: int, total: int) -> str:
    return (
        f"the guide makes its latents from auxiliary draws, which cannot be found from {number} of "
        f"{total} draws of the latents: use a guide that samples the latents themselves, or none "
        "(guide=None)"
    )


def _only_site(sites: dict[str, Site]) -> Site | None:
    """A single distribution depends on x alone: it need not be made anew at each evaluation."""
    return next(iter(sites.values())) if len(sites) == 1 else None


def _values_of(sites: dict[str, Site]) -> dict[str, Tensor]:
    return {name: site["value"] for name, site in sites.items()}


def _true_supports(
    drawn: dict[str, Site], latents: dict[str, Site], otherwise: str
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
                f"how far: let it have that support, by biject_to(support), or {otherwise}"
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
