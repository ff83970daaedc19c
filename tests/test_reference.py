"""NUTS against the exact posterior, and guides against NUTS, each with guides that must fail."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.guides import MeanField
from evidence.inference.diagnostics.discrepancy import compare_to_reference
from evidence.inference.diagnostics.two_samples import (
    CLASSIFIERS,
    classifier_accuracy,
    distance_and_floor,
    sliced_wasserstein,
)
from evidence.inference.paths.reference import diagnostic, nuts_reference
from evidence.models.problems.regressions import pine_regression, pines
from tests import test_shared_latents as shared
from tests.conftest import make_oracle


@pytest.fixture(scope="module")
def reference():
    model = make_oracle()
    pyro.set_rng_seed(1)
    x = model(None, size=2)
    return model, x, nuts_reference(model, x, num_samples=300, num_warmup=200)


def worst(differences, errors):
    return (differences / errors).abs().max().item()


def test_nuts_draws_have_the_exact_moments(reference):
    """Means and sds within 5 Monte Carlo SE; those of the neighbour's posterior are not."""
    model, x, found = reference
    assert found.converged
    assert found.draws.shape == (4, 300, 2, 3)
    exact = model.posterior(x)
    draws = found.draws.flatten(0, 1)
    mean_se = diagnostic("mcse", found.draws)
    sd_se = diagnostic("mcse", found.draws, method="sd")
    sd = exact.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    assert worst(draws.mean(0) - exact.mean, mean_se) < 5
    assert worst(draws.std(0) - sd, sd_se) < 5
    assert worst(draws.mean(0) - model.posterior(x.flip(0)).mean, mean_se) > 5
    assert worst(draws.std(0) - 1.3 * sd, sd_se) > 5


def exact_guide(model, *, shift=0.0, widen=1.0, correlated=True):
    """The exact posterior, or one with a planted error."""

    def guide(x):
        exact = model.posterior(x)
        covariance = widen**2 * exact.covariance_matrix
        if not correlated:
            covariance = torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(exact.mean + shift, covariance))

    return guide


def test_the_exact_posterior_cannot_be_told_from_the_reference(reference):
    """The mean of log q at draws of p is −entropy; half a nat more is not."""
    model, x, found = reference
    seen = compare_to_reference(model, exact_guide(model), found)
    assert worst(seen.mean_difference, seen.mean_se) < 5
    assert worst(seen.sd_difference, seen.sd_se) < 5
    assert ((seen.accuracy.mean - 0.5).abs() < 5 * seen.accuracy.se).all()
    assert (seen.sliced_wasserstein < 2 * seen.sliced_wasserstein_floor).all()
    expected = -model.posterior(x).entropy()
    assert worst(seen.log_q_z - expected, seen.log_q_z_se) < 5
    assert ((seen.log_q_z + 0.5 - expected) / seen.log_q_z_se).min() > 5
    assert str(seen).startswith("means differ by up to")
    assert "NOT" not in str(seen)


def test_planted_errors_of_guides_are_seen(reference):
    """In the statistic that they touch; each guide also loses log q by its closed form."""
    model, _, found = reference
    exact = compare_to_reference(model, exact_guide(model), found)
    shifted = compare_to_reference(model, exact_guide(model, shift=0.5), found)
    assert worst(shifted.mean_difference, shifted.mean_se) > 5
    assert (shifted.sliced_wasserstein > 2 * shifted.sliced_wasserstein_floor).all()
    assert (shifted.accuracy.mean > 0.5 + 5 * shifted.accuracy.se).all()
    wide = compare_to_reference(model, exact_guide(model, widen=1.5), found, classifier="logistic")
    assert worst(wide.sd_difference, wide.sd_se) > 5
    assert (wide.accuracy.mean > 0.5 + 5 * wide.accuracy.se).all()
    loss = (exact.log_q_z - wide.log_q_z).mean().item()  # KL(p ‖ q)
    assert loss == pytest.approx(3 * (math.log(1.5) - 0.5 * (1 - 1.5**-2)), abs=0.05)


def test_lost_correlations_show_in_log_q_though_not_in_the_marginals(reference):
    model, x, found = reference
    exact = compare_to_reference(model, exact_guide(model), found)
    diagonal = compare_to_reference(model, exact_guide(model, correlated=False), found)
    assert worst(diagonal.sd_difference, diagonal.sd_se) < 5
    covariance = model.posterior(x).covariance_matrix
    variances = covariance.diagonal(dim1=-2, dim2=-1)
    expected = 0.5 * (variances.log().sum(-1) - covariance.logdet()).mean().item()
    loss = (exact.log_q_z - diagonal.log_q_z).mean().item()  # paired: the same draws
    assert loss == pytest.approx(expected, abs=0.03)
    assert loss > 0.05


def test_too_short_a_run_is_no_reference(reference):
    model, x, _ = reference
    short = nuts_reference(model, x, num_samples=6, num_warmup=2, num_chains=2)
    assert not short.converged
    assert str(short).endswith("NOT CONVERGED, no reference")
    seen = compare_to_reference(model, exact_guide(model), short, classifier="logistic")
    assert "the reference has NOT CONVERGED" in str(seen)


def test_the_seed_decides_and_the_state_outside_stays(reference):
    model, x, _ = reference
    state = torch.get_rng_state()
    options = {"num_samples": 5, "num_warmup": 3, "num_chains": 2}
    first, second = (nuts_reference(model, x, **options).draws for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, nuts_reference(model, x, seed=1, **options).draws)


def layers(x):
    """Two sites, one with two entries per datum in a plate of its own; rows at dim −2."""
    with pyro.plate("rows", len(x), dim=-2):
        top = pyro.sample("top", dist.Normal(torch.zeros(1).double(), 1.0))
        with pyro.plate("groups", 2, dim=-1):
            bottom = pyro.sample("bottom", dist.Normal(top, 0.5))
            pyro.sample("x", dist.Normal(bottom, 1.0), obs=x)


def layers_posterior(x):
    """Mean and covariance of (top, bottom_1, bottom_2): a joint Gaussian."""
    precision = torch.tensor([[9.0, -4.0, -4.0], [-4.0, 5.0, 0.0], [-4.0, 0.0, 5.0]]).double()
    right = torch.cat([torch.zeros(len(x), 1).double(), x], dim=1)
    return torch.linalg.solve(precision, right.mT).mT, precision.inverse()


def layers_guide(x, scale=1.0):
    """The exact posterior, top first."""
    mean, covariance = layers_posterior(x)
    with pyro.plate("rows", len(x), dim=-2):
        top_scale = scale * covariance[0, 0].sqrt()
        top = pyro.sample("top", dist.Normal(mean[:, :1], top_scale))
        with pyro.plate("groups", 2, dim=-1):
            pyro.sample("bottom", dist.Normal((4 * top + x) / 5, scale * 5**-0.5))


def one_at_a_time(x):
    """As `layers_guide`, of a person who has never seen a batch of particles."""
    mean, covariance = layers_posterior(x)
    with pyro.plate("rows", len(x), dim=-2):
        top = pyro.sample("top", dist.Normal(mean[:, :1], covariance[0, 0].sqrt()))
        rows, _ = top.shape
        with pyro.plate("groups", 2, dim=-1):
            loc = (4 * top.view(rows, 1) + x) / 5
            pyro.sample("bottom", dist.Normal(loc, 5**-0.5))


@pytest.mark.filterwarnings("ignore:the pair does not broadcast:UserWarning")
def test_several_sites_lie_side_by_side():
    x = torch.tensor([[3.0, -4.0], [5.0, 1.0], [-0.3, 0.2]]).double()
    found = nuts_reference(layers, x, num_samples=120, num_warmup=60, num_chains=2)
    assert found.sites == {"top": 1, "bottom": 2}
    assert found.draws.shape == (2, 120, 3, 3)
    mean, covariance = layers_posterior(x)
    se = diagnostic("mcse", found.draws)
    assert worst(found.draws.flatten(0, 1).mean(0) - mean, se) < 5
    planted = mean[:, [1, 0, 2]]  # the sites in another order
    assert worst(found.draws.flatten(0, 1).mean(0) - planted, se) > 5
    for guide in (layers_guide, one_at_a_time):
        seen = compare_to_reference(layers, guide, found)
        assert worst(seen.mean_difference, seen.mean_se) < 5
        expected = -dist.MultivariateNormal(mean, covariance).entropy()
        assert worst(seen.log_q_z - expected, seen.log_q_z_se) < 5
    wide = compare_to_reference(layers, lambda x: layers_guide(x, 1.7), found)
    assert worst(wide.sd_difference, wide.sd_se) > 5


def constrained(x):
    with pyro.plate("data", len(x)):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        tau = pyro.sample("tau", dist.Gamma(torch.full((1,), 2.0).double(), 2.0).to_event(1))
        pyro.sample("x", dist.Normal(loc, tau).expand([*loc.shape[:-1], 4]).to_event(1), obs=x)


def test_guides_of_auxiliary_draws_are_scored_at_any_draws():
    x = torch.randn(2, 4).double()
    guide = MeanField.for_model(constrained, x, hidden_dims=())
    options = {"num_samples": 40, "num_warmup": 40, "num_chains": 2}
    found = nuts_reference(constrained, x, **options)
    seen = compare_to_reference(constrained, guide, found)
    expected = guide.posterior(x).log_prob(found.draws).mean((0, 1))
    assert torch.allclose(seen.log_q_z, expected)
    assert (found.draws[..., 1] > 0).all()

    def without_posterior(x):
        return guide(x)

    assert torch.allclose(
        compare_to_reference(constrained, without_posterior, found).log_q_z, expected
    )


def pines_moments():
    """Means and sds of precision, intercept and slope: their prior is conjugate."""
    x, y = (tensor.double() for tensor in pines())
    design = torch.stack([torch.ones_like(x), x], 1)
    prior, mean = torch.tensor([0.06, 6.0]).double(), torch.tensor([3000.0, 185.0]).double()
    precision = prior.diag() + design.mT @ design
    loc = torch.linalg.solve(precision, prior * mean + design.mT @ y)
    a, b = 3 + len(x) / 2, 180_000 + 0.5 * (y @ (y - design @ loc) + (prior * mean) @ (mean - loc))
    variances = precision.inverse().diagonal() * b / (a - 1)
    means = torch.cat([(a / b).reshape(1), loc])
    return means, torch.cat([(a**0.5 / b).reshape(1), variances.sqrt()])


def test_latents_that_the_data_share_are_one_posterior():
    """However the model is written; the twin's mean is a standard deviation off."""
    options = {"num_samples": 150, "num_warmup": 100, "num_chains": 2}
    model, exact = shared.regression(shared.MEANS["X @ w"]), shared.posterior(shared.X, shared.Y)
    found = nuts_reference(model, {"X": shared.X, "y": shared.Y}, **options)
    assert found.draws.shape == (2, 150, 1, 2)
    assert found.site_values["w"].shape == (300, 2)
    se = diagnostic("mcse", found.draws)[0]
    assert worst(found.site_values["w"].mean(0) - exact.mean, se) < 5
    assert worst(found.site_values["w"].mean(0) - exact.mean - exact.stddev, se) > 5


@pytest.mark.slow
def test_scales_that_are_orders_of_magnitude_apart():
    """A precision of 1e-5 beside an intercept of 3,000; the twin is of the prior's scales."""
    options = {"num_samples": 150, "num_warmup": 150, "num_chains": 2}
    found = nuts_reference(pine_regression, pines(), **options)
    assert (found.r_hat < 1.05).all()
    assert found.num_divergences == 0
    assert list(found.sites) == ["precision", "intercept", "slope"]
    assert (found.site_values["precision"] > 0).all()
    means, sds = pines_moments()
    draws = found.draws.flatten(0, 1)[:, 0].double()
    assert worst(draws.mean(0) - means, diagnostic("mcse", found.draws)[0]) < 5
    assert worst(draws.std(0) - sds, diagnostic("mcse", found.draws, method="sd")[0]) < 5
    assert worst(draws.mean(0) - means - sds, diagnostic("mcse", found.draws)[0]) > 5


def normals(num_draws, num_data, dim=1, loc=0.0, scale=1.0):
    return loc + scale * torch.randn(num_draws, num_data, dim, dtype=torch.float64)


def test_sliced_wasserstein_is_the_distance_of_gaussians():
    """W₂ of N(0, 1) and N(m, s²) is √(m² + (1 − s)²), in d dimensions ‖m‖/√d for a shift m.

    |z| < 5 over 20 data of 20,000 draws; the twin, W₂ without the scale, fails.
    """
    samples = normals(20_000, 20), normals(20_000, 20, loc=0.6, scale=0.5)
    distance = sliced_wasserstein(*samples, num_directions=2)
    se = distance.std() / math.sqrt(20)
    assert abs(distance.mean() - math.hypot(0.6, 0.5)) < 5 * se
    assert abs(distance.mean() - 0.6) > 5 * se
    options = {"num_directions": 2000}
    many = sliced_wasserstein(normals(1000, 2, 3), normals(1000, 2, 3, loc=1.0), **options)
    assert many.tolist() == pytest.approx([1.0, 1.0], abs=0.15)
    assert sliced_wasserstein(normals(1000, 2, 3), normals(1000, 2, 3)).max() < 0.15


@pytest.mark.parametrize("tails", [2.2, 3.0, math.inf])
@pytest.mark.parametrize("num_draws", [100, 401])
def test_the_floor_is_the_distance_of_equals_for_any_tails(tails, num_draws):
    """Means over 2,000 data, |z| < 5 and within 8%.

    The planted error, a floor of half as many draws scaled by 1/√2, is too low for heavy tails;
    light ones forgive it.
    """

    def sample(size):
        noise = torch.randn(size, 2000, 1).double()
        if tails < math.inf:
            noise /= torch.distributions.Chi2(tails).sample(noise.shape).div(tails).sqrt()
        return noise

    found = distance_and_floor(sample(num_draws), sample(num_draws), num_directions=1)
    truth = sliced_wasserstein(sample(num_draws // 2), sample(num_draws // 2), num_directions=1)
    scaled = distance_and_floor(*[sample(num_draws // 2)] * 2, num_directions=1).floor / 2**0.5
    for values in found:
        se = math.hypot(values.std(), truth.std()) / math.sqrt(2000)
        assert abs(values.mean() - truth.mean()) < 5 * se
        assert abs(values.mean() / truth.mean() - 1) < 0.08
    assert scaled.mean() < truth.mean() * (0.88 if tails < math.inf else 1.05)


def test_the_distance_is_above_the_floor_where_distributions_differ():
    """By the shift; and the floor is that of the second sample, whatever the first."""
    same = distance_and_floor(normals(400, 20), normals(400, 20))
    second = normals(400, 20)
    moved = distance_and_floor(normals(400, 20, loc=3.0), second)
    assert moved.between.mean() == pytest.approx(3.0, abs=0.1)
    assert torch.equal(moved.floor, distance_and_floor(normals(400, 20, scale=9.0), second).floor)
    assert same.between.mean() == pytest.approx(same.floor.mean().item(), rel=0.2)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_classifier_guesses_where_there_is_nothing_to_tell(classifier):
    """Accuracy 0.5 with |z| < 5 in the mean of 20 data, and error bars that are long enough."""
    num_data = 6 if classifier == "mlp" else 20
    samples = normals(150, num_data, 2), normals(150, num_data, 2)
    accuracy = classifier_accuracy(*samples, classifier=classifier)
    z_scores = (accuracy.mean - 0.5) / accuracy.se
    assert abs(z_scores.mean().item()) < 5 / math.sqrt(num_data)
    assert z_scores.square().mean() < 2
    planted = classifier_accuracy(samples[0], samples[1] + 1.0, classifier=classifier)
    assert ((planted.mean - 0.5) / planted.se).mean() > 5


def test_logistic_regression_reaches_the_best_accuracy_for_a_shift():
    """Φ(m/2) for N(0, 1) against N(m, 1), within 5 SE and 1%."""
    accuracy = classifier_accuracy(
        normals(1000, 10), normals(1000, 10, loc=1.0), classifier="logistic"
    )
    best = 0.5 * (1 + math.erf(0.5 / math.sqrt(2)))
    se = accuracy.mean.std().item() / math.sqrt(10)
    assert abs(accuracy.mean.mean().item() - best) < 5 * se + 0.01


BAD = {
    "shapes": (lambda: sliced_wasserstein(normals(5, 2), normals(4, 2)), r"\(5, 2, 1\) and \(4"),
    "one draw": (lambda: distance_and_floor(normals(1, 2), normals(1, 2)), "two or more .* got 1"),
    "flat": (lambda: classifier_accuracy(torch.zeros(5, 2), torch.zeros(5, 2)), r"\(S, B, Z\)"),
    "classifier": (
        lambda: classifier_accuracy(normals(5, 2), normals(5, 2), classifier="tree"),
        "got 'tree'",
    ),
    "folds": (lambda: classifier_accuracy(normals(4, 2), normals(4, 2)), "between 2 and S = 4"),
    "chains": (
        lambda: nuts_reference(make_oracle(), torch.zeros(1, 10).double(), num_chains=1),
        "num_chains of at least 2, got 1",
    ),
    "data": (
        lambda: nuts_reference(make_oracle(), torch.full((1, 10), math.nan).double()),
        "1 of 1 data",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
