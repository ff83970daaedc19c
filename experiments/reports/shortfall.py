"""By how much each ELBO falls short of log p(x), judged by the best log p(x) that there is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evidence.experiments.setup.estimators import ESTIMATORS
from evidence.experiments.storage.records import Estimate, Row


@dataclass(frozen=True)
class Shortfall:
    """Log p(x) − ELBO of one row, nats per datum.

    Args:
        nats: the difference; at least so much where the log p(x) is a lower bound.
        mc_se: its Monte Carlo standard error.
        judge: the estimator of the log p(x).
        reason: why the log p(x) is not reliable, or None.
    """

    nats: float
    mc_se: float
    judge: str
    reason: str | None


def share_a_model(rows: Sequence[Row]) -> bool:
    """Whether all rows are of one and the same p(x, z)."""
    return rows[0].decoder == "frozen" or rows[0].num_model_parameters == 0


def shortfalls(rows: Sequence[Row]) -> list[Shortfall] | None:
    """Every row's, or None where one has no log p(x) beside its ELBO.

    Judged by the exact value, else by the best lower bound that its own diagnostics support. Rows
    of one model share its log p(x), and so the best of all their bounds: a guide whose importance
    weights fail is not to look good for it.
    """
    estimates = [row.estimates for row in rows]
    if share_a_model(rows):
        every = [estimate for of_row in estimates for estimate in of_row]
        judges = [_judge(every)] * len(rows)
    else:
        judges = [_judge(of_row) for of_row in estimates]
    found = [
        _shortfall(judge, estimate)
        for judge, of_row in zip(judges, estimates, strict=True)
        for estimate in of_row
        if judge is not None and estimate.estimator == "elbo" and estimate.nats is not None
    ]
    return found if len(found) == len(rows) else None


def _judge(estimates: Sequence[Estimate]) -> Estimate | None:
    """The estimate to judge by: exact, or the largest reliable lower bound, or the largest."""
    known = [(ESTIMATORS[e.estimator], e) for e in estimates if e.nats is not None]
    found = [estimate for kind, estimate in known if kind.is_evidence]
    exact = [estimate for kind, estimate in known if kind.is_exact]
    reliable = [e for e in found if e.reliable]
    return max(exact or reliable or found, key=_nats, default=None)


def _nats(estimate: Estimate) -> float:
    return -math.inf if estimate.nats is None else estimate.nats


def _shortfall(judge: Estimate, elbo: Estimate) -> Shortfall:
    mc_se = math.hypot(judge.mc_se or 0.0, elbo.mc_se or 0.0)
    reason = None if judge.reliable else judge.reason
    return Shortfall(_nats(judge) - _nats(elbo), mc_se, judge.estimator, reason)
