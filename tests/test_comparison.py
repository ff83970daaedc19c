"""Paired differences and their verdicts, on data whose differences are known."""

import math

import pyro
import pytest
import torch

from evidence.guides import MeanField
from evidence.inference import Evidence, estimate_evidence, from_log_weights
from evidence.inference.estimation.comparison import compare_elbos, compare_evidences
from evidence.inference.estimation.difference import Difference, paired_difference
from evidence.inference.estimation.mean_interval import MIN_DATA, mean_interval
from evidence.inference.estimation.standard_error import standard_error
from tests.conftest import make_oracle


def record(log_px, variance=0.0, estimator="iw"):
    log_px = torch.as_tensor(log_px, dtype=torch.float64)
    nothing = torch.full_like(log_px, math.nan)
    return Evidence(estimator, 100, log_px, torch.full_like(log_px, variance), nothing, nothing)


def hard_data(size=400):
    """Evidences that differ far more between data than between models."""
    return 20 * torch.randn(size, dtype=torch.float64) - 90


def test_a_standard_error_leaves_out_what_estimates_have_of_their_own():
    """Of 20,000 data with σ = 2 in estimates with σ = 3, to 5%; the twin leaves it in."""
    estimates = 2 * torch.randn(20_000) + 3 * torch.randn(20_000)
    own = torch.full_like(estimates, 9.0)
    expected = 2 / math.sqrt(20_000)
    assert standard_error(estimates, own) == pytest.approx(expected, rel=0.05)
    assert standard_error(estimates) > 1.5 * expected
    assert standard_error(torch.tensor([1.0, 2.0, 6.0])) == pytest.approx(math.sqrt(7 / 3))
    assert standard_error(torch.tensor([1.0, 2.0, 6.0]), torch.full((3,), 8.0)) == 0
    assert math.isnan(standard_error(torch.ones(1)))


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


def test_the_interval_covers():
    """95% of 4,000 intervals of 100 data, within 1%; those with 1 SE in place of 2 cover 68%."""
    draws = 0.3 + torch.randn(4000, 100, dtype=torch.float64)
    low, high = mean_interval(draws)
    assert ((low < 0.3) & (high > 0.3)).double().mean().item() == pytest.approx(0.95, abs=0.01)
    for row, ends in zip(draws[:20], zip(low, high, strict=True), strict=False):
        one = Difference(row, torch.zeros(100))
        assert one.interval() == pytest.approx([end.item() for end in ends])
        planted = one.mean - one.se, one.mean + one.se
        assert planted[1] - planted[0] < 0.6 * (ends[1] - ends[0])


def fits_and_data(rows, *, fit, data, own=1.0, num_fits=3, num_data=60):
    """Differences `[rows, S, B]` of mean 0: effects of the fit, of the datum, and of both."""
    shape = (rows, num_fits, num_data)
    effects = fit * torch.randn(rows, num_fits, 1) + data * torch.randn(rows, 1, num_data)
    return (effects + own * torch.randn(shape)).double()


@pytest.mark.parametrize("num_fits", [2, 3, 5])
@pytest.mark.parametrize("fit", [0.0, 0.2, 1.0])
def test_the_interval_covers_other_fits_too(fit, num_fits):
    """At least 95%, less 3 SE, of 400 intervals. Planted: the fits taken for the only ones."""
    values = fits_and_data(400, fit=fit, data=1.0, num_fits=num_fits)
    found = [Difference(row, torch.zeros_like(row)).interval() for row in values]
    allowed = 0.95 - 3 * math.sqrt(0.95 * 0.05 / 400)
    assert sum(low < 0 < high for low, high in found) / 400 >= allowed
    if fit == 1.0:
        planted = mean_interval(values.mean(1))
        assert ((planted[0] < 0) & (planted[1] > 0)).double().mean() < 0.6


def test_the_three_error_bars_are_those_of_particles_data_and_fits():
    """Each recovers the standard deviation that was put in, in the mean over 300 repetitions."""
    values = fits_and_data(300, fit=0.5, data=2.0, own=0.0, num_fits=4, num_data=50)
    noise = 0.8 * torch.randn(values.shape, dtype=torch.float64)
    variance = torch.full((4, 50), 0.64, dtype=torch.float64)
    found = [Difference(row, variance) for row in values + noise]
    squares = {n: sum(getattr(one, n) ** 2 for one in found) / 300 for n in ("data_se", "fit_se")}
    assert squares["data_se"] == pytest.approx(4.0 / 50, rel=0.1)
    assert squares["fit_se"] == pytest.approx(0.25 / 4, rel=0.15)
    assert found[0].mc_se == pytest.approx(0.8 / math.sqrt(200))
    means = torch.tensor([one.mean for one in found], dtype=torch.float64)
    assert means.var().item() == pytest.approx(sum(one.se**2 for one in found) / 300, rel=0.25)
    assert "(4 fits)" in str(found[0])


def test_a_verdict_of_one_fit_is_about_it_and_one_of_several_about_all():
    """Refitting moves the difference by far more than its data SE: only other fits show that."""
    base = hard_data(300)
    moved = [0.05, -0.06, 0.03]
    first = [record(base + by + 0.01 * torch.randn(300), estimator="elbo") for by in moved]
    second = [record(base, estimator="elbo")] * 3
    (one,) = compare_elbos({"A": first[0], "B": second[0]})
    assert one.verdict == "A beats B, for these fits"
    assert math.isnan(one.difference.fit_se)
    (several,) = compare_elbos({"A": first, "B": second})
    assert several.winner is None
    assert several.difference.fit_se == pytest.approx(0.0339, rel=0.1)
    better = [record(e.log_px + 0.5, estimator="elbo") for e in first]
    (several,) = compare_elbos({"A": better, "B": second})
    assert several.verdict == "A beats B"


def test_what_is_not_reliable_wins_nothing():
    """Weights that are worth one particle, beside an exact record far below them."""
    log_w = torch.zeros(1000, 60, dtype=torch.float64)
    log_w[0] = 50.0
    heavy = from_log_weights(log_w)["iw"]
    exact = Evidence.exact(torch.randn(60, dtype=torch.float64) - 5)
    (comparison,) = compare_evidences({"A": heavy, "B": exact}, gaps=0.1)
    assert comparison.difference.mean > 30
    assert comparison.winner is None
    assert comparison.verdict.startswith("no difference shown: A is NOT RELIABLE (")


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
    assert str(comparison).endswith("close beats wide, for these fits")


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
    assert unknown.verdict.endswith("how far the lower bounds lie below is unknown")
    (half,) = compare_evidences({"A": record(base + 50), "B": record(base)}, gaps={"A": 0.1})
    assert half.winner is None
    exact = {"A": Evidence.exact(base + 50), "B": Evidence.exact(base)}
    assert compare_evidences(exact)[0].winner == "A"


def test_no_difference_is_rarely_called_one():
    """Of 2,000 comparisons of equals at most 5% have a winner; with one SE it would be 32%."""
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


@pytest.mark.parametrize("size", [5, 10, MIN_DATA - 1])
def test_few_data_show_nothing_however_far_apart(size):
    """Equals with exponential differences: with 10 data 2 SE would call one in ten a winner."""
    base = hard_data(size)
    (comparison,) = compare_evidences({"A": record(base + 9), "B": record(base)}, gaps=0.0)
    assert comparison.winner is None
    assert f"{size} data are too few" in comparison.verdict
    assert "30 at least" in str(comparison)


def test_one_datum_has_no_standard_error_and_no_winner():
    (comparison,) = compare_evidences({"A": record([1.0]), "B": record([0.0])}, gaps=0.0)
    assert comparison.winner is None
    assert "no standard error" in comparison.verdict


GOOD = record([-1.0, -2.0])
BAD = {
    "other data": (lambda: paired_difference(GOOD, record([-1.0])), "the same data, got 2 and 1"),
    "−inf": (lambda: paired_difference(GOOD, record([0.0, -math.inf])), "got 1 of 2 that are not"),
    "other fits": (
        lambda: paired_difference([GOOD, GOOD], GOOD),
        "as many fits on both sides, got 2 and 1",
    ),
    "fits on other data": (
        lambda: paired_difference([GOOD, record([1.0])], [GOOD, record([1.0])]),
        "all fits over the same data",
    ),
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
