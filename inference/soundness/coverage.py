"""Whether a guide draws everywhere that the posterior has mass: what it misses, no weight shows."""

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, constraints
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch
from evidence.inference.programs.enumeration import trace_summed_out
from evidence.inference.programs.scoring import sum_of_sites
from evidence.inference.programs.sites import Site, latent_sites, observed_sites
from evidence.inference.programs.supports import (
    entry_of,
    has_narrow_image,
    is_everywhere,
    on_edge,
    support_of,
)
from evidence.inference.programs.traces import Layout, Program, random_sites, trace_pair
from evidence.inference.programs.unconstrained import Given, is_point
from evidence.inference.soundness.findings import Finding

SUPPORT_REMEDY = "let the guide's distribution have the model's support, by biject_to(support)"

# The share of a datum's posterior that may be missed.
_NEGLIGIBLE = 1e-3
_NUM_DRAWS = 8  # per datum, for each way of looking

_Values = dict[str, Tensor]


class Coverage:
    """A pair on some data, and draws from its prior: what of the posterior the guide misses.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`.
        layout: where the data are among the batch dimensions.
    """

    def __init__(self, model: Program, guide: Program, x: Batch, layout: Layout) -> None:
        self.model, self.guide, self.x, self.layout = model, guide, x, layout
        self.num_weights = layout.num_weights(len(x))
        self.traces = trace_pair(model, guide, x)

    @cached_property
    def _prior_draws(self) -> list[tuple[_Values, Tensor]]:
        """Latents and their log-likelihoods `[B]`; none of a prior that cannot be drawn from."""
        draws = []
        for _ in range(_NUM_DRAWS):
            try:
                trace = poutine.trace(self.model).get_trace(self.x)
            except NotImplementedError:
                return []
            draws.append((_values_of(trace), self._log_prob(observed_sites(trace))))
        return draws

    def faults(self) -> Iterator[Finding]:
        """Latents that the model allows for, p(x, z) > 0, and the guide never draws.

        Looked for among draws from the prior, weighted by the likelihood, and among the guide's
        own, mirrored at the ends of its support and weighted by p(x, z)/q(z | x): both estimate the
        share of the posterior that is missed.
        """
        sites = random_sites(self.traces.guide)
        for name, site in latent_sites(self.traces.model).items():
            if name not in sites or is_point(sites[name]):
                continue
            ours = sites[name]["fn"]
            if is_everywhere(ours) and not has_narrow_image(ours):
                continue
            shares = [*self._missed_mirrored(name, ours), self._missed_of_prior(name)]
            share = max(part.max().item() for part in shares)
            if share > _NEGLIGIBLE:
                q, p = words(support_of(ours)), words(support_of(site["fn"]))
                where = q if q != p else f"a part of {p}"
                problem = f"the guide draws from {where} alone, and misses {share:.1%} of the mass"
                yield Finding("support", name, problem, SUPPORT_REMEDY)

    def share_on_edge(self) -> Tensor:
        """Share of the posterior on the edge of a support, by draws from the prior: `[B]`."""
        edged = {
            name: site["fn"]
            for name, site in latent_sites(self.traces.model).items()
            if site["value"].is_floating_point() and not is_everywhere(site["fn"])
        }
        if not edged or not self._prior_draws:
            return torch.zeros(1)
        on_edges = [self._is_on_edge(edged, values) for values, _ in self._prior_draws]
        return _share(on_edges, [log_p_x for _, log_p_x in self._prior_draws])

    def _is_on_edge(self, edged: dict[str, TorchDistribution], values: _Values) -> Tensor:
        """Whether any of the latents is on the edge of its support: `[B]`."""
        found = torch.zeros(self.num_weights, dtype=torch.bool, device=self.x.device)
        for name, fn in edged.items():
            edge = on_edge(support_of(fn), values[name])
            edge = edge.flatten(edge.ndim - fn.event_dim).any(-1) if fn.event_dim else edge
            found = found | self._any_per_datum(edge)
        return found

    def _missed_of_prior(self, name: str) -> Tensor:
        """By draws from the prior: `[B]`."""
        if not self._prior_draws:
            return torch.zeros(1)
        missed = [self._is_missed(name, values) for values, _ in self._prior_draws]
        return _share(missed, [log_p_x for _, log_p_x in self._prior_draws])

    def _missed_mirrored(self, name: str, fn: TorchDistribution) -> Iterator[Tensor]:
        """By the guide's draws, mirrored at either end of its support: `[B]` for each."""
        entry = entry_of(support_of(fn))
        for side in ("lower_bound", "upper_bound"):
            end = getattr(entry, side, None)
            if end is None or entry.is_discrete:
                continue
            missed, weights = [], []
            for _ in range(_NUM_DRAWS):
                traces = trace_pair(self.model, self.guide, self.x)
                log_q = self._log_prob(random_sites(traces.guide))
                latents = _values_of(traces.model)
                beyond = {**latents, name: 2 * torch.as_tensor(end) - latents[name]}
                weights += [self._log_joint(values) - log_q for values in (latents, beyond)]
                missed += [torch.zeros_like(log_q), self._is_missed(name, beyond)]
            yield _share(missed, weights)

    def _log_joint(self, values: _Values) -> Tensor:
        with Given(values):
            return self._log_prob(random_sites(trace_summed_out(self.model, self.x)))

    def _log_prob(self, sites: dict[str, Site]) -> Tensor:
        total = sum_of_sites(sites.values(), 1, len(self.x), self.layout)[0]
        return torch.where(total.isnan(), -math.inf, total)

    def _is_missed(self, name: str, values: _Values) -> Tensor:
        """Whether the guide, given the latents drawn before, cannot draw this one: `[B]`."""
        with Given(values):
            site = random_sites(poutine.trace(self.guide).get_trace(self.x))[name]
        return self._any_per_datum(~_reaches(site["fn"], values[name]))

    def _any_per_datum(self, found: Tensor) -> Tensor:
        """Whether it is found in any other batch dimension: `[...batch] -> [B]`."""
        depth = -self.layout.particle_dim
        axis = self.layout.data_axis(depth)
        if axis is None:
            return found.any().reshape(1)
        found = found.reshape((1,) * (depth - found.ndim) + found.shape).movedim(axis, 0)
        return found.flatten(1).any(1).expand(len(self.x))


def _values_of(trace: Trace) -> _Values:
    return {name: site["value"] for name, site in latent_sites(trace).items()}


def _share(missed: list[Tensor], log_weights: list[Tensor]) -> Tensor:
    """The weight of what is missed in all of it: `[B]`."""
    weights = torch.stack(log_weights).double().softmax(0).nan_to_num(nan=0.0)
    return (weights * torch.stack(missed)).sum(0)


def _reaches(fn: TorchDistribution, value: Tensor) -> Tensor:
    """Whether a value is in the support, as declared and as it is: `[...batch]`."""
    support = support_of(fn)
    if not has_narrow_image(fn):
        return support.check(value)
    back, transforms = value, base_distribution(fn).transforms
    for transform in reversed(transforms):
        back = transform.inv(back)
    for transform in transforms:
        back = transform(back)
    close = torch.isclose(back, value, rtol=1e-2, atol=1e-3)
    return close.flatten(close.ndim - fn.event_dim).all(-1) if fn.event_dim else close


def words(support: constraints.Constraint) -> str:
    """A support in words."""
    entry = entry_of(support)
    if entry is constraints.real:
        return "real numbers"
    if getattr(entry, "is_discrete", False):
        return str(entry)
    ends = [getattr(entry, name, None) for name in ("lower_bound", "upper_bound")]
    if any(isinstance(end, Tensor) and len(end.unique()) > 1 for end in ends):
        return "an interval that varies"
    lower, upper = (
        None if end is None else f"{float(torch.as_tensor(end).max()):g}" for end in ends
    )
    if lower is None or upper is None:
        one_sided = f"numbers above {lower}" if upper is None else f"numbers below {upper}"
        return str(entry) if lower is upper else one_sided
    return f"numbers from {lower} to {upper}"
