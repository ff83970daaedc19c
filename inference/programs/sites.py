"""The sample sites of a trace."""

from collections.abc import Iterable
from typing import Any, cast

from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.runtime import Message
from pyro.poutine.util import site_is_subsample

Site = dict[str, Any]  # of a Pyro trace


def latent_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites that have a density and are not observed, by name."""
    return {name: site for name, site in random_sites(trace).items() if not site["is_observed"]}


def observed_sites(trace: Trace) -> dict[str, Site]:
    """The sites that are observed, by name."""
    return {name: site for name, site in random_sites(trace).items() if site["is_observed"]}


def random_sites(trace: Trace) -> dict[str, Site]:
    """The sample sites that have a density, by name; neither subsamples nor deterministic ones."""
    return {
        name: site
        for name, site in sites_of(trace).items()
        if site["type"] == "sample" and not is_subsample(site) and not is_deterministic(site)
    }


def sites_of(trace: Trace) -> dict[str, Site]:
    """All the nodes of a trace by name; by Pyro's types any entry of theirs may be missing."""
    return cast("dict[str, Site]", trace.nodes)


def is_subsample(site: Site) -> bool:
    """Whether the site holds the rows that a plate has drawn."""
    return site_is_subsample(cast("Message", site))


def is_deterministic(site: Site) -> bool:
    """Whether the site was made by `pyro.deterministic`."""
    return bool(site["infer"].get("_deterministic"))


def dim_of(plate: CondIndepStackFrame) -> int:
    """Its dim, counted from the right, of one that `plates_of` gives: others have none."""
    assert plate.dim is not None
    return plate.dim


def plates_of(site: Site) -> list[CondIndepStackFrame]:
    """The plates that a site is in."""
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def advice_on_discrete(sites: Iterable[Site]) -> str:
    """What to do about discrete latents that nothing draws; an empty text without any."""
    discrete = [site for site in sites if getattr(site["fn"].support, "is_discrete", False)]
    if not discrete:
        return ""
    if not all(site["fn"].has_enumerate_support for site in discrete):
        return ": they are discrete without an end, so the guide must sample them"
    return (
        ": they are discrete, and are summed out if you decorate the model with "
        "pyro.infer.config_enumerate"
    )
