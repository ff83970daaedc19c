"""Checks of a pair by its traces: sites, shapes, supports, plates, scales."""

import math
from collections.abc import Iterator

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.sites import Site, advice_on_discrete
from evidence.inference.programs.supports import declared_support
from evidence.inference.programs.traces import Traces, random_sites
from evidence.inference.programs.validation import MOVING
from evidence.inference.soundness.coverage import SUPPORT_REMEDY, words
from evidence.inference.soundness.findings import Finding
from evidence.inference.soundness.pairs import check_priors


def check_sites(guide: Trace, model: Trace) -> Iterator[Finding]:
    """Latents that one of the two lacks; nothing observed, or something in the guide."""
    sites, guided = random_sites(model), random_sites(guide)
    latents = {name for name, site in sites.items() if not site["is_observed"]}
    for name in sorted(latents - guided.keys()):
        mend = f"add pyro.sample({name!r}, ...) to the guide, or observe it in the model"
        mend = advice_on_discrete([sites[name]]).removeprefix(": ") or mend
        yield Finding("sites", name, "a latent of the model that the guide does not sample", mend)
    for name, site in guided.items():
        if site["is_observed"]:
            yield Finding("sites", name, "observed in the guide", "drop obs= there")
        elif name not in latents and not site["infer"].get("is_auxiliary"):
            mend = "rename it, or give the model a site of this name, of any density given the rest"
            yield Finding("sites", name, "sampled by the guide, no latent of the model", mend)
    if latents == sites.keys():
        yield Finding("sites", None, "the model observes nothing", "pass obs=x to its data's site")


def check_shapes(guide: Trace, model: Trace) -> Iterator[Finding]:
    """Event shapes that differ between guide and model."""
    for name, drawn, scored in _both(guide, model):
        ours, theirs = tuple(drawn["fn"].event_shape), tuple(scored["fn"].event_shape)
        if ours != theirs:
            mend = "give both the same sizes, and declare event dimensions with .to_event()"
            problem = f"event shape {ours} in the guide, {theirs} in the model"
            yield Finding("shape", name, problem, mend)


def _check_supports(guide: Trace, model: Trace) -> Iterator[Finding]:
    """A guide that draws where the prior has no density, or not everywhere it has."""
    for name, drawn, scored in _both(guide, model):
        ours, theirs = declared_support(drawn["fn"]), declared_support(scored["fn"])
        if ours is None or theirs is None:
            continue
        q, p = _bounds(drawn["fn"], ours), _bounds(scored["fn"], theirs)
        differ = q is not None and p is not None and not _equal(q, p)
        value = drawn["value"]
        outside = torch.isfinite(value).all() and not theirs.check(value).all()
        if differ or outside:
            problem = f"the guide draws from {words(ours)}, the model from {words(theirs)}"
            yield Finding("support", name, problem, SUPPORT_REMEDY)


def _check_plates(role: str, trace: Trace, _: int) -> Iterator[Finding]:
    """Dimensions that belong to no plate."""
    for name, site in random_sites(trace).items():
        frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
        batch = site["fn"].batch_shape
        dims = {frame.dim for frame in frames}
        stray = [d for d in range(-len(batch), 0) if batch[d] != 1 and d not in dims]
        if stray:
            problem = f"batch shape {tuple(batch)} in the {role}: dims {stray} belong to no plate"
            yield Finding("shape", name, problem, "declare them with .to_event()")


def _check_scales(role: str, trace: Trace, _: int) -> Iterator[Finding]:
    """Scales other than 1, by `poutine.scale` or a subsampled plate."""
    for name, site in random_sites(trace).items():
        scale = torch.as_tensor(site["scale"])
        if (scale == 1).all():
            continue
        partial = [f for f in site["cond_indep_stack"] if f.full_size not in (None, f.size)]
        sizes = [f"a plate of {frame.full_size} subsampled to {frame.size}" for frame in partial]
        why = sizes[0] if sizes else "poutine.scale"
        problem = f"scaled by {scale.max().item():g} in the {role}, by {why}"
        mend = "a batch is data of its own, and no part of it: use no scale, and "
        mend += 'pyro.plate("data", len(x)) without subsampling'
        yield Finding("scale", name, problem, mend)


def _check_finite(role: str, trace: Trace, _: int) -> Iterator[Finding]:
    """Log-probabilities that are NaN or infinite."""
    for name, site in random_sites(trace).items():
        log_p = site["fn"].log_prob(site["value"])
        if not torch.isfinite(log_p).all():
            bad = log_p[~torch.isfinite(log_p)].flatten()[0].item()
            problem = f"a log-probability of {bad} in the {role}"
            mend = "look at the parameters of its distribution"
            mend += f"; {MOVING}" if bad == -math.inf and site["is_observed"] else ""
            yield Finding("finite", name, problem, mend)


OF_THE_PAIR = {
    "sites": check_sites,
    "shape": check_shapes,
    "support": _check_supports,
    "prior": lambda guide, model: check_priors(Traces(guide, model)),
}
OF_ONE = {"plate": _check_plates, "scale": _check_scales, "finite": _check_finite}


def _both(guide: Trace, model: Trace) -> Iterator[tuple[str, Site, Site]]:
    drawn = random_sites(guide)
    for name, site in random_sites(model).items():
        if name in drawn and not site["is_observed"]:
            yield name, drawn[name], site


_Bounds = tuple[Tensor, Tensor, bool]


def _bounds(fn: TorchDistribution, support: constraints.Constraint) -> _Bounds | None:
    """Lower and upper end, and whether it is discrete, of a support of entries on their own.

    None where it is of another kind, or not to be relied on: a point mass repeats what was drawn
    elsewhere, and torch takes the last of several transforms for all of them.
    """
    if type(base_distribution(fn)).__name__ in ("Delta", "TransformedDistribution"):
        return None
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.boolean:
        ends = 0, 1
    elif support is constraints.real:
        ends = None, None
    else:
        ends = getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)
        if ends == (None, None):
            return None
    lower, upper = (-math.inf if ends[0] is None else ends[0]), ends[1]
    upper = math.inf if upper is None else upper
    lower, upper = (torch.as_tensor(end).double().cpu() for end in (lower, upper))
    return lower, upper, support.is_discrete


def _equal(a: _Bounds, b: _Bounds) -> bool:
    return a[2] == b[2] and all(bool((u == v).all()) for u, v in zip(a[:2], b[:2], strict=True))
