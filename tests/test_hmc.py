"""HMC leaves its target as it is: moments, Geweke's joint test, and the geometry of leapfrog."""

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.inference.paths import hmc
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.unconstrained import Assignment
from tests.conftest import make_oracle

COVARIANCE = torch.tensor(
    [[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]], dtype=torch.float64
)
GAUSSIAN = dist.MultivariateNormal(torch.tensor([1.0, -2.0, 0.5]).double(), COVARIANCE)


def quartic(z):
    """Not a Gaussian: its forces are not linear."""
    return -(0.5 * z.square() + 0.1 * z**4).sum(-1) + 0.3 * z.prod(-1).cos()


def planted_sign(monkeypatch):
    """Proposals are accepted as if the ratio were upside down."""
    monkeypatch.setattr(hmc, "_log_ratio", lambda current, proposed: current - proposed)


def planted_no_test(monkeypatch):
    """Every proposal is accepted."""
    monkeypatch.setattr(hmc, "_log_ratio", lambda current, _: torch.zeros_like(current))


def planted_momentum(monkeypatch):
    """Momenta are drawn wider than the kinetic energy says."""
    monkeypatch.setattr(hmc, "_draw_momentum", lambda z: 1.2 * torch.randn_like(z))


def planted_kinetic_energy(monkeypatch):
    """The kinetic energy is left out of Metropolis' test."""
    monkeypatch.setattr(hmc, "kinetic_energy", lambda momentum: 0 * momentum.sum(-1))


def planted_jacobian(monkeypatch):
    """Constrained latents move without the Jacobian of their transform."""
    assign = Assignment.assign

    def without_jacobian(self, site):
        assign(self, site)
        self.ladj.clear()

    monkeypatch.setattr(Assignment, "assign", without_jacobian)


KERNEL_PLANTS = [planted_sign, planted_no_test, planted_momentum, planted_kinetic_energy]


def states(log_density):
    return functools.partial(hmc.init, log_density=log_density)


def moves(state, log_density, step_size, num_steps, **options):
    for _ in range(num_steps):
        state, info = hmc.step(state, states(log_density), step_size, **options)
    return state, info


def worst_moment(standardized):
    """Largest |z| of first and second moments of draws `[N, ..., Z]` that should be N(0, I)."""
    first, second = standardized, standardized.unsqueeze(-1) * standardized.unsqueeze(-2)
    expected = torch.eye(standardized.shape[-1], dtype=torch.float64)
    scores = [
        (draws.mean(0) - mean) / draws.std(0) * math.sqrt(len(draws))
        for draws, mean in ((first, torch.zeros(())), (second, expected))
    ]
    return max(score.abs().max().item() for score in scores)


def gaussian_moments():
    """3 steps from 20,000 exact draws, with another step size for each of 3 data."""
    z = GAUSSIAN.sample([20_000, 3])
    step_size = torch.tensor([0.3, 0.6, 0.8], dtype=torch.float64)
    state, _ = moves(hmc.init(z, GAUSSIAN.log_prob), GAUSSIAN.log_prob, step_size, 3)
    whiten = torch.linalg.inv(torch.linalg.cholesky(COVARIANCE))
    return worst_moment((state.z - GAUSSIAN.loc) @ whiten.mT)


def test_a_gaussian_is_left_as_it_is():
    assert gaussian_moments() < 5


@pytest.mark.parametrize("plant", KERNEL_PLANTS)
def test_a_planted_error_in_the_kernel_moves_a_gaussian(plant, monkeypatch):
    plant(monkeypatch)
    assert gaussian_moments() > 5


def test_a_gaussian_is_found_from_afar():
    z = 3 + torch.zeros(5000, 2, 3, dtype=torch.float64)
    state, _ = moves(hmc.init(z, GAUSSIAN.log_prob), GAUSSIAN.log_prob, 0.23, 40)
    whiten = torch.linalg.inv(torch.linalg.cholesky(COVARIANCE))
    assert worst_moment((state.z - GAUSSIAN.loc) @ whiten.mT) < 5


def oracle_moments(beta=1.0):
    model = make_oracle()
    x = model(None, size=4)
    posterior = model.posterior(x)
    with evaluation_mode(model):
        path = PriorPath(model, x)
        state = hmc.init(posterior.sample([8000]), path)
        step_size = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
        weights = path.weights(beta)
        state, _ = moves(state, path, step_size, 3, num_leapfrog_steps=4, weights=weights)
    whiten = torch.linalg.inv(posterior.scale_tril)
    return worst_moment(((state.z - posterior.loc).unsqueeze(-2) @ whiten.mT).squeeze(-2))


def test_the_posterior_of_a_pyro_model_is_left_as_it_is():
    assert oracle_moments() < 5


def test_a_planted_temperature_moves_the_posterior():
    assert oracle_moments(beta=0.9) > 5


def gamma_exponential(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(x.new_tensor(3.0), x.new_tensor(2.0)))
        pyro.sample("x", dist.Exponential(z), obs=x)


def geweke(num_draws=100_000, num_sweeps=4):
    """Largest |z| between two simulators of p(z, x).

    Marginal-conditional draws z, then x given z. Successive-conditional starts there, and then
    alternates HMC steps of z given x with draws of x given z. Each of the many draws is a data row
    of its own, so that the two samples are independent within themselves.

    Reference: J. Geweke, "Getting it right: joint distribution tests of posterior simulators",
    2004, https://doi.org/10.1198/016214504000001132.
    """

    def simulate():
        z = dist.Gamma(torch.tensor(3.0).double(), torch.tensor(2.0).double()).sample([num_draws])
        return z, dist.Exponential(z).sample()

    z, x = simulate()
    with evaluation_mode(gamma_exponential):
        for _ in range(num_sweeps):
            path = PriorPath(gamma_exponential, x)
            state = hmc.init(path.locate({"z": z.unsqueeze(0)}), path)
            state, _ = moves(state, path, 0.4, 1, num_leapfrog_steps=4)
            z = path.site_values(state.z)["z"][0]
            x = dist.Exponential(z).sample()

    def statistics(z, x):
        log_z, log_x = z.log(), x.log()
        return torch.stack([z, z**2, log_z, log_z**2, log_x, log_x**2, log_z * log_x])

    ours, theirs = statistics(z, x), statistics(*simulate())
    variance = (ours.var(1) + theirs.var(1)) / num_draws
    return ((ours.mean(1) - theirs.mean(1)) / variance.sqrt()).abs().max().item()


def test_gewekes_joint_distributions_agree():
    assert geweke() < 5


@pytest.mark.parametrize("plant", [*KERNEL_PLANTS, planted_jacobian])
def test_geweke_finds_a_planted_error(plant, monkeypatch):
    plant(monkeypatch)
    assert geweke() > 5


def flow(z, momentum, log_density=quartic, *, step_size=0.2, num_steps=7):
    state, momentum = hmc.leapfrog(
        hmc.init(z, log_density),
        momentum,
        states(log_density),
        step_size,
        num_leapfrog_steps=num_steps,
        weights=[1.0],
    )
    return state.z, momentum


def test_leapfrog_leads_back_when_the_momentum_is_turned():
    z, momentum = torch.randn(2, 50, 4, 3, dtype=torch.float64)
    there, moved = flow(z, momentum)
    back, turned = flow(there, -moved)
    assert (there - z).abs().max() > 1
    assert (back - z).abs().max() < 1e-10
    assert (turned + momentum).abs().max() < 1e-10
    half, _ = flow(there, -moved, step_size=0.19)  # the twin: another step size on the way back
    assert (half - z).abs().max() > 1e-3


def log_volume_change(step):
    """Log|det| of the Jacobian of (z, p) -> (z', p'), by finite differences of order 6."""
    start = torch.randn(6, dtype=torch.float64)
    width = 2e-3
    offsets = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60}
    columns = torch.zeros(6, 6, dtype=torch.float64)
    for offset, weight in offsets.items():
        for sign in (1, -1):
            points = start + sign * offset * width * torch.eye(6, dtype=torch.float64)
            z, momentum = step(points[:, None, :3], points[:, None, 3:])
            columns += sign * weight / width * torch.cat([z, momentum], -1)[:, 0]
    return torch.linalg.slogdet(columns).logabsdet.item()


def test_leapfrog_preserves_volume():
    assert abs(log_volume_change(flow)) < 1e-10


def test_eulers_method_does_not():
    def euler(z, momentum):
        for _ in range(7):
            grad = hmc.init(z, quartic).grads[0]
            z, momentum = z + 0.2 * momentum, momentum + 0.2 * grad
        return z, momentum

    assert abs(log_volume_change(euler)) > 1e-3


def test_the_energy_error_falls_with_the_square_of_the_step_size():
    z, momentum = torch.randn(2, 200, 1, 3, dtype=torch.float64)

    def error(step_size, num_steps):
        there, moved = flow(z, momentum, step_size=step_size, num_steps=num_steps)
        energies = [hmc.kinetic_energy(p) - quartic(q) for q, p in ((z, momentum), (there, moved))]
        return (energies[1] - energies[0]).abs().mean().item()

    assert error(0.05, 20) / error(0.025, 40) == pytest.approx(4, rel=0.05)


def test_step_sizes_act_on_their_own_chain_and_datum():
    z = torch.randn(3, 4, 2, dtype=torch.float64)
    ones = torch.full((3, 4), 0.3, dtype=torch.float64)
    other = ones.clone()
    other[1, 2], other[0, 3] = 0.7, 0.0

    def end(step_size):
        pyro.set_rng_seed(3)
        return hmc.step(hmc.init(z, quartic), states(quartic), step_size)[0].z

    changed = (end(ones) != end(other)).any(-1)
    assert changed.nonzero().tolist() == [[0, 3], [1, 2]]
    assert torch.equal(end(other)[0, 3], z[0, 3])
    per_datum = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    assert torch.equal(end(per_datum), end(per_datum.expand(3, 4)))


def test_one_gradient_per_leapfrog_step():
    calls = []

    def counted(z):
        calls.append(z.shape)
        return quartic(z)

    state = hmc.init(torch.randn(2, 3, 4), counted)
    moves(state, counted, 0.1, 5, num_leapfrog_steps=7)
    assert len(calls) == 1 + 5 * 7


def test_terms_and_their_weights_make_the_density():
    """Two terms at weights (1, ½) walk as their sum does; a silent infinite term is not heard."""
    z = torch.randn(5, 4, 3, dtype=torch.float64)

    def terms(z):
        return quartic(z), GAUSSIAN.log_prob(z), torch.full_like(z[..., 0], -math.inf)

    def whole(z):
        return quartic(z) + 0.5 * GAUSSIAN.log_prob(z)

    pyro.set_rng_seed(1)
    apart, _ = moves(hmc.init(z, terms), terms, 0.3, 5, weights=(1.0, 0.5, 0.0))
    pyro.set_rng_seed(1)
    together, _ = moves(hmc.init(z, whole), whole, 0.3, 5)
    assert (apart.z - together.z).abs().max() < 1e-10
    assert (apart.z != z).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_divergences_are_rejected_and_leave_no_trace(bad):
    def cliff(z):
        return torch.where(z[..., 0] > 0.5, bad, -0.5 * z.square().sum(-1))

    z = torch.zeros(50, 3, 2)
    step_size = torch.tensor([0.5, 100.0, 1e30])
    state = hmc.init(z, cliff)
    for _ in range(20):
        state, info = hmc.step(state, states(cliff), step_size)
        assert all(part.isfinite().all() for part in (*state, info.acceptance))
        assert not (info.is_divergent & info.is_accepted).any()
    assert info.is_divergent[:, 0].any()
    assert info.is_divergent[:, 2].all()
    assert info.is_accepted[:, 0].any()
    assert (state.z[..., 0] <= 0.5).all()
