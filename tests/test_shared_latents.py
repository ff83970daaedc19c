"""Models whose latents the data share: one weight for the data set, by every way of running it."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from scipy import stats
from scipy.special import betaln, gammaln, logsumexp

from evidence.guides import FullRank
from evidence.inference import (
    IWAE,
    STL,
    adaptive_evidence,
    annealed_evidence,
    check,
    estimate_evidence,
    fit,
    importance_weighted_evidence,
    log_weights,
)
from evidence.inference.programs.traces import Traces
from evidence.inference.training.minibatches import ScaleData, data_dims

NUM_DATA, NOISE = 12, 0.7


def regression_data():
    generator = torch.Generator().manual_seed(3)
    X = torch.randn(NUM_DATA, 2, generator=generator, dtype=torch.float64)
    return X, X @ X.new_tensor([1.0, -2.0]) + NOISE * torch.randn(NUM_DATA, generator=generator)


X, Y = regression_data()


def posterior(X, y):
    """w ~ N(0, I), y ~ N(Xw, σ²)."""
    precision = torch.eye(2).double() + X.mT @ X / NOISE**2
    mean = torch.linalg.solve(precision, X.mT @ y / NOISE**2)
    return dist.MultivariateNormal(mean, precision_matrix=precision)


def regression_evidence(X, y):
    covariance = NOISE**2 * torch.eye(len(y)).double() + X @ X.mT
    return dist.MultivariateNormal(torch.zeros(len(y)).double(), covariance).log_prob(y).item()


def exact_guide(X, y):
    pyro.sample("w", posterior(X, y))


def wide_guide(X, y):
    exact = posterior(X, y)
    pyro.sample("w", dist.MultivariateNormal(exact.loc, 1.5 * exact.covariance_matrix))


def regression(mean):
    def model(X, y):
        w = pyro.sample("w", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(X)):
            pyro.sample("y", dist.Normal(mean(X, w), NOISE), obs=y)

    return model


# Ways of writing Xw. All but the first go wrong, or fail, under a batch of particles.
MEANS = {
    "broadcasts": lambda X, w: (X * w).sum(-1),
    "X @ w": lambda X, w: X @ w,
    "counts from the left": lambda X, w: X[:, 0] * w[0] + X[:, 1] * w[1],
    "sum of a numbered dim": lambda X, w: (X * w).sum(1),
    "squeeze": lambda X, w: (X @ w.unsqueeze(-1)).squeeze(),
    "view": lambda X, w: (X @ w.view(2, -1)).view(-1)[: len(X)],
    "stack": lambda X, w: torch.stack([X[:, 0] * w[0], X[:, 1] * w[1]]).sum(0),
    "transposed": lambda X, w: (X * w).T.sum(0),
    "reshape": lambda X, w: (X @ w.reshape(-1, 1)).reshape(-1)[: len(X)],
    "length": lambda X, w: (X * w).sum(-1) * (2 / len(w)),
    "shape": lambda X, w: (X * w).sum(-1) * (2 / w.shape[0]),
    "einsum": lambda X, w: torch.einsum("nd,d->n", X, w),
}


pytestmark = pytest.mark.filterwarnings("ignore:the pair does not broadcast over particles")


@pytest.mark.parametrize("way", MEANS)
def test_every_weight_of_the_exact_posterior_is_the_evidence_of_the_data_set(way):
    """However the model is written; the twin's data are in another order."""
    model, exact = regression(MEANS[way]), regression_evidence(X, Y)
    weights = log_weights(model, exact_guide, (X, Y), 30)
    assert weights.shape == (30, 1)
    assert (weights - exact).abs().max() < 1e-8
    planted = log_weights(model, exact_guide, (X, Y.flip(0)), 30)
    assert (planted - exact).abs().max() > 1


SIDE = torch.linspace(-2, 2, 90).double()


def closed_over(x):
    """Row i of a batch meets row i of all side information."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z + SIDE[: len(x)], 1.0), obs=x)


def passed_in(x, side):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
        pyro.sample("x", dist.Normal(z + side, 1.0), obs=x)


def exact_per_datum(x, side):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x - side) / 2, 0.5**0.5))


def test_side_information_that_is_closed_over_is_refused_and_passed_in_is_right():
    """What the message says leads to the right number, however small the chunks."""
    x = torch.randn(90, generator=torch.Generator().manual_seed(0)).double()
    message = "row of the model depends on its place in the batch.*pass all that is of each row in"
    for call in (
        lambda: log_weights(closed_over, lambda x: exact_per_datum(x, SIDE[: len(x)]), x, 5),
        lambda: annealed_evidence(closed_over, x, num_temperatures=5),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    exact = dist.Normal(SIDE, 2**0.5).log_prob(x)
    weights = log_weights(passed_in, exact_per_datum, (x, SIDE), 5, chunk_size=16)
    assert (weights - exact).abs().max() < 1e-8
    options = {"num_temperatures": 30, "num_chains": 50, "chunk_size": 1000}
    evidence = annealed_evidence(passed_in, (x, SIDE), num_pilot_temperatures=50, **options)
    assert abs(evidence.mean - exact.mean()) < 4 * evidence.mc_se


def test_programs_that_do_not_broadcast_are_said_to_be_slow():
    with pytest.warns(UserWarning, match="do.* not broadcast over particles"):
        log_weights(regression(MEANS["X @ w"]), exact_guide, (X, Y), 5)


@pytest.mark.parametrize("way", MEANS)
def test_annealing_however_the_model_is_written(way):
    model, exact = regression(MEANS[way]), regression_evidence(X, Y)
    options = {"num_chains": 60, "num_temperatures": 40, "num_leapfrog_steps": 4}
    evidence = annealed_evidence(model, (X, Y), num_pilot_temperatures=40, **options)
    assert evidence.unit == "data set"
    assert evidence.mc_se < 0.5
    assert abs(evidence.mean - exact) < 5 * evidence.mc_se
    assert abs(evidence.mean - exact + 5) > 5 * evidence.mc_se


def by_name(y, X):
    return regression(MEANS["broadcasts"])(X, y)


def guide_by_name(y, X):
    return wide_guide(X, y)


@pytest.mark.parametrize(
    "data",
    [{"X": X, "y": Y}, {"y": Y.numpy(), "X": X.numpy()}],
    ids=["tensors", "arrays"],
)
def test_data_by_name(data):
    torch.set_default_dtype(torch.float64)
    try:
        evidence = importance_weighted_evidence(by_name, guide_by_name, data, 2000)
    finally:
        torch.set_default_dtype(torch.float32)
    assert abs(evidence.mean - regression_evidence(X, Y)) < 5 * evidence.mc_se
    assert "nats, ± " in str(evidence)
    assert "(a data set of 12)" in str(evidence)
    assert math.isnan(evidence.data_se)


def scale(guess):
    """Pyro's first tutorial: what a scale shows, and a weight that is guessed before."""
    weight = pyro.sample("weight", dist.Normal(guess, 1.0))
    return pyro.sample("measurement", dist.Normal(weight, 0.75))


@pytest.mark.parametrize("guess", [8.5, np.float64(8.5), torch.tensor(8.5)], ids=str)
def test_a_number_is_all_of_the_data(guess):
    model = pyro.condition(scale, data={"measurement": torch.tensor(9.5)})
    guide = FullRank.for_model(model, guess)
    assert check(model, guide, guess) == []
    evidence = importance_weighted_evidence(model, guide, guess, 20)
    exact = stats.norm.logpdf(9.5, 8.5, math.hypot(1.0, 0.75))
    assert evidence.unit == "data set"
    assert abs(evidence.mean - exact) < 1e-3  # every weight of a posterior that is normal
    assert abs(evidence.mean - stats.norm.logpdf(9.5, 8.5, 0.75)) > 1e-2  # the twin: no prior


def test_adaptive_numbers_of_particles_for_the_data_set():
    model = regression(MEANS["broadcasts"])
    evidence = adaptive_evidence(model, wide_guide, (X, Y), target_se=0.02)
    assert abs(evidence.mean - regression_evidence(X, Y)) < 5 * evidence.mc_se
    assert evidence.mc_se < 0.03
    assert evidence.data_set_size == NUM_DATA


def test_elbo_and_evidence_come_from_the_same_weights():
    model = regression(MEANS["broadcasts"])
    records = estimate_evidence(model, wide_guide, (X, Y), 2000)
    assert records["elbo"].mean < records["iw"].mean
    assert records["elbo"].unit == "data set"


SCHOOLS = torch.tensor([28, 8, -3, 7, -1, 1, 18, 12], dtype=torch.float64)
ERRORS = torch.tensor([15, 10, 16, 11, 9, 11, 10, 18], dtype=torch.float64)


def eight_schools(y, errors):
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("schools", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, errors), obs=y)


def eight_schools_evidence():
    """θ and μ are Gaussian given τ; log τ by the trapezoidal rule."""
    log_tau = np.linspace(-30, 40, 7001)
    tau, y, errors = np.exp(log_tau), SCHOOLS.numpy(), ERRORS.numpy()
    variance = errors**2 + tau[:, None] ** 2
    total = (1 / variance).sum(1)
    log_det = np.log(variance).sum(1) + np.log1p(25 * total)
    weighted = (y / variance).sum(1)
    square = (y**2 / variance).sum(1) - 25 * weighted**2 / (1 + 25 * total)
    log_prior = np.log(2 / (5 * math.pi)) - np.log1p((tau / 5) ** 2) + log_tau
    log_joint = -0.5 * (square + log_det + 8 * math.log(2 * math.pi)) + log_prior
    return logsumexp(log_joint) + math.log(log_tau[1] - log_tau[0])


def test_eight_schools_by_annealing():
    """A hierarchy with a constrained, shared latent beside one per school; |z| < 4."""
    options = {"num_chains": 100, "num_temperatures": 150, "num_leapfrog_steps": 5}
    evidence = annealed_evidence(eight_schools, (SCHOOLS, ERRORS), **options)
    assert evidence.not_reliable is None
    assert evidence.mc_se < 0.15
    assert abs(evidence.mean - eight_schools_evidence()) < 4 * evidence.mc_se
    assert abs(evidence.mean + 1 - eight_schools_evidence()) > 4 * evidence.mc_se


COUNTS = torch.tensor([3.0, 7.0, 5.0, 9.0], dtype=torch.float64)
TRIALS = torch.tensor([10.0, 12.0, 9.0, 11.0], dtype=torch.float64)


def beta_binomial(y, trials):
    p = pyro.sample("p", dist.Beta(y.new_tensor(2.0), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Binomial(trials, p), obs=y)


@pytest.mark.filterwarnings("ignore:no gradient reaches guide.scale_tril")  # of a single latent
@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal])
def test_beta_binomial_with_an_autoguide_of_pyro(kind):
    """Its one latent is drawn at an auxiliary site, outside of every plate."""
    y, n = COUNTS.numpy(), TRIALS.numpy()
    coefficients = sum(math.lgamma(a + 1) for a in n) - sum(
        math.lgamma(b + 1) + math.lgamma(a - b + 1) for a, b in zip(n, y, strict=True)
    )
    exact = coefficients + betaln(2 + y.sum(), 3 + (n - y).sum()) - betaln(2, 3)
    guide = kind(beta_binomial, init_scale=0.3)
    data = COUNTS, TRIALS
    fit(beta_binomial, guide, data, num_epochs=300, lr=0.02, progress=False)
    evidence = importance_weighted_evidence(beta_binomial, guide, data, 4000)
    assert evidence.not_reliable is None
    assert abs(evidence.mean - exact) < 4 * evidence.mc_se
    assert evidence.mc_se < 0.05
    assert abs(evidence.mean + 0.3 - exact) > 4 * evidence.mc_se


def test_laplaces_approximation_is_a_point_until_it_is_turned():
    """The posterior is Gaussian: the normal at its mode is exact, and the point is refused."""
    model = regression(MEANS["X @ w"])
    guide = AutoLaplaceApproximation(model)
    fit(model, guide, (X, Y), num_epochs=600, lr=0.1, lr_decay=0.98, progress=False)
    [finding] = check(model, guide, (X, Y))
    assert finding.check == "density"
    with pytest.raises(ValueError, match=r"point mass.*guide.laplace_approximation\(data\)"):
        importance_weighted_evidence(model, guide, (X, Y))
    turned = guide.laplace_approximation(X, Y)
    assert check(model, turned, (X, Y)) == []
    exact, log_w = regression_evidence(X, Y), log_weights(model, turned, (X, Y), 50)
    assert torch.allclose(log_w, torch.full_like(log_w, exact), atol=5e-3)


def test_a_guide_that_is_a_point_in_part_can_be_trained_and_has_no_weights():
    def model(x):
        for name in "ab":
            pyro.sample(name, dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["a"])))
    guide.append(AutoDelta(poutine.block(model, expose=["b"])))
    fit(model, guide, Y, num_epochs=2, progress=False)
    with pytest.raises(ValueError, match=r"'b' is a point mass \(Delta\)"):
        importance_weighted_evidence(model, guide, Y)
    assert [(f.check, "'b'" in f.problem) for f in check(model, guide, Y)] == [("density", True)]


def test_minibatches_stand_for_all_data():
    """The mean over disjoint batches of the scaled log joint is that of all data; unscaled not."""
    model = regression(MEANS["broadcasts"])
    guide = poutine.trace(wide_guide).get_trace(X, Y)

    def log_joint(rows, *, scaled):
        scale = ScaleData(frozenset([-1]), len(rows), NUM_DATA)
        program = scale(model) if scaled else model
        trace = poutine.trace(poutine.replay(program, trace=guide)).get_trace(X[rows], Y[rows])
        return trace.log_prob_sum()

    batches = torch.arange(NUM_DATA).split(4)
    whole = log_joint(torch.arange(NUM_DATA), scaled=False)
    means = {
        scaled: torch.stack([log_joint(rows, scaled=scaled) for rows in batches]).mean()
        for scaled in (True, False)
    }
    assert torch.allclose(means[True], whole)
    assert abs(means[False] - whole) > 1


def of_some(y):
    """A plate that draws a part of the rows by itself."""
    mean = pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))
    with pyro.plate("data", len(y), subsample_size=3) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


@pytest.mark.parametrize("batch_size", [3, 4, 12])
def test_minibatches_of_a_plate_that_subsamples_stand_for_all_data(batch_size):
    """Of equal data, every part of a part has to say the same as all of them."""
    y = torch.full((NUM_DATA,), 0.3).double()
    batch, given = y[:batch_size], {"mean": torch.tensor(0.5).double()}
    model = poutine.condition(of_some, given)
    trace = poutine.trace(of_some).get_trace(batch)
    dims = data_dims(of_some, len(y), batch, Traces(trace, trace))
    scaled = ScaleData(dims, len(batch), NUM_DATA)(model)
    found = poutine.trace(scaled).get_trace(batch).log_prob_sum()
    likelihood = NUM_DATA * dist.Normal(0.5, 1.0).log_prob(y[0])
    assert torch.allclose(found, likelihood + dist.Normal(0.0, 1.0).log_prob(given["mean"]))


@pytest.mark.parametrize(
    "estimate",
    [
        lambda guide: importance_weighted_evidence(of_some, guide, Y, 10),
        lambda _: annealed_evidence(of_some, Y, num_chains=4, num_temperatures=5),
        lambda guide: annealed_evidence(of_some, Y, guide=guide, num_chains=4, num_temperatures=5),
    ],
)
def test_rows_that_a_plate_draws_by_itself_have_no_evidence_of_all_data(estimate):
    def guide(y):
        pyro.sample("mean", dist.Normal(y.new_zeros(()), 1.0))

    with pytest.raises(ValueError, match=r"'data': draws 3 of 12 rows.*leave subsample_size out"):
        estimate(guide)


@pytest.mark.parametrize("batch_size", [8, 32, 256])
def test_the_posterior_does_not_depend_on_the_size_of_batches(batch_size):
    """sd within 5% of the exact one; unscaled, batches of 8 of 256 give one 5.6 times as wide."""
    torch.manual_seed(0)
    y = 1 + torch.randn(256)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.5))
        log_scale = pyro.param("log_scale", torch.tensor(-2.0))
        pyro.sample("mean", dist.Normal(loc, log_scale.exp()))

    epochs = {8: 25, 32: 100, 256: 800}[batch_size]
    decay = 0.01 ** (1 / epochs)
    fit(
        model,
        guide,
        (y,),
        num_epochs=epochs,
        batch_size=batch_size,
        lr=0.03,
        lr_decay=decay,
        objective=Trace_ELBO(num_particles=16, vectorize_particles=True),
        progress=False,
    )
    exact = (256 + 0.01) ** -0.5
    assert pyro.param("log_scale").exp().item() == pytest.approx(exact, rel=0.05)
    assert pyro.param("loc").item() == pytest.approx(y.mean().item(), abs=0.6 * exact)


def counts():
    """Of 512 units, each with a rate of its own from Gamma(2, 0.5)."""
    generator = np.random.default_rng(0)
    return torch.tensor(generator.poisson(generator.gamma(2.0, 2.0, size=512))).double()


def gamma_poisson(y):
    """A hierarchy whose rates are integrated out: α and β are shared."""
    zero = y.new_zeros(())
    alpha = pyro.sample("alpha", dist.LogNormal(zero, 1.0))
    beta = pyro.sample("beta", dist.LogNormal(zero, 1.0))
    with pyro.plate("units", len(y)):
        pyro.sample("y", dist.GammaPoisson(alpha, beta), obs=y)


def gamma_poisson_sd(y):
    """Of log α and log β, by the trapezoidal rule."""
    a, b = np.linspace(-1, 3, 401)[:, None, None], np.linspace(-2.5, 1.5, 401)[:, None]
    alpha, beta = np.exp(a), np.exp(b)
    log_p = gammaln(alpha + y) - gammaln(alpha) + alpha * (b - np.log1p(beta)) - y * np.log1p(beta)
    log_p = log_p.sum(-1) - 0.5 * (a**2 + b**2)[..., 0]
    p = np.exp(log_p - logsumexp(log_p))
    grids = a[:, :, 0] + 0 * b[:, 0], 0 * a[:, :, 0] + b[:, 0]
    means = [(p * grid).sum() for grid in grids]
    edges = p[0].sum() + p[-1].sum() + p[:, 0].sum() + p[:, -1].sum()
    assert edges < 1e-6
    return [math.sqrt((p * (g - m) ** 2).sum()) for g, m in zip(grids, means, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [32, 128, 512])
def test_a_gamma_poisson_hierarchy_has_its_widths_whatever_the_size_of_batches(batch_size):
    """Standard deviations within 5% of the exact ones, by the rules of `fit` alone."""
    y = counts()
    guide = FullRank.for_model(gamma_poisson, (y,), seed=0)
    history = fit(gamma_poisson, guide, (y,), batch_size=batch_size, progress=False)
    assert history.epochs[-1].is_average
    with torch.no_grad():
        factor = guide.unit.scale @ guide.guide.posterior(None).scale_tril
    widths = factor.norm(dim=1).tolist()
    assert widths == pytest.approx(gamma_poisson_sd(y.numpy()), rel=0.05)
    # The twin: unscaled minibatches would give the posterior of so many data.
    assert widths != pytest.approx(gamma_poisson_sd(y[:128].numpy()), rel=0.05)


def test_a_batch_that_cannot_be_scaled_is_refused():
    def model(X, y):
        w = pyro.sample("w", dist.Normal(X.new_zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(X @ w, NOISE).to_event(1), obs=y)

    guide = AutoNormal(model)
    with pytest.raises(ValueError, match="tells what to scale by 12/4: put what is of each datum"):
        fit(model, guide, (X, Y), num_epochs=1, batch_size=4, progress=False)
    fit(model, guide, (X, Y), num_epochs=1, batch_size=12, progress=False)


def test_check_finds_nothing_in_a_model_of_shared_latents():
    assert check(regression(MEANS["broadcasts"]), wide_guide, (X, Y)) == []
    assert check(regression(MEANS["X @ w"]), wide_guide, (X, Y)) == []


def test_our_objectives_take_several_tensors_in_fit_and_outside():
    """The loss of the exact posterior is −log p(y), per datum where `fit` reports it."""
    model, exact = regression(MEANS["broadcasts"]), regression_evidence(X, Y)
    assert STL(3).loss(model, exact_guide, X, Y) == pytest.approx(-exact)
    assert IWAE(3).loss(model, exact_guide, X, y=Y) == pytest.approx(-exact)

    def guide(X, y):
        shift = pyro.param("shift", X.new_zeros(2))
        pyro.sample(
            "w", dist.MultivariateNormal(posterior(X, y).loc + shift, torch.eye(2).double())
        )

    history = fit(model, guide, (X, Y), num_epochs=2, objective=IWAE(4), progress=False)
    assert -history.train_loss[-1] < exact / NUM_DATA


def test_a_mean_over_particles_is_one_call_of_a_program_that_does_not_broadcast():
    """By vmap; the loss of the exact posterior is −log p(y). IWAE, the twin, is no mean."""
    calls = []

    def model(X, y):
        calls.append(1)
        return regression(MEANS["X @ w"])(X, y)

    mean, bound = STL(3), IWAE(3)
    assert mean.loss(model, exact_guide, X, Y) == pytest.approx(-regression_evidence(X, Y))
    with pytest.warns(UserWarning, match="drawn one by one"):
        bound.loss(model, exact_guide, X, Y)
    counts = []
    for objective in (mean, bound):
        calls.clear()
        objective.loss(model, exact_guide, X, Y)
        counts.append(len(calls))
    assert counts == [1, 3]
