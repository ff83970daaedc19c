"""Paired differences and their verdicts, on data whose differences are known."""

import math

import pyro
import pytest
import torch

from guides import MeanField
from inference import Evidence, estimate_evidence
from inference.comparison import (
    Difference,
    compare_elbos,
    compare_evidences,
    paired_difference,
)
from tests.conftest import make_oracle


def record(log_px, variance=0.0, estimator="iw"):
    log_px = torch.as_tensor(log_px, dtype=torch.float64)
    nothing = torch.full_like(log_px, math.nan)
    return Evidence(estimator, 100, log_px, torch.full_like(log_px, variance), nothing, nothing)


def hard_data(size=400):
    """Evidences that differ far more between data than between models."""
    return 20 * torch.randn(size, dtype=torch.float64) - 90


def test_the_difference_is_of_pairs_and_its_error_bars_are_kept_apart():
    """True difference 0.3 ± 0.5 per datum, seen through Monte Carlo noise of 0.4 on each side.

    The planted error, unpaired records, has a data SE that is 50 times as long.
    """
    base = hard_data(20_000)
    own = 0.3 + 0.5 * torch.randn(20_000, dtype=torch.float64)
    noise = 0.4 * torch.randn(2, 20_000, dtype=torch.float64)
    first, second = record(base + own + noise[0], 0.16), record(base + noise[1], 0.16)
    difference = paired_difference(first, second)
    assert abs(difference.mean - own.mean().item()) < 5 * difference.mc_se
    assert abs(difference.mean + 0.1 - own.mean().item()) > 5 * difference.mc_se
    assert difference.mc_se == pytest.approx(0.4 * math.sqrt(2 / 20_000))
    assert difference.data_se == pytest.approx(0.5 / math.sqrt(20_000), rel=0.05)
    assert difference.se == pytest.approx(math.hypot(difference.mc_se, difference.data_se))
    assert math.hypot(first.data_se, second.data_se) > 40 * difference.data_se


@pytest.mark.parametrize("num_data", [5, 100])
def test_the_interval_covers(num_data):
    """95% of 4,000 intervals, within 1%; those of the normal law cover five data too seldom."""
    draws = 0.3 + torch.randn(4000, num_data, dtype=torch.float64)
    differences = [Difference(row, torch.zeros(num_data)) for row in draws]
    hits = [low < 0.3 < high for low, high in (d.interval() for d in differences)]
    planted = [abs(d.mean - 0.3) < (0.98 if num_data > 5 else 1.96) * d.se for d in differences]
    assert sum(hits) / 4000 == pytest.approx(0.95, abs=0.01)
    assert sum(planted) / 4000 < 0.9
    low, high = differences[0].interval(0.5)
    quartile = {5: 0.7407, 100: 0.6770}[num_data]  # of Student's t with one degree less
    assert high - low == pytest.approx(2 * quartile * differences[0].se, rel=1e-3)
    two_se = {5: 2.869, 100: 2.025}[num_data]
    assert differences[0].two_se == pytest.approx(two_se * differences[0].se, rel=1e-3)


@pytest.fixture(scope="module")
def two_guides():
    """The exact posterior's location with scales of their own; KL from the posterior known."""
    model = make_oracle()
    pyro.set_rng_seed(1)
    x = model(None, size=100)
    guides = {}
    for label, log_scale in (("close", 0.0), ("wide", 0.2)):
        guide = MeanField(3, 10, hidden_dims=()).double()
        guide = guide.given(_parameters(model, x, log_scale))
        guides[label] = estimate_evidence(model, guide, x, 500, chunk_size=500 * 100)
    return guides


def _parameters(model, x, log_scale):
    exact = model.posterior(x)
    scales = exact.precision_matrix.diagonal(dim1=-2, dim2=-1).log() / -2 + log_scale
    return torch.cat([exact.loc, scales], dim=1)


def test_guides_of_one_model_are_told_apart_by_their_elbos(two_guides):
    """Widening by s from the best diagonal Gaussian costs Z·(½(e^{2s} − 1) − s), here 0.138."""
    elbos = {label: records["elbo"] for label, records in two_guides.items()}
    (comparison,) = compare_elbos(elbos)
    expected = 3 * (0.5 * (math.exp(0.4) - 1) - 0.2)
    assert abs(comparison.difference.mean - expected) < 5 * comparison.difference.mc_se
    assert abs(comparison.difference.mean - 1.5 * expected) > 5 * comparison.difference.mc_se
    assert comparison.winner == "close"
    assert comparison.gap == 0
    assert "closeness to its posterior" in str(comparison)
    assert str(comparison).endswith("close beats wide")


def test_the_same_evidence_is_no_difference(two_guides):
    """Both guides estimate the evidence of one model."""
    records = {label: records["iw"] for label, records in two_guides.items()}
    (comparison,) = compare_evidences(records, gaps=0.01)
    assert comparison.winner is None
    assert "no difference shown: not more than the gap of 0.0100" in comparison.verdict
    assert abs(comparison.difference.mean) < 5 * comparison.difference.mc_se


def test_a_difference_must_exceed_both_gaps_and_two_standard_errors():
    base = hard_data()
    spread = torch.linspace(-1, 1, 400, dtype=torch.float64)
    records = {"A": record(base + 1.0 + spread), "B": record(base)}
    se = paired_difference(records["A"], records["B"]).se

    def winner(gaps, of=records):
        (comparison,) = compare_evidences(of, gaps=gaps)
        return comparison.winner

    assert winner(0.0) == "A"
    assert winner(1.0 - 2.1 * se) == "A"
    assert winner(1.0 - 1.9 * se) is None
    assert winner({"A": 0.0, "B": 1.1}) is None
    assert winner({"A": 1.1, "B": 0.0}) is None
    assert winner(0.0, {"B": records["B"], "A": records["A"]}) == "A"


def test_without_gaps_nothing_is_shown_unless_the_records_are_exact():
    base = hard_data()
    (unknown,) = compare_evidences({"A": record(base + 50), "B": record(base)})
    assert unknown.winner is None
    assert "unknown; pass gaps" in unknown.verdict
    (half,) = compare_evidences({"A": record(base + 50), "B": record(base)}, gaps={"A": 0.1})
    assert half.winner is None
    exact = {"A": Evidence.exact(base + 50), "B": Evidence.exact(base)}
    assert compare_evidences(exact)[0].winner == "A"


def test_no_difference_is_rarely_called_one():
    """Of 2,000 comparisons of equals about 5% exceed 2 SE; with one SE it would be 32%."""
    draws = torch.randn(2000, 100, dtype=torch.float64)
    wins = planted = 0
    for row in draws:
        (comparison,) = compare_evidences({"A": record(row), "B": record(0 * row)}, gaps=0.0)
        wins += comparison.winner is not None
        planted += abs(comparison.difference.mean) > comparison.difference.se
    assert wins / 2000 < 0.08
    assert planted / 2000 > 0.2


def test_every_pair_is_compared_once():
    records = {name: record(hard_data(5), estimator="elbo") for name in "ABC"}
    pairs = [(c.first, c.second) for c in compare_elbos(records)]
    assert pairs == [("A", "B"), ("A", "C"), ("B", "C")]


def test_one_datum_has_no_standard_error_and_no_winner():
    (comparison,) = compare_evidences({"A": record([1.0]), "B": record([0.0])}, gaps=0.0)
    assert comparison.winner is None
    assert "no standard error" in comparison.verdict


GOOD = record([-1.0, -2.0])
BAD = {
    "other data": (lambda: paired_difference(GOOD, record([-1.0])), "the same data, got 2 and 1"),
    "−inf": (lambda: paired_difference(GOOD, record([0.0, -math.inf])), "got 1 of 2 that are not"),
    "one record": (lambda: compare_evidences({"A": GOOD}), "at least two records"),
    "iw as ELBO": (lambda: compare_elbos({"A": GOOD, "B": GOOD}), '"elbo" records, got "iw"'),
    "negative gap": (
        lambda: compare_evidences({"A": GOOD, "B": GOOD}, gaps=-1.0),
        "at least 0 nats, got -1.0 for 'A'",
    ),
    "gap of nobody": (
        lambda: compare_evidences({"A": GOOD, "B": GOOD}, gaps={"C": 0.1}),
        "got one of 'C'",
    ),
    "level": (lambda: paired_difference(GOOD, GOOD).interval(95), "between 0 and 1, got 95"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
