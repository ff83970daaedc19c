"""Draws of a guide, scored by the guide and by the model: what every objective is made of."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from evidence.inference.objectives.paths import DetachDraws, detached, gradient_only, subset
from evidence.inference.objectives.plates import (
    PARTICLES,
    Plates,
    Run,
    Site,
    nesting,
    shared_plates,
)
from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import (
    Program,
    check_batch_shapes,
    check_sites,
    random_sites,
)


@dataclass(frozen=True)
class Pair:
    """A model and a guide with the arguments of one call of both.

    Args:
        model: scores data.
        guide: samples every latent of the model.
        args: positional arguments of both.
        kwargs: keyword arguments of both.
        num_particles: K, draws per datum.
        particle_dim: the dim of a plate for all particles, left of all others; None for one call
            per particle.
    """

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
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
        runs: list[Run] = []
        for _ in range(self.num_particles if self.particle_dim is None else 1):
            runs.append(self._run(_subsamples(runs), detach, show or _all))
        check_sites(runs[0])
        if not detach:
            _check_reparameterized(runs[0].guide)
        plates = shared_plates(runs[0], self.particle_dim)
        if self.particle_dim is None:  # else a dim of no plate can pass for the particles'
            check_batch_shapes(runs[0])
        return Draws(self, runs, plates)

    def _run(self, subsamples: Trace, detach: bool, show: Callable[[Trace], Trace]) -> Run:
        guide = poutine.replay(self.guide, trace=subsamples)
        model = poutine.replay(self.model, trace=subsamples)
        with self.particle_plate():
            with DetachDraws() if detach else nullcontext():
                guide_trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
            model = poutine.trace(poutine.replay(model, trace=show(guide_trace)))
            return Run(guide_trace, model.get_trace(*self.args, **self.kwargs))

    def particle_plate(self) -> AbstractContextManager:
        """The plate over all particles, if they are to have one."""
        if self.particle_dim is None:
            return nullcontext()
        return pyro.plate(PARTICLES, self.num_particles, dim=self.particle_dim)


@dataclass(frozen=True)
class Draws:
    """K draws and their log-probabilities, each `[K, M]` in nats.

    M is the number of weights per particle: B of a model with latents per datum, 1 of a model with
    a latent that all data share.
    """

    pair: Pair
    runs: list[Run]
    plates: Plates

    @cached_property
    def log_p_x(self) -> Tensor:
        """The observed sites of the model."""
        return self._sum_sites([_sites(run.model, observed=True) for run in self.runs])

    @cached_property
    def log_p_z(self) -> Tensor:
        """The latent sites of the model."""
        return self._sum_sites([_sites(run.model, observed=False) for run in self.runs])

    @cached_property
    def log_q_z(self) -> Tensor:
        """All sites of the guide."""
        return self._sum_sites([list(random_sites(run.guide).values()) for run in self.runs])

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
        return self.log_q_z - gradient_only(self._log_q_of_fixed_draws())

    def _log_q_of_fixed_draws(self) -> Tensor:
        per_run = [list(random_sites(run.guide).values()) for run in self.runs]
        if len(per_run[0]) > 1:  # a later site may depend on an earlier draw: detach that, too
            per_run = [self._fixed_sites(run.guide) for run in self.runs]
        return self._sum_sites(per_run, detach=True)

    def _fixed_sites(self, guide_trace: Trace) -> list[Site]:
        """The guide's sites when it runs again on the same draws, detached.

        Point masses move along by themselves: they come after the draw that was scored.
        """
        fixed = subset(
            guide_trace,
            lambda site: not isinstance(base_distribution(site["fn"]), Delta),
            lambda site: detached(site["value"]),
        )
        with self.pair.particle_plate():
            guide = poutine.trace(poutine.replay(self.pair.guide, trace=fixed))
            return list(random_sites(guide.get_trace(*self.pair.args, **self.pair.kwargs)).values())

    def total(self, per_weight: Tensor) -> Tensor:
        """The sum over all data, `[M] -> []`; a subsample stands for all N."""
        return self.plates.factor * per_weight.sum()

    def _sum_sites(self, sites_per_run: list[list[Site]], *, detach: bool = False) -> Tensor:
        num_weights, num_particles = torch.Size(self.plates.shape).numel(), self._particles_per_run
        sums = []
        for sites in sites_per_run:
            terms = [
                self.plates.sum_rest(site, detached(site["value"]) if detach else None)
                for site in sites
            ]
            sums.append(sum(terms, torch.zeros(())).expand(num_particles, num_weights))
        return torch.cat(sums)

    @property
    def _particles_per_run(self) -> int:
        return self.pair.num_particles // len(self.runs)


@torch.no_grad()
def plate_nesting(
    model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> int:
    """How many batch dims the plates of a pair take, found by a run that leaves no trace.

    Raises:
        ValueError: a site has batch dims that belong to no plate.
    """
    tensors = (value for value in (*args, *kwargs.values()) if torch.is_tensor(value))
    device = next((tensor.device for tensor in tensors), None)
    with isolated_rng(device=device), poutine.block():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace))
        run = Run(guide_trace, model_trace.get_trace(*args, **kwargs))
    depth = nesting(run)
    check_batch_shapes(run)
    return depth


def _check_reparameterized(guide_trace: Trace) -> None:
    for name, site in random_sites(guide_trace).items():
        if not site["is_observed"] and not site["fn"].has_rsample:
            raise ValueError(
                f"expected guide site {name!r} to be reparameterized, got "
                f"{type(base_distribution(site['fn'])).__name__}, whose draws have no gradient: "
                "use ReweightedWakeSleep, ForwardKL or WakeSleep"
            )


def _sites(trace: Trace, *, observed: bool) -> list[Site]:
    return [site for site in random_sites(trace).values() if site["is_observed"] == observed]


def _subsamples(runs: list[Run]) -> Trace:
    """The subsamples of the first run: all particles see the same data."""
    subsamples = Trace()
    for trace in runs[0] if runs else ():
        for name, site in trace.nodes.items():
            if site["type"] == "sample" and site_is_subsample(site) and name not in subsamples:
                subsamples.add_node(name, **site)
    return subsamples


def _all(trace: Trace) -> Trace:
    return trace
