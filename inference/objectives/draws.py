"""Draws of a guide, scored by the guide and by the model: what every objective is made of."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from evidence.inference.objectives.paths import DetachDraws, detached, gradient_only, subset
from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch
from evidence.inference.programs.scoring import full_share, sum_of_sites
from evidence.inference.programs.sites import Site, latent_sites, observed_sites
from evidence.inference.programs.traces import (
    Layout,
    Program,
    Traces,
    check_batch_shapes,
    check_sites,
    common_plate,
    outermost_dim,
    particle_plate,
    random_sites,
    trace_pair,
)


@dataclass(frozen=True)
class Pair:
    """A model and a guide with the data of one call of both.

    Args:
        model: called with the data; scores them.
        guide: called with the data; samples every latent of the model.
        data: a batch, or whatever arguments the two take.
        num_particles: K, draws per datum.
        particle_dim: the dim of a plate for all particles, left of all others; None for one call
            per particle.
    """

    model: Program
    guide: Program
    data: Batch
    num_particles: int
    particle_dim: int | None

    def draw(
        self, *, detach: bool = False, show: Callable[[Trace], Trace] | None = None
    ) -> "Draws":
        """Run the guide, and the model on its draws.

        Args:
            detach: cut the draws off the parameters that they depend on.
            show: what of the guide's trace the model is to see; all as it is by default.

        Raises:
            ValueError: the sites do not match, have batch dims of no plate, or are drawn without
                reparameterization though not to be detached.
        """
        runs = [self._run(None, detach, show)]
        if self.particle_dim is None:
            # All particles see the same data.
            subsamples = Traces(*(subset(trace, lambda _: False, detached) for trace in runs[0]))
            more = range(self.num_particles - 1)
            runs += [self._run(subsamples, detach, show) for _ in more]
        check_sites(runs[0])
        if not detach:
            _check_reparameterized(runs[0].guide)
        if self.particle_dim is None:  # else a dim of no plate can pass for the particles'
            check_batch_shapes(runs[0])
        return Draws(self, runs)

    def _run(
        self, subsamples: Traces | None, detach: bool, show: Callable[[Trace], Trace] | None
    ) -> Traces:
        model, guide = self.model, self.guide
        if subsamples is not None:
            model = poutine.replay(model, trace=subsamples.model)
            guide = poutine.replay(guide, trace=subsamples.guide)
        shape = self.num_particles, self.particle_dim
        with DetachDraws() if detach else nullcontext():
            return trace_pair(model, guide, self.data, *shape, show=show)


@dataclass(frozen=True)
class Draws:
    """K draws and their log-probabilities, each `[K, M]` in nats.

    M is the number of weights per particle: B of a model with latents per datum, 1 of a model with
    a latent that all data share.
    """

    pair: Pair
    runs: list[Traces]

    @cached_property
    def layout(self) -> Layout:
        """Where data and particles are among the batch dimensions."""
        dim = self.pair.particle_dim
        dim = outermost_dim(self.runs[0]) - 1 if dim is None else dim
        return Layout(None if self._plate is None else self._plate.dim, dim)

    @cached_property
    def log_p_x(self) -> Tensor:
        """The observed sites of the model."""
        return self._sum([observed_sites(run.model) for run in self.runs])

    @cached_property
    def log_p_z(self) -> Tensor:
        """The latent sites of the model."""
        return self._sum([latent_sites(run.model) for run in self.runs])

    @cached_property
    def log_q_z(self) -> Tensor:
        """All sites of the guide."""
        return self._sum([random_sites(run.guide) for run in self.runs])

    @property
    def log_p_xz(self) -> Tensor:
        """All sites of the model."""
        return self.log_p_x + self.log_p_z

    @property
    def log_w(self) -> Tensor:
        """The log importance weights."""
        return self.log_p_xz - self.log_q_z

    def path_log_q_z(self) -> Tensor:
        """Log q whose gradient flows through the draws alone: without the score, whose mean is 0.

        It is log q(z(φ); φ) − log q(sg(z); φ), and the value of the latter put back.
        """
        if not torch.is_grad_enabled():
            return self.log_q_z
        per_run = [random_sites(run.guide) for run in self.runs]
        if len(per_run[0]) > 1:  # a later site may depend on an earlier draw: detach that, too
            per_run = [self._fixed_sites(run.guide) for run in self.runs]
        return self.log_q_z - gradient_only(self._sum(per_run, detach=True))

    def _fixed_sites(self, guide_trace: Trace) -> dict[str, Site]:
        """The guide's sites when it runs again on the same draws, detached.

        Point masses move along by themselves: they come after the draw that was scored.
        """
        fixed = subset(
            guide_trace,
            lambda site: not isinstance(base_distribution(site["fn"]), Delta),
            lambda site: detached(site["value"]),
        )
        pair = self.pair
        with particle_plate(pair.num_particles, pair.particle_dim):
            guide = poutine.trace(poutine.replay(pair.guide, trace=fixed))
            return random_sites(guide.get_trace(pair.data))

    def total(self, per_weight: Tensor) -> Tensor:
        """The sum over all data, `[M] -> []`; a subsample stands for all N."""
        return per_weight.sum() * (1.0 if self._plate is None else full_share(self._plate))

    def sum_of_run(self, sites: dict[str, Site], num_particles: int, **options: bool) -> Tensor:
        """The joint log-probability of one run's sites, as objectives take it: `[S, M]`."""
        size = 1 if self._plate is None else self._plate.size
        return sum_of_sites(
            sites.values(), num_particles, size, self.layout, scaled=True, **options
        )

    def _sum(self, sites_per_run: list[dict[str, Site]], **options: bool) -> Tensor:
        size = self.pair.num_particles // len(self.runs)
        sums = [self.sum_of_run(sites, size, **options) for sites in sites_per_run]
        return torch.cat(sums)

    @cached_property
    def _plate(self) -> CondIndepStackFrame | None:
        return common_plate(self.runs[0])


def is_reparameterized(guide_trace: Trace) -> bool:
    """Whether every draw of the guide has a gradient."""
    return all(site["fn"].has_rsample for site in latent_sites(guide_trace).values())


def _check_reparameterized(guide_trace: Trace) -> None:
    for name, site in latent_sites(guide_trace).items():
        if not site["fn"].has_rsample:
            raise ValueError(
                f"expected guide site {name!r} to be reparameterized, got "
                f"{type(base_distribution(site['fn'])).__name__}, whose draws have no gradient: "
                "use ReweightedWakeSleep, ForwardKL or WakeSleep"
            )
