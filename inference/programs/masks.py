"""Latents masked out where nothing depends on them, such as those of `obs_mask` and of padding.

A model that masks the prior of some entries leaves them without a density, and a guide that knows
nothing of the mask, such as Pyro's autoguides, draws them all the same: p(x, z) / q(z | x) is then
no weight. Where nothing else depends on these entries, scoring their prior in full leaves p(x) as
it is and makes it one. So do latents that are summed out, whatever depends on them. It is all one
whether a mask is around a site (`poutine.mask`) or inside its distribution (`.mask`).
"""

from collections.abc import Collection

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.enumeration import is_enumerated
from evidence.inference.programs.masking import counted, is_masked, unmasked
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import Site, sites_of


class InFull(Messenger):
    """Scores latents of these names, and all that are summed out, as if they were not masked."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = names
        self.does = "unmasks", frozenset(names)  # all that there is to it, see `Compiled`

    def _pyro_sample(self, msg: Site) -> None:
        # Observed, too, where NUTS conditions on it, or summed out by a handler outside.
        if msg["name"] in self.names or (is_enumerated(msg) and msg["value"] is None):
            msg["mask"], msg["fn"] = None, unmasked(msg["fn"])


@torch.no_grad()
def without_effect(
    model: Program, x: Batch, model_trace: Trace, guide_trace: Trace | None = None
) -> frozenset[str]:
    """The latents that the model masks, the guide does not, and on whose rest nothing depends."""
    masked = [
        site
        for site in sites_of(model_trace).values()
        if site["type"] == "sample"
        and not site["is_observed"]
        and is_masked(site)
        and (guide_trace is None or _is_in_full(sites_of(guide_trace).get(site["name"])))
    ]
    if not masked:
        return frozenset()
    with isolated_rng(device=x.device):
        return frozenset(s["name"] for s in masked if _has_no_effect(model, x, model_trace, s))


def _is_in_full(site: Site | None) -> bool:
    return site is None or not is_masked(site)


def _has_no_effect(model: Program, x: Batch, trace: Trace, site: Site) -> bool:
    """Whether all else is as it was when the entries that are masked out are drawn anew."""
    try:
        changed = trace.copy()
        value = torch.where(counted(site).to(x.device), site["value"], site["fn"]())
        sites_of(changed)[site["name"]] = {**site, "value": value}
        again = poutine.trace(poutine.replay(model, trace=changed)).get_trace(x)
    except Exception:  # whatever a program raises
        return False
    before, after = _all_but(site["name"], trace), _all_but(site["name"], again)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


def _all_but(name: str, trace: Trace) -> dict[str, Tensor]:
    """The masked log-probabilities of all other sites."""
    trace.compute_log_prob()
    return {
        other: site["log_prob"]
        for other, site in sites_of(trace).items()
        if site["type"] == "sample" and other != name
    }
