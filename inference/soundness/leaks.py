"""Whether a row of a pair depends on another datum: its weight is then none of its own."""

from collections.abc import Collection, Iterator

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.data import Batch, Data
from evidence.inference.programs.enumeration import trace_summed_out
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.scoring import log_prob_per_datum
from evidence.inference.programs.traces import Program, layout_of, random_sites
from evidence.inference.programs.unconstrained import is_point
from evidence.inference.soundness.findings import Finding

Scores = dict[tuple[str, str], Tensor]  # (role, site) -> log-probability of every row, [B]

LEAK_REMEDY = "let row j depend on x[j] only: no statistics across the batch"
POSITION_REMEDY = (
    "let row j depend on x[j] only: pass all that is of each row in as data, keep no parameter per "
    "row, shuffle nothing"
)


_RELATIVE = {torch.float32: 1e-5, torch.float64: 1e-9}  # as large as rounding may be


@torch.no_grad()
def check_leaks(model: Program, guide: Program, x: Batch) -> Iterator[Finding]:
    """Row j of the pair, at the same latents, when another datum changes."""
    others = _other_rows(x)
    if not others:
        return
    scores = RowScores(model, guide, x)
    if scores.layout.is_joint:  # all data share the weight
        return
    before = scores.at(x)
    after = [scores.at(x[torch.tensor([other, *range(1, len(x))])]) for other in others]
    for role, site in before:
        ours = before[role, site]
        theirs = next((s[role, site] for s in after if not same(ours[1:], s[role, site][1:])), ours)
        if theirs is not ours:
            row = 1 + int((ours - theirs)[1:].abs().nan_to_num().argmax())
            yield Finding("leak", site, f"row {row} of the {role} changes with x[0]", LEAK_REMEDY)


@torch.no_grad()
def check_positions(
    model: Program, guide: Program, x: Batch, roles: Collection[str] = ("guide", "model")
) -> Iterator[Finding]:
    """Rows and latents further by one: the scores must follow, or batches meet the wrong rows."""
    scores = RowScores(model, guide, x) if len(x) > 1 else None
    if scores is None or scores.layout.is_joint:
        return
    rows = torch.arange(len(x), device=x.device).roll(1)
    before, after = scores.at(x, roles), scores.rolled().at(x[rows], roles)
    for role, site in before:
        if not same(before[role, site].roll(1), after[role, site]):
            problem = f"a row of the {role} depends on its place in the batch, not on x alone"
            yield Finding("leak", site, problem, POSITION_REMEDY)


class RowScores:
    """Log-probabilities of every row, given latents that are drawn once.

    The latents are held fixed rather than drawn anew from the same random numbers: a rejection
    sampler uses up more or fewer of these when another row changes.
    """

    def __init__(self, model: Program, guide: Program, x: Batch) -> None:
        self.model, self.guide = model, guide
        self.layout = layout_of(model, guide, x, require_density=False)
        self.latents = poutine.trace(guide).get_trace(x)

    def at(self, x: Batch, roles: Collection[str] = ("guide", "model")) -> Scores:
        """Of the sites of guide and model, each `[B]`."""
        run = {
            "guide": lambda: self._of_guide(x),
            "model": lambda: trace_summed_out(self.model, x, self.latents),
        }
        with isolated_rng(0, x.device):  # what the programs draw besides, such as dropout
            traces = {role: run[role]() for role in roles}
        return {
            (role, name): log_prob_per_datum(site, 1, len(x), self.layout)[0].expand(len(x))
            for role, trace in traces.items()
            for name, site in random_sites(trace).items()
        }

    def _of_guide(self, x: Batch) -> Trace:
        """The guide at the latents; what it makes of others may be rounded otherwise in a row."""
        drawn, points = self.latents.copy(), []
        for name, site in random_sites(self.latents).items():
            if is_point(site):
                drawn.remove_node(name)
                points.append((name, site["value"]))
        trace = poutine.trace(poutine.replay(self.guide, drawn)).get_trace(x)
        for name, value in points:
            made = random_sites(trace)[name]
            relative = _RELATIVE.get(made["value"].dtype, 1e-9)
            close = torch.isclose(made["value"], value, rtol=relative, atol=relative)
            made["value"] = torch.where(close, made["value"], value)
        return trace

    def rolled(self) -> "RowScores":
        """The same latents, each one row further."""
        for site in random_sites(self.latents).values():
            dim = self.layout.data_dim - site["fn"].event_dim
            if -dim <= site["value"].ndim:
                site["value"] = site["value"].roll(1, dim)
        return self


def same(a: Tensor, b: Tensor) -> bool:
    """Whether log-probabilities agree up to rounding."""
    relative = _RELATIVE.get(a.dtype, 1e-9)
    return torch.allclose(a, b, rtol=relative, atol=relative, equal_nan=True)


def _other_rows(x: Batch) -> set[int]:
    """Rows that differ from the first one: the first such of every tensor that has rows."""
    tensors = x.tensors if isinstance(x, Data) else [x]
    by_row = [tensor for tensor in tensors if tensor.ndim and len(tensor) == len(x)]
    differ = [t.ne(t[:1]).reshape(len(x), -1).any(1).nonzero() for t in by_row]
    return {int(rows[0]) for rows in differ if len(rows)}
