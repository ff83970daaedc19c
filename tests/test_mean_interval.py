"""The interval of a mean: its level under skew, its power, and where it is refused."""

import math

import pytest
import torch
from scipy.stats import t as student_t

from evidence.inference.estimation.mean_interval import MIN_DATA, mean_interval

SAMPLES = 2000
ALLOWED = 0.05 + 3 * math.sqrt(0.05 * 0.95 / SAMPLES)


def draws(law, size, seed=0):
    """Samples `[SAMPLES, size]` of mean 0, skewed but for the first."""
    torch.manual_seed(seed)
    shape, one = (SAMPLES, size), torch.ones((), dtype=torch.float64)
    if law == "normal":
        return torch.randn(shape, dtype=torch.float64)
    if law == "exponential":
        return torch.distributions.Exponential(one).sample(shape) - 1
    if law == "gamma 1/4":
        return torch.distributions.Gamma(one / 4, one).sample(shape) - 0.25
    sigma = float(law.split()[1])
    return torch.distributions.LogNormal(0 * one, sigma).sample(shape) - math.exp(sigma**2 / 2)


def excludes_zero(values):
    """Share of the samples whose interval says that the mean is not 0."""
    low, high = mean_interval(values)
    return ((low > 0) | (high < 0)).double().mean().item()


def two_se_rule(values):
    """The planted error: Student's t, which holds for normal differences."""
    bound = student_t.ppf(0.9772, values.shape[1] - 1)
    se = values.std(1) / math.sqrt(values.shape[1])
    return (values.mean(1).abs() > bound * se).double().mean().item()


@pytest.mark.parametrize("size", [MIN_DATA, 360])
@pytest.mark.parametrize(
    "law", ["normal", "exponential", "gamma 1/4", "log-normal 1.0", "log-normal 1.5"]
)
def test_the_level_holds_for_skewed_data_of_mean_zero(law, size):
    """5% + 3 SE; Student's t, planted, fails wherever skew is strong for the number of data."""
    values = draws(law, size)
    assert excludes_zero(values) <= ALLOWED
    if law == "log-normal 1.5" or (law != "normal" and size < 100):
        assert two_se_rule(values) > ALLOWED


@pytest.mark.parametrize(("law", "size"), [("normal", 360), ("exponential", 360), ("normal", 30)])
def test_true_differences_are_found(law, size):
    """A mean 3.5 standard errors from 0 is seen in most samples."""
    values = draws(law, size)
    shift = 3.5 * values.std() / math.sqrt(size)
    assert excludes_zero(values + shift) > 0.8
    assert excludes_zero(values - shift) > 0.8


def test_a_mean_that_is_large_for_all_its_skew_is_found():
    """Every difference of these is positive: asking for little skewness would miss it."""
    assert excludes_zero(draws("log-normal 1.0", 360) + math.exp(0.5)) > 0.95


def test_the_interval_of_normal_data_is_about_students():
    values = draws("normal", 100)
    low, high = mean_interval(values, 0.9)
    half = student_t.ppf(0.95, 99) * values.std(1) / 10
    ratio = ((high - low) / 2 / half).median().item()
    assert 1.0 <= ratio < 1.06
    assert torch.equal(torch.stack(mean_interval(values)), torch.stack(mean_interval(values)))


def test_the_interval_moves_and_scales_with_its_data():
    values = draws("exponential", 40)[:5]
    low, high = mean_interval(values)
    moved_low, moved_high = mean_interval(3 - 2 * values)
    assert torch.allclose(moved_low, 3 - 2 * high, atol=0.05)  # quantiles of one set of resamples
    assert torch.allclose(moved_high, 3 - 2 * low, atol=0.05)
    moved_low, _ = mean_interval(3 + 2 * values)
    assert torch.allclose(moved_low, 3 + 2 * low)


def test_a_larger_standard_error_widens_it():
    values = draws("normal", 50)[0]
    low, high = mean_interval(values)
    se = values.std() / math.sqrt(50)
    wide_low, wide_high = mean_interval(values, se=3 * se)
    assert torch.isclose(wide_high - wide_low, 3 * (high - low))
    assert torch.equal(mean_interval(values, se=se / 3)[0], low)


def test_few_data_and_equal_data():
    low, high = mean_interval(torch.randn(MIN_DATA - 1))
    assert low.isnan()
    assert high.isnan()
    low, high = mean_interval(torch.full((50,), 2.0))
    assert low == high == 2.0
    low, high = mean_interval(torch.tensor([0.0] * 49 + [1.0]))  # of one value nothing is known
    assert low == -math.inf or low < 0
    assert high > 0.02


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_is_a_share(level):
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval(torch.randn(50), level)
