"""Bidirectional Monte Carlo: the evidence of simulated data from below and from above."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from evidence.inference.annealing.options import Options
from evidence.inference.annealing.run import AnnealingRun
from evidence.inference.estimation.reliability import edge_caveat
from evidence.inference.estimation.standard_error import standard_error
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.programs import estimators
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.simulation import device_of, simulate
from evidence.inference.programs.traces import Program, random_sites
from evidence.inference.soundness.pairs import expect_sound_model, expect_sound_pair
from evidence.inference.training.snapshots import Snapshot


@dataclass(frozen=True)
class Bracket:
    """Log p(x) of simulated data between two bounds. Nats per datum.

    Args:
        x: the simulated data `[B, *data_shape]`.
        log_px_lower: forward estimates `[B]`, at most log p(x) in expectation.
        log_px_upper: reverse estimates `[B]`, at least log p(x) in expectation.
        num_chains: C, chains per datum and direction.
        caveat: a reason for not relying on the bounds, with what would help.
    """

    x: Batch
    log_px_lower: Tensor
    log_px_upper: Tensor
    num_chains: int
    caveat: str | None = None

    @property
    def lower(self) -> float:
        """Mean lower bound."""
        return self.log_px_lower.mean().item()

    @property
    def upper(self) -> float:
        """Mean upper bound."""
        return self.log_px_upper.mean().item()

    @property
    def gap(self) -> float:
        """Mean of upper minus lower: in expectation, what both bounds are off by together."""
        return (self.log_px_upper - self.log_px_lower).mean().item()

    @property
    def gap_se(self) -> float:
        """Standard error of `gap`, over data and chains; NaN for a single datum."""
        return standard_error(self.log_px_upper - self.log_px_lower)

    @property
    def likely_gap(self) -> float:
        """The most that the lower bound is likely off by, gap + 2 SE; for `compare_evidences`."""
        return likely_gap(self.gap, self.gap_se)

    @property
    def not_reliable(self) -> str | None:
        """Why the bounds are not to be relied on, and what would help; None if nothing shows that.

        They are where they contradict each other: an upper bound below the lower one.
        """
        if not math.isfinite(self.gap):
            return "a bound is not finite, as all weights are zero: use more chains (num_chains)"
        if self.gap < -5 * self.gap_se:
            return (
                "the upper bound is below the lower one: check the model (evidence check), and "
                "compute in double (--dtype float64)"
            )
        return self.caveat

    def __str__(self) -> str:
        data = "1 simulated datum" if len(self.x) == 1 else f"{len(self.x)} simulated data"
        if len(self.log_px_lower) < len(self.x):  # they share latents
            data = f"a simulated data set of {len(self.x)}"
        why, bar = self.not_reliable, f" ± {self.gap_se:.3f}"
        has_bar = why is None and math.isfinite(self.gap_se)
        mark, reason = ("", "") if why is None else ("NOT RELIABLE, ", f": {why}")
        unit = "nats" if data.startswith("a ") else "nats per datum"
        return (
            f"{mark}{self.lower:.3f} to {self.upper:.3f} {unit}, gap {self.gap:.3f}"
            f"{bar if has_bar else ''} ({data}, {self.num_chains} chains){reason}"
        )


def likely_gap(gap: float, se: float) -> float:
    """The most that a bound is likely off by, of a mean gap and its standard error."""
    return max(gap, 0.0) + 2 * se


def bidirectional_evidence(
    model: Program,
    *,
    size: int | None = None,
    like: Batch | Any = None,
    guide: Program | None = None,
    progress: bool = False,
    resume_from: Snapshot | None = None,
    on_snapshot: Callable[[Snapshot], None] | None = None,
    **options: Any,
) -> Bracket:
    """Bidirectional Monte Carlo: log p(x) of simulated data, from below and from above.

    (z*, x) are drawn from the model, so that z* is an exact draw from p(z | x). Forward chains, as
    in `anneal`, give a lower bound in expectation; reverse chains take the same transitions, with
    the same step sizes, from z* back, and their inverse weights average to 1/p(x): an upper bound
    in expectation. Their gap says how far annealing with these options is off *on data like the
    model's own*; on real data, for which there is no z*, it proves nothing.

    Reference: R. B. Grosse, Z. Ghahramani, R. P. Adams, "Sandwiching the marginal likelihood using
    bidirectional Monte Carlo", 2015, https://arxiv.org/abs/1511.02543.

    Args:
        model: simulates with `model(None, size=n)` and scores with `model(x)`, as the suite's do.
        size: B, the number of data to simulate.
        like: in place of `size`, for any Pyro model: data in the form that it takes, a tensor, a
            tuple or a dict. What it observes is drawn anew, all else is kept.
        guide: see `anneal`.
        progress: see `anneal`.
        resume_from: see `anneal`.
        on_snapshot: see `anneal`.
        options: see `anneal`; num_chains is C, per datum and direction.

    Raises:
        ValueError: as `anneal`; neither or both of `size` and `like`; a model that cannot
            simulate; a guide whose draws cannot be found from the latents.
    """
    chosen = Options(**options)
    if (size is None) == (like is None):
        raise ValueError("expected either a size, or data to simulate others like")
    if like is not None:
        like = as_data(like)
        model, guide = takes(model, like), None if guide is None else takes(guide, like)
    device = device_of(model, like) or torch.device("cpu")
    with annealing_mode(model, guide, chosen.seed, device) as refuse_new_parameters:
        trace, x = simulate(model, size, like)
        values = {name: site["value"].unsqueeze(0) for name, site in random_sites(trace).items()}
        check_data(x, "the simulated x")
        if guide is not None:
            expect_sound_pair(model, guide, x)
        exact = path_of(model, guide, x).locate(values)[0]
        run = AnnealingRun(model, guide, x, chosen, exact)
        if guide is None:
            expect_sound_model(model, x)
        refuse_new_parameters()
        if resume_from is not None:
            run.restore(resume_from)
        results = run.run(progress=progress, on_snapshot=on_snapshot)
    lower, upper = estimators.iwae(results["log_w"]), -estimators.iwae(-results["reverse_log_w"])
    found = Bracket(x, lower, upper, run.num_chains)
    return replace(found, caveat=edge_caveat(results["on_edge"], found.gap_se, x.dtype))
