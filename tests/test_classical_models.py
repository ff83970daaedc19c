"""Models without a network: exact evidences and posteriors against brute force and Bayes' rule."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO

from evidence.guides import FullRank, MeanField, Unamortized
from evidence.inference import fit, log_weights
from evidence.models import (
    BayesianLinearRegression,
    BayesianLogisticRegression,
    EightSchools,
    Energy2D,
    GaussianMixture2D,
)
from tests.box_rule import box_rule
from tests.conftest import make_oracle

ORACLES = {
    "LinearGaussian": lambda: make_oracle(4, 2),
    "LinearRegression": lambda: BayesianLinearRegression(6, 2, prior_scale=1.5).double(),
    "LinearRegression-design": lambda: BayesianLinearRegression(
        3, 2, design=[[1.0, 0.2], [0.5, -1.0], [1.0, 1.0]], noise_scale=0.7
    ).double(),
    "LogisticRegression": lambda: BayesianLogisticRegression(5, 2).double(),
    "LogisticRegression-1": lambda: BayesianLogisticRegression(4, 1, prior_scale=3.0).double(),
    "GaussianMixture": lambda: GaussianMixture2D(2, num_components=3).double(),
    **{f"Energy-{e}": lambda e=e: Energy2D(1, energy=e).double() for e in ("U1", "U2", "U3", "U4")},
}
WITH_POSTERIOR = [name for name in ORACLES if not name.startswith("Logistic")]


def midpoints(model, num=600):
    """A fine uniform grid over the latents, `[N, Z]`, and the log-volume of a cell.

    Not the rule that the models integrate with.
    """
    low, high = model.plane or (-25.0, 25.0) if model.latent_dim == 1 else model.plane or (-9, 9)
    step = (high - low) / num
    side = low + step * (torch.arange(num, dtype=torch.float64) + 0.5)
    grid = torch.cartesian_prod(*[side] * model.latent_dim).reshape(-1, model.latent_dim)
    return grid, model.latent_dim * math.log(step)


@pytest.mark.parametrize("make", ORACLES.values(), ids=ORACLES)
def test_the_evidence_is_the_integral_of_the_joint_density(make):
    model = make()
    x = model(None, size=3)
    if not isinstance(model, GaussianMixture2D | Energy2D):
        model.plane = None if model.latent_dim == 1 else (-14.0, 14.0)
    grid, log_cell = midpoints(model)
    brute = (model.log_joint(x, grid.unsqueeze(1)) + log_cell).logsumexp(0)
    exact = model.log_evidence(x)
    assert exact.shape == (3,)
    assert exact.dtype == torch.float64
    # The mixture's square leaves out what lies 5 standard deviations off; U4 has a crease.
    assert torch.allclose(exact, brute, rtol=0, atol=5e-6)
    # the planted errors: another sign of the latent term, and another prior
    z = grid.unsqueeze(1)
    wrong = model.likelihood(z).log_prob(x) - model.prior().log_prob(z)
    assert not torch.allclose(exact, (wrong + log_cell).logsumexp(0), atol=1e-2)


@pytest.mark.parametrize("name", WITH_POSTERIOR)
def test_bayes_rule_holds_at_any_z(name):
    """log p(x) = log p(z) + log p(x | z) − log p(z | x)."""
    model = ORACLES[name]()
    x, z = model(None, size=40), 3 * torch.rand(40, model.latent_dim).double()
    posterior = model.posterior(x)
    assert (posterior.batch_shape, posterior.event_shape) == ((40,), (model.latent_dim,))
    bayes = model.log_joint(x, z) - posterior.log_prob(z)
    assert (bayes - model.log_evidence(x)).abs().max() < 1e-9
    # the planted error: the posterior of the datum next door
    if not isinstance(model, Energy2D):
        other = model.log_joint(x, z) - model.posterior(x.roll(1, 0)).log_prob(z)
        assert (other - model.log_evidence(x)).abs().max() > 0.1


@pytest.mark.parametrize("name", WITH_POSTERIOR)
def test_weights_of_the_exact_posterior_are_the_evidence(name):
    """As a Pyro pair: every weight is log p(x), and so it is through the unpacking of sites."""
    model = ORACLES[name]()
    x = model(None, size=5)

    class Exact(MeanField):
        def posterior(self, x):
            return model.posterior(x)

    log_w = log_weights(model, Exact(model.latent_dim, model.data_dim, hidden_dims=()), x, 20)
    assert (log_w - model.log_evidence(x)).abs().max() < 1e-8


def test_linear_regression_simulates_its_marginal():
    """Variances of 20,000 draws against τ²ΦΦᵀ + σ²I, |z| < 5; with another σ, more."""
    model = BayesianLinearRegression(6, 3).double()
    x = model(None, size=20_000)
    variance = x.var(0)
    for noise, fits in ((0.5, True), (0.6, False)):
        model.noise_scale = noise
        exact = model.marginal().variance
        z_scores = (variance - exact) / (exact * math.sqrt(2 / 20_000))
        assert (z_scores.abs().max() < 5) == fits


def test_the_default_design_is_polynomial_and_kept_in_the_state():
    model = BayesianLinearRegression(3, 3)
    assert torch.equal(model.design, torch.tensor([[1.0, -1, 1], [1, 0, 0], [1, 1, 1]]))
    other = BayesianLinearRegression(3, 3, design=torch.rand(3, 3))
    model.load_state_dict(other.state_dict())
    assert torch.equal(model.design, other.design)


def test_logistic_evidences_of_all_responses_add_up_to_one():
    model = BayesianLogisticRegression(5, 2).double()
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 5)
    assert abs(model.log_evidence(x).logsumexp(0).item()) < 1e-10


def test_logistic_frequencies_are_the_evidences():
    """All 8 outcomes of 3 responses at 20,000 draws, |z| < 5; with half the prior scale, more."""
    model = BayesianLogisticRegression(3, 2).double()
    x = model(None, size=20_000)
    outcomes = torch.cartesian_prod(*[torch.tensor([0.0, 1.0]).double()] * 3)
    frequency = (x.unsqueeze(1) == outcomes).all(-1).double().mean(0)
    for prior_scale, fits in ((2.0, True), (1.0, False)):
        p = (
            BayesianLogisticRegression(3, 2, prior_scale=prior_scale)
            .double()
            .log_evidence(outcomes)
        )
        z_scores = (frequency - p.exp()) / (p.exp() * (1 - p.exp()) / 20_000).sqrt()
        assert (z_scores.abs().max() < 5) == fits


def test_logistic_evidence_of_more_weights_is_not_known():
    assert BayesianLogisticRegression(5, 3).log_evidence(torch.ones(2, 5)) is None
    assert BayesianLogisticRegression(5, 2).log_evidence(torch.ones(2, 5)) is not None


SCHOOLS = torch.tensor(
    [EightSchools.effects, [10.0] * 8, [40.0, -20, 0, 0, 20, 30, -9, 4]]
).double()


def school_estimate(model, n=200_000):
    """log p(y) by averaging the likelihood over the prior, and its standard error: `[B]`."""
    z = model.prior().sample((n, 1))
    log_p = model.likelihood(z).log_prob(SCHOOLS)
    estimate = log_p.logsumexp(0) - math.log(n)
    ess = (2 * log_p.logsumexp(0) - (2 * log_p).logsumexp(0)).exp()
    return estimate, (1 / ess - 1 / n).sqrt()


@pytest.mark.parametrize("centred", [True, False])
def test_schools_evidence_is_the_average_likelihood_over_the_prior(centred):
    """|z| < 5 for three data sets; the planted errors: no heavy tail of tau, and no factor 2."""
    model = EightSchools(8, centred=centred).double()
    estimate, se = school_estimate(model)
    exact = model.log_evidence(SCHOOLS)
    assert ((estimate - exact) / se).abs().max() < 5
    assert se[0] < 0.02
    assert (((estimate + math.log(2)) - exact) / se).abs().max() > 5
    model.prior = lambda: with_a_light_tail(EightSchools(8, centred=centred).double())
    light, se = school_estimate(model)
    assert ((light - exact) / se).abs().max() > 5


def with_a_light_tail(model):
    """The model's prior with tau ~ HalfNormal(5) in place of the half-Cauchy."""
    chain = model.prior()
    chain.factors["tau"] = lambda _: dist.HalfNormal(model._zero + 5).expand([1]).to_event(1)
    return chain


def test_schools_evidence_by_more_nodes_is_the_same():
    """τ out to infinity, over log τ, with μ on a grid too: nothing of the model's own integral."""
    model = EightSchools(8).double()
    grid, log_weights_ = box_rule(-1.0, 1.0, 2, num_panels=60, order=8)
    mu, log_tau = 60 * grid[:, :1], 1.0 + 20 * grid[:, 1:]
    scale = (model.sigma**2 + (2 * log_tau).exp()).sqrt()
    five = torch.tensor(5.0, dtype=torch.float64)
    terms = (
        dist.Normal(mu, scale).log_prob(SCHOOLS[0]).sum(1)
        + dist.Normal(0.0, five).log_prob(mu[:, 0])
        + dist.HalfCauchy(five).log_prob(log_tau[:, 0].exp())
        + log_tau[:, 0]
    )
    brute = (terms + log_weights_).logsumexp(0) + math.log(60 * 20)
    assert model.log_evidence(SCHOOLS[:1]).item() == pytest.approx(brute.item(), abs=1e-8)


def test_both_schools_are_one_model_of_the_effects():
    """p(mu, tau, theta) centred = p(mu, tau, eta) / tau⁸."""
    centred, other = EightSchools(8).double(), EightSchools(8, centred=False).double()
    z = other.prior().sample((50,))
    theta = other.theta(z)
    moved = torch.cat([z[:, :2], theta], -1)
    assert torch.equal(centred.theta(moved), theta)
    y = torch.randn(50, 8).double()
    difference = other.log_joint(y, z) - centred.log_joint(y, moved)
    assert torch.allclose(difference, 8 * z[:, 1].log(), rtol=0, atol=1e-7)


def test_the_elbo_of_a_guide_over_the_schools_is_below_the_evidence():
    """Within 5 SE, and by half a nat; without the Jacobian of tau = exp(u) it would be above."""
    model = EightSchools(8, centred=False)
    x = SCHOOLS[:1].float()
    guide = Unamortized.for_model(model, x)
    fit(
        model, guide, x, num_epochs=700, lr=0.02, batch_size=1, progress=False,
        objective=Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1),
    )  # fmt: skip
    n = 20_000
    with torch.no_grad():
        z = guide.posterior(x).sample((n,))
        log_w = (model.log_joint(x, z) - guide.posterior(x).log_prob(z.clone())).double()
    exact, se = model.log_evidence(x), log_w.std() / math.sqrt(n)
    assert exact - 0.5 < log_w.mean() < exact + 5 * se
    again = log_weights(model, guide, x, n).double()  # as a pair of programs
    assert (again.mean() - log_w.mean()).abs() < 5 * math.sqrt(2) * se
    assert (log_w + z[..., 1].log()).mean() > exact + 5 * se


@pytest.mark.parametrize(
    ("energy", "log_z"), [("U1", 1.8775), ("U2", 2.0821), ("U3", 2.6417), ("U4", 2.6846)]
)
def test_energies_have_their_known_normalizers(energy, log_z):
    model = Energy2D(3, energy=energy)
    assert model.log_evidence(torch.zeros(2, 3)).tolist() == pytest.approx([log_z] * 2, abs=5e-5)


def written_out(energy, z1, z2):
    """exp(−U) as in Rezende and Mohamed 2015, table 1."""
    w1 = math.sin(2 * math.pi * z1 / 4)
    w2 = 3 * math.exp(-0.5 * ((z1 - 1) / 0.6) ** 2)
    w3 = 3 / (1 + math.exp(-(z1 - 1) / 0.3))
    match energy:
        case "U1":
            ring = 0.5 * ((math.hypot(z1, z2) - 2) / 0.4) ** 2
            sides = [math.exp(-0.5 * ((z1 + shift) / 0.6) ** 2) for shift in (-2, 2)]
            return math.exp(-ring) * sum(sides)
        case "U2":
            return math.exp(-0.5 * ((z2 - w1) / 0.4) ** 2)
        case "U3":
            offs = (z2 - w1) / 0.35, (z2 - w1 + w2) / 0.35
        case "U4":
            offs = (z2 - w1) / 0.4, (z2 - w1 + w3) / 0.35
    return sum(math.exp(-0.5 * off**2) for off in offs)


@pytest.mark.parametrize("energy", ["U1", "U2", "U3", "U4"])
def test_energies_are_the_papers(energy):
    model = Energy2D(1, energy=energy).double()
    z = torch.tensor([[0.3, -0.4], [1.2, 0.9], [-2.2, 0.1], [3.5, -1.0]]).double()
    values = [written_out(energy, *row) for row in z.tolist()]
    expected = torch.tensor(values, dtype=torch.float64)
    log_joint = model.log_joint(torch.zeros(4, 1).double(), z)
    assert torch.allclose(log_joint.exp(), expected, rtol=1e-10, atol=0)
    assert torch.allclose(log_joint, -model.potential(z), atol=1e-12)
    outside = torch.tensor([[4.5, 0.0], [0.0, -5.0]]).double()
    assert model.log_joint(torch.zeros(2, 1).double(), outside).eq(-math.inf).all()
    assert model.posterior(torch.zeros(2, 1)).log_prob(outside).eq(-math.inf).all()


@pytest.mark.parametrize("energy", ["U1", "U2", "U3", "U4"])
def test_draws_of_an_energy_have_its_moments(energy):
    """E[U], E[z] at 20,000 draws, |z| < 5; draws of exp(+U) or of the prior would not."""
    model, n = Energy2D(1, energy=energy).double(), 20_000
    trace = poutine.trace(model).get_trace(None, size=n)
    trace.compute_log_prob()
    z = trace.nodes["z"]["value"]
    total = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    assert torch.allclose(total, model.log_joint(trace.nodes["x"]["value"], z), atol=1e-9)
    nodes, log_weights_ = box_rule(-4.0, 4.0, 2, num_panels=30)

    def z_scores(sign, draws):
        mass = (log_weights_ + sign * model.potential(nodes)).softmax(0).unsqueeze(1)
        worst = 0.0
        for f in (lambda t: model.potential(t).unsqueeze(1), lambda t: t):
            mean = (mass * f(nodes)).sum(0)
            sd = ((mass * f(nodes) ** 2).sum(0) - mean**2).sqrt()
            worst = max(worst, ((f(draws).mean(0) - mean) / sd * math.sqrt(n)).abs().max().item())
        return worst

    assert z_scores(-1, z) < 5
    assert z_scores(+1, z) > 5
    assert z_scores(-1, model.prior().sample((n,))) > 5


def test_a_guide_of_an_energy_stays_in_the_square_and_below_ln_z():
    model = Energy2D(1, energy="U2")
    x = torch.zeros(256, 1)
    guide = FullRank.for_model(model, x, hidden_dims=())
    fit(model, guide, x, num_epochs=150, lr=0.03, batch_size=256, progress=False)
    log_w = log_weights(model, guide, x, 100)
    z = guide.posterior(x).sample((20,))
    assert z.abs().max() < 4
    assert -3.0 < log_w.mean() - 2.0821 < 0.0
    estimate = log_w.flatten().logsumexp(0) - math.log(log_w.numel())
    assert estimate.item() == pytest.approx(2.0821, abs=0.1)


def test_mixture_posteriors_have_several_modes():
    """At the centre all four are alike; the moments of simulated data are those of p(x)."""
    model = GaussianMixture2D(2).double()
    at_centre = model.posterior(torch.zeros(1, 2).double())
    modes = at_centre.component_distribution.mean[0]
    values = at_centre.log_prob(modes.unsqueeze(1))
    assert torch.allclose(values, values[0], atol=1e-9)
    assert values[0] > at_centre.log_prob(torch.zeros(1, 2).double()) + 3
    n = 20_000
    x = model(None, size=n)
    exact = model.noise_scale**2 + model.component_scale**2 + model.centres[:, 0].square().mean()
    fourth = ((x**2 - exact) ** 2).mean(0)
    for factor, fits in ((1.0, True), (1.2, False)):
        z_scores = (x.square().mean(0) - factor * exact) / (fourth / n).sqrt()
        assert (z_scores.abs().max() < 5) == fits


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Energy2D(1, energy="U5"), "unknown energy 'U5'"),
        (lambda: Energy2D(1)(), "got neither"),
        (lambda: Energy2D(2)(torch.zeros(3, 1)), r"expected x of shape \(B, 2\), got \(3, 1\)"),
        (
            lambda: EightSchools(64),
            "EightSchools is a model of data with 8 entries, got data_dim=64",
        ),
        (lambda: EightSchools(8).log_evidence(torch.zeros(2, 3)), r"\(B, 8\), got \(2, 3\)"),
        (lambda: GaussianMixture2D(3), "data with 2 entries, got data_dim=3"),
        (lambda: GaussianMixture2D(2, num_components=0), "num_components of at least 1, got 0"),
        (lambda: GaussianMixture2D(2, noise_scale=-1.0), "noise_scale > 0, got -1.0"),
        (lambda: BayesianLinearRegression(3, prior_scale=0.0), "prior_scale > 0, got 0.0"),
        (
            lambda: BayesianLinearRegression(3, 2, design=[[1.0, 2.0]]),
            r"design of shape \(3, 2\), .* got \(1, 2\)",
        ),
        (lambda: BayesianLogisticRegression(3, prior_scale=math.nan), "prior_scale > 0, got nan"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
