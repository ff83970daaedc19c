"""The latents that a guide of a model draws: their shapes and supports, and which data share."""

from dataclasses import dataclass

import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.distributions.transforms import biject_to
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.enumeration import ONLY_DISCRETE, moved_by_enumerated
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import dim_of, latent_sites, plates_of, random_sites
from evidence.inference.programs.supports import entry_of
from evidence.inference.programs.traces import Layout, common_dims, trace_of_one_more
from evidence.inference.programs.unconstrained import Assignment, Packing, Site

_FEW = 64  # data: enough to see where every datum has latents of its own


@dataclass(frozen=True)
class Latents:
    """What a guide of a model draws on some data.

    Args:
        sites: the latent sites in the model's order, as one run drew them.
        layout: where the data are among the batch dimensions; joint if the data share a latent.
        local: those of each datum, inside the plate over the data, where the data share others.
        data_dim: of that plate; None where there is no such latent.
        imputed: what `obs_mask` leaves unobserved, which has no likelihood: no part of `sites`.
        dependent: those whose location or scale depends on other latents, and on no discrete one.
        is_enumerated: whether the model has others, discrete, that are summed out.
        supports_vary: whether a support depends on other latents, or on the rows of a batch.
        x: the data that the run was on.
    """

    sites: dict[str, Site]
    layout: Layout
    local: frozenset[str]
    data_dim: int | None
    imputed: dict[str, Site]
    dependent: frozenset[str]
    is_enumerated: bool
    supports_vary: bool
    x: Batch

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device of the latents."""
        return next(iter(self.sites.values()))["value"]


@torch.no_grad()
def latents_of(model: Program, x: Batch) -> Latents:
    """Run the model, and find its latents and their plates.

    Discrete latents that the model enumerates are summed out: no guide draws them.

    Args:
        model: called with the data; scores them.
        x: the data.

    Raises:
        ValueError: there are no latents, or one cannot be drawn by a density on real numbers.
    """
    with isolated_rng(0, x.device), evaluation_mode(model):
        few, layout, trace = _looked_at(model, x)
        larger, again = trace_of_one_more(model, few), _drawn(prior_trace(model, few))
    sites, latents = _drawn(trace), latent_sites(trace)
    dims = {name: _dims(site, len(few)) for name, site in latents.items()}
    if larger is not None:  # a plate of another kind does not grow along with the data
        grown = latent_sites(larger)
        dims = {n: d & _dims(grown[n], len(few) + 1) if n in grown else d for n, d in dims.items()}
    data_dim = layout.data_dim
    if layout.is_joint:
        data_dim = max(set().union(*dims.values()), default=None)
    imputed = {name: site for name, site in latents.items() if _is_imputed(name, trace)}
    local = frozenset(name for name in sites if data_dim in dims[name])
    dependent = frozenset(name for name, site in sites.items() if _depends(site, again[name]))
    enumerated = len(sites) + len(imputed) < len(latents)
    if enumerated:
        values = {name: site["value"] for name, site in sites.items()}
        dependent -= moved_by_enumerated(model, few, values)  # which no guide knows
    vary = any(_varies(site, again[name], name in local) for name, site in sites.items())
    return Latents(sites, layout, local, data_dim, imputed, dependent, enumerated, vary, few)


def prior_trace(model: Program, x: Batch) -> Trace:
    """A run of the model; latents that cannot be drawn from their prior are somewhere inside."""

    def inside(site: Site) -> Tensor:
        fn = site["fn"]
        try:
            return fn.sample()
        except NotImplementedError:  # an improper prior
            transform = biject_to(fn.support)
            shape = transform.inverse_shape(fn.shape())
            return transform(torch.zeros(shape, dtype=x.dtype, device=x.device))

    return poutine.trace(InitMessenger(inside)(model)).get_trace(x)


def _looked_at(model: Program, x: Batch) -> tuple[Batch, Layout, Trace]:
    """The first data, or all of them where they share latents or the model runs on no others."""
    if len(x) > _FEW:
        try:
            layout, trace = _layout_of(model, x[:_FEW])
        except Exception:  # what is wrong shows, or does not, with all data
            return x, *_layout_of(model, x)
        if not layout.is_joint:
            return x[:_FEW], layout, trace
    return x, *_layout_of(model, x)


def _layout_of(model: Program, x: Batch) -> tuple[Layout, Trace]:
    trace = prior_trace(model, x)
    sites = random_sites(trace).values()
    outermost = min((dim_of(plate) for site in sites for plate in plates_of(site)), default=0)
    dims = common_dims([trace], len(x))
    if dims and (larger := trace_of_one_more(model, x)) is not None:
        dims &= common_dims([larger], len(x) + 1)
    data_dim = next(iter(dims)) if len(dims) == 1 else None  # pairs of data are no data
    return Layout(data_dim, outermost - 1), trace


def _drawn(trace: Trace) -> dict[str, Site]:
    """The latent sites, but for those that are summed out.

    Raises:
        ValueError: there are none, or a discrete one that is not summed out.
    """
    latents = latent_sites(trace)
    if not latents:
        raise ValueError("expected a model with latent sites, got none: there is nothing to infer")
    found = {}
    for name, site in latents.items():
        if site["infer"].get("enumerate") == "parallel" or _is_imputed(name, trace):
            continue
        if getattr(site["fn"].support, "is_discrete", False):
            raise ValueError(
                f"latent site {name!r} is discrete, and no density on real numbers draws it: let "
                "Pyro sum it out, by pyro.infer.config_enumerate(model, 'parallel')"
            )
        found[name] = site
    if not found:
        raise ValueError(f"expected a model with continuous latents, {ONLY_DISCRETE}")
    return found


def _is_imputed(name: str, trace: Trace) -> bool:
    """Whether it is one of the two sites that Pyro makes of one with an `obs_mask`."""
    return name.endswith("_unobserved") and f"{name.removesuffix('_unobserved')}_observed" in trace


def _dims(site: Site, size: int) -> set[int]:
    return {dim_of(plate) for plate in plates_of(site) if plate.size == size}


def _depends(site: Site, again: Site) -> bool:
    """Whether the location or the scale of a prior is another one in another run."""
    one, other = (base_distribution(of["fn"]) for of in (site, again))
    return any(
        not torch.equal(getattr(one, name), getattr(other, name))
        for name in ("loc", "scale", "scale_tril")
        if isinstance(getattr(one, name, None), Tensor)
    )


def _varies(site: Site, again: Site, is_local: bool) -> bool:
    """Whether the ends of a support are others in another run, or may be on other rows."""
    ends = [_ends(of["fn"].support) for of in (site, again)]
    return any(
        not torch.equal(one, other) or (is_local and one.numel() > 1)
        for one, other in zip(*ends, strict=True)
    )


def _ends(support: constraints.Constraint) -> list[Tensor]:
    return [value for value in vars(entry_of(support)).values() if isinstance(value, Tensor)]


def log_joint(model: Program, x: Batch, packing: Packing, u: Tensor) -> Tensor:
    """Log p(x, T(u)) + log|det ∂T/∂u| in nats at one point u `[Z]`, scaled as the program is."""
    with Assignment(packing, u.reshape(1, 1, -1), has_chains=False) as assignment:
        trace = poutine.trace(model).get_trace(x)
    total = torch.as_tensor(trace.log_prob_sum())
    for ladj in assignment.ladj.values():
        total = total + ladj.sum()
    return total
