"""Which model: Bayes factors and posterior model probabilities, with what the errors leave open."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from evidence.inference.estimation.evidence import Evidence

# ln BF above which the evidence is more than a bare mention, strong, and very strong.
_GRADES = ((5.0, "very strong"), (3.0, "strong"), (1.0, "positive"))
# So many standard errors must not change the words.
_LEVEL = 0.95
_NUM_SCENARIOS = 20_000
_MORE = (
    "spend more on the less certain side: more particles, chains or temperatures, or a guide "
    "closer to the posterior"
)


@dataclass(frozen=True)
class BayesFactor:
    """Log p(x | first) − log p(x | second), in nats of all the data; larger is better for first.

    Args:
        log_bf: the estimate.
        se: its Monte Carlo standard error.
        bias: by how much it may be too high, and too low, as either evidence is a lower bound.
        not_reliable: why nothing can be claimed, where a side is not reliable; else None.
        names: of both sides.
    """

    log_bf: float
    se: float
    bias: tuple[float, float] = (0.0, 0.0)
    not_reliable: str | None = None
    names: tuple[str, str] = ("the first model", "the second model")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of `log_bf`, widened by what either lower bound may be off."""
        half = NormalDist().inv_cdf(0.5 + _LEVEL / 2) * self.se
        return self.log_bf - half - self.bias[0], self.log_bf + half + self.bias[1]

    @property
    def verdict(self) -> str:
        """What may be said of the two models, in words; nothing that the interval leaves open.

        The words are those of R. E. Kass, A. E. Raftery, "Bayes Factors", 1995,
        https://doi.org/10.1080/01621459.1995.10476572, section 3.2.
        """
        if self.not_reliable is not None:
            return f"nothing can be claimed: {self.not_reliable}"
        low, high = self.interval
        if not (math.isfinite(low) and math.isfinite(high)):
            return f"nothing can be claimed: the interval is not finite; {_MORE}"
        if low <= 0 <= high:
            within = max(-low, high)
            if within < _GRADES[-1][0]:
                return "neither model is favoured: not worth more than a bare mention"
            return f"nothing can be claimed: either model may be favoured; {_MORE}"
        winner = self.names[0] if low > 0 else self.names[1]
        least, most = sorted((abs(low), abs(high)))
        grade, at_most = _grade(least), _grade(most)
        if grade is None:
            more = f", at most {at_most}" if at_most else ""
            return f"hardly any evidence for {winner}: not worth more than a bare mention{more}"
        return f"{grade if grade == at_most else f'at least {grade}'} evidence for {winner}"

    def __str__(self) -> str:
        low, high = self.interval
        if self.not_reliable is not None:
            return f"log BF {self.log_bf:+.2f}, NOT RELIABLE: {self.verdict}"
        return (
            f"log BF {self.log_bf:+.3f} ± {self.se:.3f} (95%: {low:+.2f} to {high:+.2f}): "
            f"{self.verdict}"
        )


def bayes_factor(
    first: Evidence,
    second: Evidence,
    *,
    names: tuple[str, str] = ("the first model", "the second model"),
) -> BayesFactor:
    """The Bayes factor of two models of the same data, from an evidence of each.

    Of models with latents per datum the evidences of the data are added up: they must be of all the
    data, not of a test set. Priors must be proper: the Bayes factor is as good as they are, see
    `prior_sensitivity`.

    Args:
        first: evidence of one model, such as `smc_evidence`, `bridge_evidence`, ….
        second: of the other, of the same data.
        names: what to call them.

    Raises:
        ValueError: evidences of different numbers of data.
    """
    sizes = [_num_data(record) for record in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"expected evidences of the same data, got {sizes[0]} and {sizes[1]} data")
    reasons = [
        f"{name} is not reliable, {record.not_reliable}"
        for name, record in zip(names, (first, second), strict=True)
        if record.not_reliable is not None
    ]
    one, other = total(first), total(second)
    lacking = [max(0.0, -record.mean_bias) * record.num_data for record in (first, second)]
    return BayesFactor(
        log_bf=one[0] - other[0],
        se=math.hypot(one[1], other[1]),
        bias=(lacking[1], lacking[0]),
        not_reliable="; ".join(reasons) or None,
        names=names,
    )


def total(record: Evidence) -> tuple[float, float]:
    """Log p of all the data and its Monte Carlo standard error, in nats."""
    return record.mean * record.num_data, record.mc_se * record.num_data


@dataclass(frozen=True)
class ModelProbability:
    """The posterior probability of a model, and the 95% interval that Monte Carlo errors leave."""

    probability: float
    low: float
    high: float


def model_probabilities(
    evidences: Mapping[str, Evidence], prior: Sequence[float] | None = None
) -> dict[str, ModelProbability]:
    """Posterior probabilities of models, given all of them and the same data.

    The interval is that of the probabilities when the estimates move by their standard errors, all
    of them together, as independent normal errors.

    Args:
        evidences: of every model, by name.
        prior: of every model, in the same order; equal ones by default.

    Raises:
        ValueError: fewer than two models, evidences of different numbers of data, or a prior that
            is none.
    """
    if len(evidences) < 2:
        raise ValueError(f"expected the evidences of two or more models, got {len(evidences)}")
    if len(sizes := {_num_data(record) for record in evidences.values()}) > 1:
        raise ValueError(f"expected evidences of the same data, got {sorted(sizes)} data")
    log_prior = _log_prior(prior, len(evidences))
    log_z, se = torch.tensor([total(e) for e in evidences.values()], dtype=torch.float64).unbind(1)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_NUM_SCENARIOS, len(se), dtype=torch.float64, generator=generator)
    scenarios = (log_z + se * noise + log_prior).softmax(1)
    ends = scenarios.quantile(torch.tensor([0.5 - _LEVEL / 2, 0.5 + _LEVEL / 2]).double(), 0)
    best = (log_z + log_prior).softmax(0)
    return {
        name: ModelProbability(*values)
        for name, *values in zip(evidences, best.tolist(), *ends.tolist(), strict=True)
    }


def _log_prior(prior: Sequence[float] | None, number: int) -> Tensor:
    if prior is None:
        return torch.zeros(number, dtype=torch.float64)
    if len(prior) != number or not all(p > 0 for p in prior):
        raise ValueError(f"expected a prior probability > 0 of each of {number} models")
    return torch.tensor(prior, dtype=torch.float64).log()


def _num_data(record: Evidence) -> int:
    return record.num_data if record.data_set_size is None else record.data_set_size


def _grade(log_bf: float) -> str | None:
    return next((word for least, word in _GRADES if log_bf > least), None)
