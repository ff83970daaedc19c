"""Paired differences: A − B for every datum, of one fit or of several."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from scipy.stats import t as student_t
from torch import Tensor

from evidence.inference.estimation.evidence import Evidence
from evidence.inference.estimation.mean_interval import mean_interval
from evidence.inference.estimation.standard_error import standard_error


@dataclass(frozen=True)
class Difference:
    """A − B for every datum, in nats; larger is better for A.

    Paired: what makes a datum hard for both sides cancels, so that `data_se` is far below that of
    either side. Of several fits, each with a training seed of its own, fits and data are both taken
    as drawn at random. The three error bars answer different questions and are never mixed.

    Where data share latents there is one difference for all of them, B = 1: it is then that of two
    numbers for the same data set, with no error from the data, and the interval is that of the
    Monte Carlo error, and of the fits.

    Args:
        per_datum: the differences `[B]`; or of several fits `[S, B]`.
        variance: their Monte Carlo variances, of the same shape.
        data_set_size: N, where there is one difference for a data set of N data; else None.
    """

    per_datum: Tensor
    variance: Tensor
    data_set_size: int | None = None

    @property
    def is_of_data_set(self) -> bool:
        """Whether it is of two numbers for one data set, and no mean over data."""
        return self.data_set_size is not None

    @property
    def num_data(self) -> int:
        """B, the number of data."""
        return self.per_datum.shape[-1]

    @property
    def num_fits(self) -> int:
        """S, how often both sides were fitted."""
        return len(self.per_datum) if self.per_datum.ndim == 2 else 1

    @property
    def mean(self) -> float:
        """Mean over the data and the fits, nats per datum."""
        return self.per_datum.double().mean().item()

    @property
    def mc_se(self) -> float:
        """Standard error of `mean` from the finite number of particles, all else held fixed."""
        return math.sqrt(self.variance.double().sum().item()) / self.variance.numel()

    @property
    def data_se(self) -> float:
        """Standard error of `mean` from the finite data, the particles' share taken out.

        The fits are held fixed. NaN for a single datum.
        """
        own = self._over_fits(self.variance) / self.num_fits
        return standard_error(self._over_fits(self.per_datum), own)

    @property
    def fit_se(self) -> float:
        """Standard error of `mean` from the finite number of fits, the particles' share taken out.

        The data are held fixed. NaN for a single fit, which tells nothing of others.
        """
        own = self._over_data(self.variance) / self.num_data
        return standard_error(self._over_data(self.per_datum), own)

    @property
    def se(self) -> float:
        """Standard error of `mean` for all data and fits there might be; of one fit, for it."""
        fits = self.fit_se if self.num_fits > 1 else 0.0
        return math.hypot(self.mc_se, 0.0 if self.is_of_data_set else self.data_se, fits)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of the mean over all data, and all fits, there might be.

        Of a single fit it is about this fit. Over the data it is `mean_interval`, which holds for
        skewed differences; over few fits Student's t with S − 1 degrees of freedom. Half-widths
        add in squares, as for any sum of independent effects (G. Y. Zou, A. Donner, "Construction
        of confidence limits about effect measures", 2008, https://doi.org/10.1002/sim.3095).

        Returns:
            Both ends; NaN for fewer than 30 data, unless it is of a data set.

        Raises:
            ValueError: a level outside of 0..1.
        """
        low, high = self._interval_over_data(level)
        half = 0.0
        if self.num_fits > 1:
            quantile = float(student_t.ppf(0.5 + level / 2, self.num_fits - 1))
            half = quantile * standard_error(self._over_data(self.per_datum))
        mean = self.mean
        return mean - math.hypot(mean - low, half), mean + math.hypot(high - mean, half)

    def _interval_over_data(self, level: float) -> tuple[float, float]:
        if self.is_of_data_set:
            half = NormalDist().inv_cdf(0.5 + level / 2) * self.mc_se
            return self.mean - half, self.mean + half
        se = torch.tensor(math.hypot(self.mc_se, self.data_se), dtype=torch.float64)
        low, high = mean_interval(self._over_fits(self.per_datum).cpu(), level, se=se)
        return low.item(), high.item()

    def _over_fits(self, values: Tensor) -> Tensor:
        """Mean over the fits: `[B]`."""
        return values.double().reshape(self.num_fits, -1).mean(0)

    def _over_data(self, values: Tensor) -> Tensor:
        """Mean over the data: `[S]`."""
        return values.double().reshape(self.num_fits, -1).mean(1)

    def __str__(self) -> str:
        fits = f", ± {self.fit_se:.4f} ({self.num_fits} fits)" if self.num_fits > 1 else ""
        if self.is_of_data_set:
            return f"{self.mean:+.4f} nats, ± {self.mc_se:.4f} (Monte Carlo){fits}"
        return (
            f"{self.mean:+.4f} nats per datum, ± {self.mc_se:.4f} (Monte Carlo), "
            f"± {self.data_se:.4f} ({self.num_data} data){fits}"
        )


def paired_difference(
    first: Evidence | Sequence[Evidence], second: Evidence | Sequence[Evidence]
) -> Difference:
    """`first` − `second`, datum by datum; their particles are taken to be independent.

    Particles with common noise make the Monte Carlo SE too large, not too small, where both sides
    rise and fall together.

    Args:
        first: one record, or one per fit.
        second: as many, on the same data; where a fit of both sides shares something, such as the
            model or the seed, at the same place.

    Raises:
        ValueError: records over different numbers of data, an estimate that is not finite, or
            another number of fits on one side.
    """
    pairs = [fits_of(first), fits_of(second)]
    if len(pairs[0]) != len(pairs[1]):
        raise ValueError(
            f"expected as many fits on both sides, got {len(pairs[0])} and {len(pairs[1])}"
        )
    differences = [_difference(*pair) for pair in zip(*pairs, strict=True)]
    if len(differences) == 1:
        return differences[0]
    if len({one.num_data for one in differences}) > 1:
        raise ValueError("expected all fits over the same data, got different numbers of them")
    return Difference(
        torch.stack([one.per_datum for one in differences]),
        torch.stack([one.variance for one in differences]),
        differences[0].data_set_size,
    )


def fits_of(records: Evidence | Sequence[Evidence]) -> Sequence[Evidence]:
    """The records of every fit, of which there may be one alone."""
    return [records] if isinstance(records, Evidence) else records


def _difference(first: Evidence, second: Evidence) -> Difference:
    if first.num_data != second.num_data or first.data_set_size != second.data_set_size:
        sizes = [record.data_set_size or record.num_data for record in (first, second)]
        raise ValueError(
            f"expected records over the same data, got {sizes[0]} and {sizes[1]} of them"
        )
    for record in (first, second):
        if bad := int((~torch.isfinite(record.log_px)).sum()):
            raise ValueError(
                f"expected finite estimates, got {bad} of {record.num_data} that are not: leave "
                "these data out on both sides"
            )
    return Difference(
        first.log_px.double() - second.log_px.double(),
        first.log_px_variance.double() + second.log_px_variance.double(),
        first.data_set_size,
    )
