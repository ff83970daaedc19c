"""The estimates of log p(x): how each is called, drawn and judged, for whoever reports them."""

from collections.abc import Sequence
from dataclasses import dataclass

from evidence.experiments.config import Estimation
from evidence.experiments.storage.records import Estimate
from evidence.inference.annealing.options import Options


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
        note: what stands above a table about its column, where it was made beside the weights of
            the guide; `{how}` stands for the options of annealing, `{start}` for where it began.
    """

    name: str
    heading: str
    legend: str
    colour: str
    marker: str
    is_exact: bool = False
    is_evidence: bool = True
    note: str = ""

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
        Estimator(
            "bridge",
            "bridge",
            "bridge",
            "#CC79A7",
            "D",
            note="Bridge, no bound: Meng and Wong's between the guide and draws by NUTS.",
        ),
        Estimator("nested", "nested sampling", "nested sampling", "#56B4E9", "P"),
        Estimator(
            "smc",
            "SMC lower bound",
            "SMC, lower bound",
            "#E69F00",
            "v",
            note="SMC, a lower bound in expectation: waste-free, from the {start}.",
        ),
        Estimator(
            "ais",
            "AIS lower bound",
            "AIS, lower bound",
            "#009E73",
            "^",
            note="AIS, a lower bound in expectation: {how}.",
        ),
        Estimator("iw", "IW-{}", "IW, lower bound", "#D55E00", "s"),
        Estimator("elbo", "ELBO", "ELBO", "#0072B2", "o", is_evidence=False),
    )
}


def in_order(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Estimates, the nearest to log p(x) first."""
    names = list(ESTIMATORS)
    return sorted(estimates, key=lambda estimate: names.index(estimate.estimator))


def num_chains(config: Estimation, *, is_joint: bool) -> int:
    """How many chains anneal, of each datum or of all that share latents."""
    return Options(num_chains=config.num_chains).chains(is_joint=is_joint)
