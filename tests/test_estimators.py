"""Pure functions of the log-weights, against brute force and known tails."""

import math

import numpy as np
import pytest
import torch

from evidence.inference.programs import estimators


@pytest.fixture
def log_w():
    return 3 * torch.randn(12, 5, dtype=torch.float64)


def test_elbo_and_iwae_are_their_formulas(log_w):
    assert torch.allclose(estimators.elbo(log_w), log_w.mean(0))
    assert torch.allclose(estimators.iwae(log_w), log_w.exp().mean(0).log())


def test_iwae_survives_weights_that_overflow(log_w):
    for shift in (-2000.0, 2000.0):
        assert torch.allclose(estimators.iwae(log_w + shift), estimators.iwae(log_w) + shift)


def test_iwae_curve_averages_disjoint_blocks(log_w):
    curve = estimators.iwae_curve(log_w, [1, 4, 5, 12])
    assert torch.allclose(curve[0], estimators.elbo(log_w))
    assert torch.allclose(curve[3], estimators.iwae(log_w))
    blocks = [log_w[i : i + 4].exp().mean(0).log() for i in (0, 4, 8)]
    assert torch.allclose(curve[1], torch.stack(blocks).mean(0))
    blocks = [log_w[i : i + 5].exp().mean(0).log() for i in (0, 5)]
    assert torch.allclose(curve[2], torch.stack(blocks).mean(0))


def test_iwae_curve_of_nested_blocks_rises_for_every_datum():
    """Jensen: halving the blocks of the same weights can only lower their mean bound."""
    log_w = 4 * torch.randn(64, 200, dtype=torch.float64)
    curve = estimators.iwae_curve(log_w, [1, 2, 4, 8, 16, 32, 64])
    assert (curve.diff(dim=0) > -1e-10).all()


def test_jackknife_is_nowozins_formula(log_w):
    """First order, by leaving each particle out in turn."""
    s = len(log_w)
    without = [estimators.iwae(log_w[[j for j in range(s) if j != i]]) for i in range(s)]
    expected = s * estimators.iwae(log_w) - (s - 1) * torch.stack(without).mean(0)
    assert torch.allclose(estimators.jackknife(log_w), expected)


def test_jackknife_is_finite_when_one_weight_is_nearly_everything():
    log_w = torch.tensor([[0.0], [-60.0], [-61.0]], dtype=torch.float64)
    without = [math.log((math.exp(-60) + math.exp(-61)) / 2), *[-math.log(2)] * 2]
    expected = 3 * -math.log(3) - 2 * sum(without) / 3
    assert estimators.jackknife(log_w).item() == pytest.approx(expected, abs=1e-9)


def test_jackknife_removes_the_leading_bias():
    """Log-normal weights, E[w] = 1: L_8 is biased by −0.09, its jackknife by less than 0.02."""
    log_w = 1.0 * torch.randn(8, 200_000, dtype=torch.float64) - 0.5
    plain, debiased = estimators.iwae(log_w), estimators.jackknife(log_w)
    se = debiased.std() / math.sqrt(debiased.numel())
    assert plain.mean() < -0.08
    assert debiased.mean().abs() < 0.02 + 5 * se


def test_ess_counts_equal_weights():
    equal = torch.zeros(50, 1, dtype=torch.float64)
    one = torch.tensor([[0.0], *[[-1000.0]] * 49], dtype=torch.float64)
    half = torch.tensor([[0.0]] * 25 + [[-1000.0]] * 25, dtype=torch.float64)
    counts = [estimators.ess(log_w - 300).item() for log_w in (equal, one, half)]
    assert counts == pytest.approx([50, 1, 25])


def delta_method(log_w):
    """What holds for many weights alone."""
    return (1 / estimators.ess(log_w) - 1 / len(log_w)).clamp(min=0)


def test_variance_of_the_log_mean_is_calibrated():
    """Estimated and empirical variance of L_S over 20,000 repetitions agree within 5%.

    Without the −1/S that equal weights owe, the estimate would be off by a factor of 1.6.
    """
    log_w = torch.randn(400, 20_000, dtype=torch.float64)
    empirical = estimators.iwae(log_w).var()
    estimated = estimators.log_mean_variance(log_w).mean()
    planted = (1 / estimators.ess(log_w)).mean()
    assert (estimated / empirical).item() == pytest.approx(1, abs=0.05)
    assert (planted / empirical).item() > 1.3


@pytest.mark.parametrize("num_particles", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("sd", [0.1, 0.3, 1.0])
def test_standard_error_of_few_weights_is_true(num_particles, sd):
    """Stated over true SE of log-normal weights is within 8%; the delta method's is 4% to 51% low.

    100,000 repetitions: the ratio itself is known to 0.5%.
    """
    log_w = sd * torch.randn(num_particles, 100_000, dtype=torch.float64)
    true = estimators.iwae(log_w).var()
    stated = (estimators.log_mean_variance(log_w).mean() / true).sqrt().item()
    planted = (delta_method(log_w).mean() / true).sqrt().item()
    assert stated == pytest.approx(1, abs=0.08)
    assert planted < 1.01 * math.sqrt(1 - 1 / num_particles)


def test_variance_of_the_log_mean_is_the_jackknife():
    log_w = 2 * torch.randn(9, 4, dtype=torch.float64)
    without = [estimators.iwae(log_w[torch.arange(9) != i]) for i in range(9)]
    expected = torch.stack(without).var(0) * 8**2 / 9
    assert torch.allclose(estimators.log_mean_variance(log_w), expected)


def test_standard_error_has_no_upper_end():
    """One weight above all others by 30 nats or 26,000; the delta method says 1 at the most."""
    for distance in (30.0, 26_000.0):
        log_w = torch.full((16, 1), -distance, dtype=torch.float64)
        log_w[3] = 0.0
        se = estimators.log_mean_variance(log_w).sqrt().item()
        assert se == pytest.approx(distance, rel=0.2)
        assert delta_method(log_w).sqrt().item() < 1


def test_standard_error_of_a_single_weight_above_zero_is_infinite():
    log_w = torch.tensor([[0.0], [-math.inf], [-math.inf]], dtype=torch.float64)
    assert estimators.log_mean_variance(log_w).item() == math.inf


def generalized_pareto_weights(k, num_draws, num_data):
    u = np.random.default_rng(0).random((num_draws, num_data))
    return torch.from_numpy(np.log((u**-k - 1) / k))


@pytest.mark.parametrize("k", [0.3, 0.6, 0.9])
def test_k_hat_finds_the_shape_of_a_pareto_tail(k):
    """Mean over 40 data of 10,000 draws within 0.05; with the sign flipped it is not."""
    log_w = generalized_pareto_weights(k, 10_000, 40)
    assert estimators.k_hat(log_w).mean().item() == pytest.approx(k, abs=0.05)
    assert estimators.k_hat(-log_w).mean().item() != pytest.approx(k, abs=0.05)


def test_k_hat_of_equal_weights_is_zero_and_of_too_few_unknown():
    assert estimators.k_hat(torch.full((100, 2), -7.0)).eq(0).all()
    assert estimators.k_hat(torch.randn(29, 2)).isnan().all()
    assert estimators.k_hat(torch.randn(30, 2)).isfinite().all()


def test_k_hat_of_weights_that_differ_by_rounding_is_zero():
    """As those of a guide that is the posterior: a tail of rounding errors has any shape."""
    noise = torch.randint(-4, 5, (500, 50), dtype=torch.float64)
    log_w = -20.0 + 3.6e-15 * noise  # units in the last place
    assert estimators.k_hat(log_w).eq(0).all()
    assert not estimators.k_hat(-20.0 + 1e-9 * torch.randn_like(noise)).eq(0).any()


def test_k_hat_of_weights_that_differ_by_the_rounding_of_float32_is_zero():
    """A sum of 784 terms; as doubles, with the tolerance of doubles, they would have a tail."""
    log_w = (-1000.0 + 2e-4 * torch.randn(500, 50)).float()
    assert estimators.k_hat(log_w).eq(0).all()
    assert not estimators.k_hat(log_w.double()).eq(0).any()


def test_k_hat_of_weights_that_are_all_zero_is_bad():
    log_w = torch.randn(100, 2)
    log_w[:, 0] = -math.inf
    assert estimators.k_hat(log_w)[0] == math.inf
    assert estimators.k_hat(log_w)[1] < 1


def test_k_hat_threshold_is_vehtaris():
    assert estimators.k_hat_threshold(100) == pytest.approx(0.5)
    assert estimators.k_hat_threshold(10**6) == 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimators.iwae(torch.zeros(3)), r"shape \(S, B\), got \(3,\)"),
        (lambda: estimators.elbo(torch.zeros(0, 3)), r"shape \(S, B\)"),
        (lambda: estimators.iwae_curve(torch.zeros(3, 2), [4]), "between 1 and S = 3, got 4"),
        (lambda: estimators.jackknife(torch.zeros(1, 2)), "at least 2 particles"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


PLANTED = {
    "mean of log w": lambda log_w: log_w.mean(0),
    "no 1/S": lambda log_w: log_w.logsumexp(0),
    "1/(S − 1)": lambda log_w: log_w.logsumexp(0) - math.log(len(log_w) - 1),
    "sum over the batch first": lambda log_w: (
        log_w.mean(1, keepdim=True).expand_as(log_w).logsumexp(0) - math.log(len(log_w))
    ),
    "scaled inside": lambda log_w: (1.05 * log_w).logsumexp(0) - math.log(len(log_w)),
}


@pytest.mark.parametrize("planted", [None, *PLANTED])
def test_iwae_is_unbiased_for_the_evidence_and_planted_errors_are_not(planted):
    """E[exp L_S] = p(x): |z| < 5 over 50,000 data with log-normal weights of mean one."""
    sigma = torch.linspace(0.2, 0.8, 50_000, dtype=torch.float64)
    log_w = sigma * torch.randn(16, 50_000, dtype=torch.float64) - sigma**2 / 2
    estimate = (PLANTED[planted] if planted else estimators.iwae)(log_w)
    ratios = estimate.exp()
    z_score = (ratios.mean() - 1) / ratios.std() * math.sqrt(len(ratios))
    assert (abs(z_score) < 5) == (planted is None)


def test_log_w_is_never_changed(log_w):
    before = log_w.clone()
    for name in ("elbo", "iwae", "jackknife", "ess", "k_hat"):
        getattr(estimators, name)(log_w)
    assert torch.equal(log_w, before)
