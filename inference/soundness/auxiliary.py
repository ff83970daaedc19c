"""Auxiliary draws of a guide: valid where the model's latents are an invertible function of them.

A guide whose latents are `Delta` sites at T(u), u ~ q(u | x) an auxiliary site, has the density
q(z | x) = q(u | x) |det ∂u/∂z|: the `Delta`s hold the Jacobian as their log-density, as those of
Pyro's autoguides do. A draw that the latents do not determine has no place in log q: the model has
nothing to set against it, and the "evidence" rises above log p(x).
"""

from collections.abc import Collection, Iterator

import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

from evidence.inference.programs.checks import is_bare_point, unmoved
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.supports import on_edge
from evidence.inference.programs.traces import Layout, Program, Traces, random_sites
from evidence.inference.programs.unconstrained import (
    Assignment,
    Given,
    Packing,
    Site,
    is_point,
    log_jacobian_of,
    log_prob_of,
)
from evidence.inference.soundness.findings import Finding

# Entries of the auxiliary draws of a datum whose Jacobian is computed row by row.
_MOST_ENTRIES = 512
_STEPS_FROM_EDGE = 1e4  # of the last numbers of a dtype

_REMEDY = (
    "give the model a site of this name too, of any density given the latents and x, or make the "
    "latents an invertible function of it, with pyro.distributions.Delta and its log_density"
)


def check_auxiliary(guide: Program, traces: Traces, x: Batch, layout: Layout) -> Iterator[Finding]:
    """Auxiliary draws that the model's latents do not determine, or a Jacobian that is wrong."""
    sites, scored = random_sites(traces.guide), random_sites(traces.model)
    fixed = _fixed_points(guide, sites, x)  # of no draw: as they are trained they have an ELBO
    drawn = {n: s for n, s in sites.items() if n not in scored and not s["is_observed"]}
    drawn = {n: s for n, s in drawn.items() if n not in fixed}
    if not drawn:
        return
    made = {n: s for n, s in sites.items() if n in scored and is_point(s) and n not in fixed}
    first = next(iter(drawn))
    if not made:
        problem = "an auxiliary draw that the model lacks, and of which no latent is a function"
        yield Finding("sites", first, problem, _REMEDY)
        return
    ours = Packing(drawn, layout)
    theirs = Packing({name: scored[name] for name in made}, layout)
    if ours.dim != theirs.dim:
        problem = (
            f"auxiliary draws of {ours.dim} entries per datum make latents of {theirs.dim} "
            f"({', '.join(made)}): one does not determine the other"
        )
        yield Finding("sites", first, problem, _REMEDY)
    elif ours.dim <= _MOST_ENTRIES:
        yield from _check_jacobian(guide, traces, x, layout, (ours, theirs))


def _check_jacobian(
    guide: Program, traces: Traces, x: Batch, layout: Layout, packings: tuple[Packing, Packing]
) -> Iterator[Finding]:
    """Is the log-density of the `Delta` sites −log|det ∂z/∂u|?"""
    ours, theirs = packings
    sites, scored = random_sites(traces.guide), random_sites(traces.model)
    others = {n: s["value"] for n, s in sites.items() if n in scored and n not in theirs.dims}
    with torch.enable_grad(), isolated_rng(device=x.device):
        u = ours.pack(sites, 1, len(x)).detach().requires_grad_()
        with Given(others), Assignment(ours, u, has_chains=False) as assignment:
            again = random_sites(poutine.trace(guide).get_trace(x))
        made = {n: {**scored[n], "value": s["value"]} for n, s in again.items() if n in theirs.dims}
        y = theirs.pack(made, 1, len(x))  # unconstrained: [1, B, Z]
        rows = [_gradient(y[0, :, entry].sum(), u)[0] for entry in range(theirs.dim)]
    log_det = torch.linalg.slogdet(torch.stack(rows, 1).double()).logabsdet  # [B]
    log_det = log_det - _total(assignment.ladj, sites, x, layout)
    with torch.no_grad(), Assignment(theirs, y.detach(), has_chains=False) as back:
        for site in made.values():
            back.assign(dict(site))
    log_det = log_det + _total(back.ladj, scored, x, layout)
    parts = (log_prob_of(again[name], 1, len(x), layout)[0].double() for name in made)
    stated = sum(parts, torch.zeros(()))
    known = ~_near_edge(made, len(x), layout)  # elsewhere rounding is as large as what is asked
    log_det, stated = log_det[known], stated.expand_as(log_det)[known]
    off = (log_det + stated).abs()
    name = next(iter(made))
    if not torch.isfinite(log_det).all():
        problem = "made from auxiliary draws, of which it is no invertible function"
        yield Finding("sites", name, problem, _REMEDY)
    elif (off > 1e-3 * (1 + log_det.abs())).any():
        worst = int(off.argmax())
        problem = (
            f"made from auxiliary draws with a log_density of {stated[worst]:.4f}, "
            f"where −log|det| of their Jacobian is {-log_det[worst]:.4f}"
        )
        yield Finding("density", name, problem, "pass Delta(value, log_density=-log|det|)")


def _fixed_points(guide: Program, sites: dict[str, Site], x: Batch) -> Collection[str]:
    """The guide's point masses, which no draw moves."""
    points = {name: site for name, site in sites.items() if is_bare_point(site)}
    if not points:
        return ()
    with isolated_rng(device=x.device):
        for _ in range(2):  # one run might draw the very numbers that these are made of
            points = unmoved(points, poutine.trace(guide).get_trace(x))
    return points


def _near_edge(sites: dict[str, Site], num_data: int, layout: Layout) -> Tensor:
    """Whether a value lies so near the edge of its support that T⁻¹ loses its digits: `[B]`."""
    edges, real = {}, {}
    for name, site in sites.items():
        support, event_dim = site["fn"].support, site["fn"].event_dim
        found = on_edge(support, site["value"].detach(), num_steps=_STEPS_FROM_EDGE)
        edges[name] = {**site, "value": found.to(site["value"])}
        real[name] = constraints.independent(constraints.real, event_dim)
    return Packing(edges, layout, real).pack(edges, 1, num_data)[0].any(-1)


def _gradient(value: Tensor, u: Tensor) -> Tensor:
    """∂value/∂u `[1, B, Z]`; zeros where it does not depend on u."""
    if not value.requires_grad:
        return torch.zeros_like(u)
    (gradient,) = torch.autograd.grad(
        value, u, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return gradient


def _total(ladj: dict[str, Tensor], sites: dict[str, Site], x: Batch, layout: Layout) -> Tensor:
    """Σ log|det ∂T/∂u| of the sites per datum: `[B]`."""
    total = torch.zeros(layout.num_weights(len(x)), dtype=torch.float64, device=x.device)
    for name, part in ladj.items():
        per_weight = log_jacobian_of(sites[name], part.detach(), 1, len(x), layout)
        total = total + per_weight[0].double()
    return total
