"""Log-probabilities of a pair per particle and weight, for evidence and for training."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from evidence.inference.programs.masking import unmasked
from evidence.inference.programs.sites import (
    Site,
    latent_sites,
    observed_sites,
    plates_of,
    random_sites,
)
from evidence.inference.programs.supports import zero_outside
from evidence.inference.programs.traces import Layout, Traces


def log_prob_per_datum(
    site: Site,
    num_particles: int,
    num_data: int,
    layout: Layout,
    *,
    scaled: bool = False,
    value: Tensor | None = None,
) -> Tensor:
    """The site's log-probability in nats, summed over all other plates: `[S or 1, M or 1]`.

    Evidence is that of the model as it is, unscaled. A training objective takes `poutine.scale`,
    and so a warm-up, inside its weights; the subsampling of the plate over the data, by which all
    terms of a datum are multiplied alike, multiplies its bound once it is finished.

    Args:
        site: of a trace.
        num_particles: S.
        num_data: entries of the plate over the data.
        layout: where data and particles are among the batch dimensions.
        scaled: as an objective takes it; masks apply, but for those of `Layout.in_full`.
        value: to score instead of the site's own.
    """
    counts_in_full = site["name"] in layout.in_full and not site["is_observed"]
    fn = unmasked(site["fn"]) if counts_in_full else site["fn"]
    log_p = zero_outside(site, fn.log_prob(site["value"] if value is None else value))
    scale = _scale(site, layout) if scaled else 1.0
    log_p = scale_and_mask(log_p, scale, None if counts_in_full else site["mask"])
    depth = -layout.particle_dim
    if log_p.ndim > depth:
        raise ValueError(
            f"site {site['name']!r} has log-probabilities of shape {tuple(log_p.shape)}, with "
            "dimensions that belong to no plate: declare them with .to_event()"
        )
    log_p = log_p.reshape((1,) * (depth - log_p.ndim) + log_p.shape)
    kept = {0, layout.data_axis(depth)}
    others = [dim for dim in range(depth) if dim not in kept]
    log_p = log_p.sum(others) if others else log_p
    log_p = log_p.unsqueeze(1) if layout.is_joint else log_p
    num_weights = layout.num_weights(num_data)
    if log_p.shape[0] not in (1, num_particles) or log_p.shape[1] not in (1, num_weights):
        raise ValueError(
            f"site {site['name']!r} did not broadcast over {num_particles} particles and "
            f"{num_data} data: its log-probabilities are of shape {tuple(log_p.shape)}"
        )
    return log_p


def _scale(site: Site, layout: Layout) -> float | Tensor:
    """The site's own, without the N/B by which the plate over the data is larger than a subsample.

    Raises:
        ValueError: discrete latents that are summed out have none.
    """
    if site["scale"] is None:
        raise ValueError(
            f"site {site['name']!r} and the discrete latents that are summed out with it have "
            "different scales, of which no sum can be taken: train without a warm-up"
        )
    shares = (full_share(frame) for frame in plates_of(site) if frame.dim == layout.data_dim)
    return site["scale"] / next(shares, 1.0)


def full_share(frame: CondIndepStackFrame) -> float:
    """N/B of a plate of which B of N are used."""
    return (frame.full_size or frame.size) / frame.size


def sum_of_sites(
    sites: Iterable[Site],
    num_particles: int,
    num_data: int,
    layout: Layout,
    *,
    scaled: bool = False,
    detach: bool = False,
) -> Tensor:
    """The joint log-probability of sites `[S, M]`, their values detached or not."""
    total = torch.zeros(())
    for site in sites:
        value = site["value"].detach() if detach and torch.is_tensor(site["value"]) else None
        total = total + log_prob_per_datum(
            site, num_particles, num_data, layout, scaled=scaled, value=value
        )
    return total.expand(num_particles, layout.num_weights(num_data))


@dataclass(frozen=True)
class LogProbs:
    """The terms of log w = log p(x | z) + log p(z) − log q(z | x), each `[S, M]`, in nats."""

    log_p_x: Tensor
    log_p_z: Tensor
    log_q_z: Tensor

    @property
    def log_w(self) -> Tensor:
        """The log importance weights `[S, M]`."""
        return self.log_p_x + self.log_p_z - self.log_q_z


def terms_of(traces: Traces, num_particles: int, num_data: int, layout: Layout) -> LogProbs:
    """The terms of log w of one run of the pair, unscaled, each `[S, M]`."""
    shape = num_particles, num_data, layout
    return LogProbs(
        sum_of_sites(observed_sites(traces.model).values(), *shape),
        sum_of_sites(latent_sites(traces.model).values(), *shape),
        sum_of_sites(random_sites(traces.guide).values(), *shape),
    )
