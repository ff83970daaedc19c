"""The estimates of log p(x): how each is called, drawn and judged, for whoever reports them."""

from collections.abc import Sequence
from dataclasses import dataclass

from evidence.experiments.storage.records import Estimate


@dataclass(frozen=True)
class Estimator:
    """One way to estimate log p(x).

    Args:
        name: in options and in results.json.
        heading: of its column; `{}` stands for the number of particles.
        legend: in pictures.
        colour: in pictures, of Okabe and Ito.
        marker: in pictures.
        is_exact: whether it has no Monte Carlo error and is no bound.
        is_evidence: whether it approaches log p(x) with more particles, as the ELBO does not.
    """

    name: str
    heading: str
    legend: str
    colour: str
    marker: str
    is_exact: bool = False
    is_evidence: bool = True

    def column(self, estimate: Estimate) -> str:
        """The heading of an estimate's column."""
        if estimate.mean_num_particles is not None:
            return self.heading.replace("-{}", ", adaptive")
        return self.heading.format(estimate.num_particles)


# The nearest to log p(x) comes first: no reader should take a bound for it that stands before it.
ESTIMATORS: dict[str, Estimator] = {
    one.name: one
    for one in (
        Estimator("exact", "exact", "exact", "black", "D", is_exact=True),
        Estimator("bridge", "bridge", "bridge", "#CC79A7", "D"),
        Estimator("smc", "SMC lower bound", "SMC, lower bound", "#E69F00", "v"),
        Estimator("ais", "AIS lower bound", "AIS, lower bound", "#009E73", "^"),
        Estimator("iw", "IW-{}", "IW, lower bound", "#D55E00", "s"),
        Estimator("elbo", "ELBO", "ELBO", "#0072B2", "o", is_evidence=False),
    )
}


def in_order(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Estimates, the nearest to log p(x) first."""
    names = list(ESTIMATORS)
    return sorted(estimates, key=lambda estimate: names.index(estimate.estimator))
