"""Discrete latents of a model summed out exactly, by Pyro's enumeration."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution, Unit, constraints
from pyro.distributions.util import scale_and_mask
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum import torch_log
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evidence.inference.programs.checks import check_support
from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.masking import unmasked
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import Site, dim_of, plates_of, random_sites, sites_of
from evidence.inference.programs.supports import zero_outside

ONLY_DISCRETE = (
    "discrete ones alone, all summed out: there is nothing to draw, and "
    "importance_weighted_evidence(model, lambda *data, **named: None, data, 2) is exact"
)

_FIRST_DIM = -13  # of enumeration: left of the plates of any program, and of that of particles


class _SafeLog(torch.autograd.Function):
    """Pyro's `safe_log`, a logarithm with a finite slope at zero, for `torch.vmap` as well."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """Log x."""
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Keep x."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient, cut off where x is zero."""
        (x,) = ctx.saved_tensors
        return grad / x.clamp(min=torch.finfo(x.dtype).eps)


torch_log.safe_log = _SafeLog.apply  # what sums out latents under `torch.vmap` stops at Pyro's own


class SummedOut(TorchDistribution):
    """The log-probability of a value together with the discrete latents that it depends on.

    Args:
        base_dist: of the value, given the latents.
        log_sum: log Σ_k p(k) p(value | k), `[*batch]`.
    """

    def __init__(self, base_dist: TorchDistribution, log_sum: Tensor) -> None:
        self.base_dist, self.log_sum = base_dist, log_sum
        super().__init__(log_sum.shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> constraints.Constraint | None:
        """That of the value."""
        return self.base_dist.support

    @property
    def has_rsample(self) -> bool:
        """It is not drawn from."""
        return False

    def log_prob(self, value: Tensor) -> Tensor:
        """Of the one value that the sum was made for."""
        return self.log_sum


def is_enumerated(site: Mapping[str, Any]) -> bool:
    """Whether a latent site asks to be summed out."""
    is_latent = site["type"] == "sample" and not site["is_observed"]
    return is_latent and site["infer"].get("enumerate") == "parallel"


def is_summed_out(site: Mapping[str, Any]) -> bool:
    """Whether a site has all its values at once, in a dim of their own."""
    return "_enumerate_dim" in site["infer"]


def prior_of(model: Program) -> Program:
    """The model as a guide that draws all latents, but for those summed out, from the prior."""
    return poutine.block(
        model, hide_fn=lambda site: site.get("is_observed", False) or is_enumerated(site)
    )


def undrawn(model: Program) -> Program:
    """The model with the latents that it enumerates at their first values; none drawn.

    For what does not depend on them: the values and supports of the other latents, which may then
    be asked for under `torch.vmap`, too.
    """
    return _Undrawn()(model)


class _Undrawn(Messenger):
    def _pyro_sample(self, msg: Site) -> None:
        if is_enumerated(msg) and msg["value"] is None and msg["fn"].has_enumerate_support:
            msg["value"] = msg["fn"].enumerate_support()[0]


@torch.no_grad()
def moved_by_enumerated(model: Program, x: Batch, values: dict[str, Tensor]) -> frozenset[str]:
    """The sites whose distribution depends on latents that the model enumerates, at any of these.

    Args:
        model: called with a batch; scores it.
        x: data.
        values: of the other latents, by site name.
    """
    with isolated_rng(device=x.device):
        trace = poutine.trace(_enumerating(pyro.condition(model, values))).get_trace(x)
    return frozenset(
        name
        for name, site in random_sites(trace).items()
        if len(site["fn"].batch_shape) >= -_FIRST_DIM
    )


def _enumerating(model: Program) -> Program:
    return EnumMessenger(first_available_dim=_FIRST_DIM)(model)


def trace_summed_out(model: Program, x: Batch, latents: Trace | None = None) -> Trace:
    """A run of the model in which the discrete latents that it enumerates are summed out.

    Models are decorated with `pyro.infer.config_enumerate`, or mark sites by
    `infer={"enumerate": "parallel"}`. All other latents must be given, by a trace or by a handler
    outside. What depends on a latent that is summed out counts with it as one site, the first
    observed one.

    Reference: F. Obermeyer et al., "Tensor Variable Elimination for Plated Factor Graphs", 2019,
    https://arxiv.org/abs/1902.03210.
    """
    program = _enumerating(model)
    program = program if latents is None else poutine.replay(program, trace=latents)
    trace = poutine.trace(program).get_trace(x)
    if not any(is_summed_out(site) for site in random_sites(trace).values()):
        return trace
    return _without_enumerated(trace)


def given(truth: Trace) -> Trace:
    """The draws of a run of the model that are to be given when the others are summed out."""
    kept = Trace()
    for name, site in sites_of(truth).items():
        if not is_enumerated(site):
            kept.add_node(name, **site)
    return kept


def sums_out(traces: Iterable[Trace]) -> bool:
    """Whether discrete latents were summed out in one of these runs."""
    sites = (site for trace in traces for site in random_sites(trace).values())
    return any("summed_plates" in site["infer"] for site in sites)


class _Component(NamedTuple):
    """Sites that depend on the same enumerated latents, and the symbols of these."""

    sites: dict[str, Site]
    symbols: set[str]


def _without_enumerated(trace: Trace) -> Trace:
    sites = random_sites(trace)
    check_support(trace, lambda: trace)
    for site in sites.values():
        site["log_prob"] = site["unscaled_log_prob"] = _log_prob(site)
    trace.pack_tensors()
    changed: dict[str, Site | None] = {}
    for component in _components(trace, sites):
        carrier = _carrier(component)
        changed |= dict.fromkeys(component.sites)
        if carrier is not None:
            changed[carrier["name"]] = _summed(trace, component, carrier)
    result = Trace()
    for name, site in sites_of(trace).items():
        kept = changed.get(name, site)
        if kept is not None:
            result.add_node(name, **kept)
    return result


def _log_prob(site: Site) -> Tensor:
    """Masked and unscaled, in the shape of its plates, which Pyro's contraction relies on.

    But for what is summed out: masked, all K values would count one, and their sum K, where the
    expectation over draws, which a mask leaves as they are, takes their probabilities, and so does
    Pyro's `TraceEnum_ELBO`.
    """
    in_full = is_summed_out(site)
    fn = unmasked(site["fn"]) if in_full else site["fn"]
    log_p = zero_outside(site, fn.log_prob(site["value"]))
    log_p = scale_and_mask(log_p, 1.0, None if in_full else site["mask"])
    shape = [1] * -min((dim_of(frame) for frame in plates_of(site)), default=0)
    for frame in plates_of(site):
        shape[dim_of(frame)] = frame.size
    return log_p.expand(torch.broadcast_shapes(log_p.shape, shape))


def _components(trace: Trace, sites: dict[str, Site]) -> Iterator[_Component]:
    """The parts that have no enumerated latent in common; none of sites without."""
    plates = set(trace.plate_to_symbol.values())
    found: list[_Component] = []
    for name, site in sites.items():
        symbols = set(site["packed"]["log_prob"]._pyro_dims) - plates
        if not symbols and not is_enumerated(site):
            continue
        members = {name: site}
        for other in [c for c in found if c.symbols & symbols]:
            found.remove(other)
            members, symbols = other.sites | members, other.symbols | symbols
        found.append(_Component(members, symbols))
    yield from found


def _carrier(component: _Component) -> Site | None:
    """The site that stands for all: the first observed, or else the last that is not summed out."""
    observed = [site for site in component.sites.values() if site["is_observed"]]
    others = [site for site in component.sites.values() if not is_summed_out(site)]
    return next(iter(observed + others[::-1]), None)


def _summed(trace: Trace, component: _Component, carrier: Site) -> Site:
    """The carrier with the log-probability of the component."""
    factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for site in component.sites.values():
        ordinal = frozenset(trace.plate_to_symbol[frame.name] for frame in plates_of(site))
        factors.setdefault(ordinal, []).append(site["packed"]["log_prob"])
    [(ordinal, [term])] = contract_tensor_tree(factors, component.symbols).items()
    log_sum = packed.unpack(term, trace.symbol_to_dim)
    frames = {f for s in component.sites.values() for f in plates_of(s)}
    common = {f for f in frames if trace.plate_to_symbol[f.name] in ordinal}
    scales = [site["scale"] for site in component.sites.values()]
    infer = {**carrier["infer"], "summed_plates": frames - common}
    changed = {"fn": SummedOut(carrier["fn"], log_sum), "mask": None, "infer": infer}
    if not common >= set(plates_of(carrier)):  # one number for several values
        changed |= {"fn": Unit(log_sum), "value": log_sum.new_empty(0), "is_observed": True}
    changed["cond_indep_stack"] = tuple(sorted(common, key=lambda frame: frame.dim))
    changed["scale"] = scales[0] if all(scale == scales[0] for scale in scales) else None
    return {**carrier, **changed}
