"""Checks of data and of model/guide pairs, each failing with one line that names the mend."""

import inspect
from collections.abc import Callable, Mapping

import torch
from pyro.distributions import (
    Bernoulli,
    Delta,
    ImproperUniform,
    Multinomial,
    TorchDistribution,
    constraints,
)
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.data import Batch, Data
from evidence.inference.programs.sites import Site, is_deterministic, sites_of

_ENDS = ("lower_bound", "upper_bound")  # of an interval
_COUNTS = constraints.independent(constraints.nonnegative_integer, 1)


def check_data(x: Batch, name: str = "x") -> None:
    """Check that `x` is a non-empty, finite batch `[N, *data_shape]`; of several tensors each.

    Raises:
        ValueError: with what was expected and what was got.
    """
    if isinstance(x, Data):
        for tensor in x.tensors:
            if tensor.ndim and tensor.is_floating_point():
                check_data(tensor, name)
        return
    if not isinstance(x, Tensor) or x.ndim < 1:
        raise ValueError(f"expected {name} to be a tensor of shape (N, ...), got {_describe(x)}")
    if x.is_complex():
        raise ValueError(f"expected {name} to be real numbers, got {x.dtype}")
    if x.numel() == 0:
        raise ValueError(f"expected at least one datum in {name}, got shape {tuple(x.shape)}")
    if torch.isfinite(x.sum()):  # one fast pass; a sum that overflows gets the slow one too
        return
    bad = ~torch.isfinite(x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)).all(1)
    if bad.any():
        raise ValueError(
            f"{name} has NaN or infinite values in {int(bad.sum())} of {len(x)} data "
            f"(first at row {int(bad.nonzero()[0])}): remove or repair these rows"
        )


def check_support(model_trace: Trace, again: Callable[[], Trace] | None = None) -> None:
    """Check that every observed value lies in the support of its distribution.

    A support that moves with the latents may leave out the data for some of them, where p(x, z) is
    zero: nothing is wrong with that.

    Args:
        model_trace: of a run.
        again: runs the model with other latents; None to take all supports for fixed.

    Raises:
        ValueError: names the site, the distribution, the support and a value outside it.
    """
    for name, site in sites_of(model_trace).items():
        if site["type"] == "sample" and site["is_observed"] and not is_deterministic(site):
            try:
                check_site_support(name, site["fn"], site["value"])
            except ValueError:
                if again is None or has_fixed_support(site["fn"]) or not _moves(name, again):
                    raise


def _moves(name: str, again: Callable[[], Trace]) -> bool:
    """Whether the ends of a site's support are others in every run."""
    supports = [base_distribution(sites_of(again())[name]["fn"]).support for _ in range(3)]
    ends = [
        torch.cat([torch.as_tensor(getattr(support, end, 0.0)).flatten() for end in _ENDS])
        for support in supports
    ]
    return any(not torch.equal(ends[0], other) for other in ends[1:])


def has_fixed_support(fn: TorchDistribution) -> bool:
    """Whether the support is that of the family, whatever the parameters.

    So it is for whoever sees only a sum over discrete latents.
    """
    if type(fn).__name__ == "SummedOut":
        return True
    if isinstance(base_distribution(fn), Multinomial):
        return True
    support = inspect.getattr_static(base_distribution(fn), "support", None)
    return isinstance(support, constraints.Constraint) and not constraints.is_dependent(support)


def check_site_support(name: str, fn: TorchDistribution, value: Tensor) -> None:
    """Check that an observed value lies in the support of its distribution.

    Raises:
        ValueError: as `check_support`.
    """
    base, support = base_distribution(fn), getattr(fn, "support", None)
    entry = getattr(base, "support", None)
    if support is None or entry is None or entry is constraints.real:
        return  # that all numbers are finite was checked before
    if isinstance(base, Multinomial):  # total_count is for draws alone: any total has a density
        entry, support = constraints.nonnegative_integer, _COUNTS
    if support.check(value).all():
        return
    elementwise = entry.check(value)
    outside = value[~elementwise].flatten()[:1] if elementwise.shape == value.shape else value[:1]
    family = type(base).__name__
    mend = "binarize the data first" if isinstance(base, Bernoulli) else "transform the data"
    raise ValueError(
        f"data outside the support of site {name!r}: {family} expects {_words(entry)}, got "
        f"values such as {outside.flatten()[0].item():.4g}: {mend}, or choose another likelihood"
    )


def check_density(
    guide_trace: Trace,
    model_trace: Trace | None = None,
    *,
    again: Callable[[], Trace] | None = None,
) -> None:
    """Check that the guide is a density: a point mass has none, so its weights mean nothing.

    A `Delta` with a log-density of its own, or one that follows an auxiliary draw (Pyro's
    autoguides), only moves a draw that was scored elsewhere.

    Args:
        guide_trace: a run of the guide.
        model_trace: a run of the model, whose missing prior no other guide could mend.
        again: runs the guide anew; None to take every `Delta` beside auxiliary draws for moved.

    Raises:
        ValueError: names the site.
    """
    sites = {n: s for n, s in sites_of(guide_trace).items() if s["type"] == "sample"}
    points = {name: site for name, site in sites.items() if is_bare_point(site)}
    has_auxiliary = any(site["infer"].get("is_auxiliary") for site in sites.values())
    if points and has_auxiliary:
        points = {} if again is None else unmoved(points, again())
    for name, site in points.items():
        if model_trace is not None and _is_improper(sites_of(model_trace).get(name)):
            raise ValueError(
                f"the model has no prior on {name!r} (ImproperUniform), and its guide "
                "is a point mass (Delta), which has no density: there is no log p(x); choose a "
                "model with a prior, such as VAE, and a guide such as MeanField"
            )
        if site["infer"].get("is_auxiliary"):
            raise ValueError(
                f"guide site {name!r} is a point mass (Delta), as AutoLaplaceApproximation is "
                "while it is trained: take its guide.laplace_approximation(data) for a guide"
            )
        raise ValueError(
            f"guide site {name!r} is a point mass (Delta), which has no density: "
            "log p(x) cannot be estimated with it; choose another guide, such as MeanField"
        )


def is_bare_point(site: Site) -> bool:
    """Whether a sample site is a `Delta` without a log-density of its own."""
    base = base_distribution(site["fn"])
    is_point = isinstance(base, Delta) and not is_deterministic(site)
    return is_point and not base.log_density.any()


def unmoved(points: Mapping[str, Site], again: Trace) -> dict[str, Site]:
    """The points that are where they were in another run: no draw moves them."""
    others = sites_of(again)
    return {
        name: site
        for name, site in points.items()
        if name in others and torch.equal(site["value"], others[name]["value"])
    }


def _is_improper(site: Site | None) -> bool:
    return site is not None and isinstance(base_distribution(site["fn"]), ImproperUniform)


def base_distribution(fn: TorchDistribution) -> TorchDistribution:
    """The distribution inside `Independent`, masked, expanded and summed wrappers."""
    wrappers = ("Independent", "MaskedDistribution", "ExpandedDistribution", "SummedOut")
    while type(fn).__name__ in wrappers:
        fn = fn.base_dist
    return fn


def _words(support: object) -> str:
    text = str(support)
    return {"Boolean()": "values 0 and 1", "Real()": "real numbers"}.get(text, text)


def _describe(x: object) -> str:
    return f"a tensor of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
