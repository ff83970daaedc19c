"""Objectives that cover modes: exact gradients with planted twins, and the modes that they keep."""

import math
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from evidence.guides import FullRank, Mixture
from evidence.inference import (
    FAB,
    ForwardKLOnDraws,
    compare_to_reference,
    fit,
    guide_draws,
    importance_weighted_evidence,
    mode_coverage,
    smc,
)
from evidence.inference.mode_covering import fab, forward_kl
from evidence.models.problems import PROBLEMS
from tests.test_cli import refused, run

GRID = torch.linspace(-25, 25, 20_001, dtype=torch.float64)
X = torch.tensor([0.4, -2.0], dtype=torch.float64)


class Normal(nn.Module):
    """A normal guide, of one latent for all data or of one per datum."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(0.5).double())
        self.log_scale = nn.Parameter(torch.tensor(0.6).double())

    def forward(self, x=None):
        if x is None:
            pyro.sample("z", self.q())
            return
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))

    def q(self, x=0.0):
        return dist.Normal(self.loc + 0.3 * x, self.log_scale.exp())


def log_likelihood(z):
    return torch.logaddexp(dist.Normal(-1.0, 0.5).log_prob(z), dist.Normal(1.5, 0.7).log_prob(z))


def bimodal():
    z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.5))
    pyro.factor("bimodal", log_likelihood(z))


def log_joint(z):
    return dist.Normal(0.0, 1.5).log_prob(z) + log_likelihood(z)


def per_datum(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.5))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def integral(log_f):
    return torch.logsumexp(log_f, -1) + (GRID[1] - GRID[0]).log()


def chi_bound(guide, has_data):
    """Σ ½ log ∫ p²/q by quadrature, and its gradient by autograd."""
    if has_data:
        log_p = dist.Normal(0.0, 1.5).log_prob(GRID) + dist.Normal(GRID, 1.0).log_prob(X[:, None])
        log_q = guide.q(X[:, None]).log_prob(GRID)
    else:
        log_p, log_q = log_joint(GRID), guide.q().log_prob(GRID)
    value = 0.5 * integral(2 * log_p - log_q).sum()
    return torch.stack([value, *torch.autograd.grad(value, list(guide.parameters()))]).detach()


def estimates(has_data=False, num_runs=20, **options):
    """Value and gradient of so many evaluations of FAB, `[R, 3]`."""
    pyro.set_rng_seed(0)
    guide, objective = Normal(), FAB(2000, num_temperatures=3, **options)
    rows = []
    for _ in range(num_runs):
        guide.zero_grad()
        data = (X,) if has_data else ()
        loss = objective.differentiable_loss(per_datum if has_data else bimodal, guide, *data)
        loss.backward()
        rows.append(torch.stack([loss.detach(), *(p.grad for p in guide.parameters())]))
    return torch.stack(rows)


def z_scores(found, exact):
    return (found.mean(0) - exact).abs() / (found.std(0) / math.sqrt(len(found)))


@pytest.mark.parametrize("has_data", [False, True], ids=["shared", "per datum"])
def test_the_gradient_of_fab_is_that_of_the_divergence(has_data):
    """Against quadrature, |z| < 5, within 3%: the value, and the slopes of location and scale."""
    found, exact = estimates(has_data), chi_bound(Normal(), has_data)
    assert (z_scores(found, exact) < 5).all()
    assert torch.allclose(found.mean(0), exact, rtol=0.03, atol=0.003)


def planted_equal_weights(patch):
    original = fab.annealed_draws

    def unweighted(*arguments):
        found = original(*arguments)
        return found._replace(log_w=torch.zeros_like(found.log_w))

    patch.setattr(fab, "annealed_draws", unweighted)


def planted_sign(patch):
    patch.setattr(fab, "gradient_only", lambda value: value.detach() - value)


def planted_alpha_of_one(patch):
    """Chains that go to p, as of the forward KL, with its weights."""
    patch.setattr(fab, "weights_towards_target", lambda beta: (1 - beta, beta))
    patch.setattr(fab, "_log_ratio", lambda log_probs: log_probs[1] - log_probs[0])


@pytest.mark.parametrize("plant", [planted_equal_weights, planted_sign, planted_alpha_of_one])
def test_planted_errors_of_fab_turn_its_gradient(plant, monkeypatch):
    plant(monkeypatch)
    found, exact = estimates(), chi_bound(Normal(), has_data=False)
    assert z_scores(found, exact)[1:].max() > 10


def test_more_leapfrog_steps_and_temperatures_leave_the_mean():
    found = estimates(num_leapfrog_steps=1, num_runs=10)
    assert (z_scores(found, chi_bound(Normal(), has_data=False)) < 5).all()


def gradient_on(draws, **options):
    guide = Normal()
    objective = ForwardKLOnDraws({"z": draws}, **options)
    loss = objective.differentiable_loss(bimodal, guide)
    loss.backward()
    return torch.stack([loss.detach(), *(p.grad for p in guide.parameters())])


def expected_on(draws):
    guide = Normal()
    loss = (log_joint(draws) - guide.q().log_prob(draws)).mean()
    return torch.stack([loss, *torch.autograd.grad(loss, list(guide.parameters()))]).detach()


def test_the_gradient_on_draws_is_that_of_their_log_density(monkeypatch):
    """Exactly, of all draws; of some at a time |z| < 5; the twin has the sign of log q turned."""
    draws = torch.randn(2, 60).double() - 1
    assert torch.allclose(gradient_on(draws), expected_on(draws))
    pyro.set_rng_seed(0)
    found = torch.stack([gradient_on(draws, num_particles=20) for _ in range(40)])
    assert (z_scores(found, expected_on(draws)) < 5).all()
    log_q = forward_kl.GuidePath.log_q
    monkeypatch.setattr(forward_kl.GuidePath, "log_q", lambda path, u: -log_q(path, u))
    assert not torch.allclose(gradient_on(draws), expected_on(draws), rtol=0.3)


def gamma(y):
    rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0).double(), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


def test_fit_finds_the_moments_of_the_draws_in_unconstrained_space():
    """Of a normal over log z the best is theirs; the guide of the model was elsewhere."""
    y = torch.tensor([0.5, 1.2, 0.3]).double()
    draws = dist.Gamma(5.0, 3.0).sample([400]).double()
    guide = FullRank.for_model(gamma, y)
    objective = ForwardKLOnDraws({"rate": draws})
    fit(gamma, guide, y, objective=objective, num_steps=120, lr=0.05, progress=False)
    pyro.set_rng_seed(0)
    found = guide_draws(gamma, guide, y, 40_000)["rate"].log()
    assert found.mean().item() == pytest.approx(draws.log().mean().item(), abs=0.02)
    assert found.std().item() == pytest.approx(draws.log().std().item(), rel=0.04)
    assert repr(objective) == "ForwardKLOnDraws(draws=dict, num_particles=512)"


@pytest.mark.parametrize(
    "make", [lambda: FAB(8), lambda: ForwardKLOnDraws(num_particles=20)], ids=["FAB", "draws"]
)
def test_training_goes_on_bit_for_bit(make):
    """Chains remember nothing, and the draws of `smc` are made anew."""
    ended, snapshots = [], []
    options = {"num_epochs": 4, "progress": False, "until": None}
    for resume in (False, True):
        guide = Normal()
        kept = {"resume_from": snapshots[0]} if resume else {"on_snapshot": snapshots.append}
        fit(shared, At(guide), Y, objective=make(), snapshot_every=2, **kept, **options)
        ended.append([p.item() for p in guide.parameters()])
    assert len(snapshots) > 1
    assert ended[0] == ended[1] != [0.5, 0.6]


class At(nn.Module):
    """A guide of data that it does not look at."""

    def __init__(self, guide):
        super().__init__()
        self.guide = guide

    def forward(self, y):
        self.guide()


SQUARE = """
import torch, pyro, pyro.distributions as dist

def square(y):
    z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 3.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z**2, 0.5), obs=y)
"""


@pytest.mark.parametrize("objective", ["FAB(num_particles=8)", "ForwardKLOnDraws"])
def test_the_command_line_takes_them(objective, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(SQUARE)
    Path("own.csv").write_text("y\n3.9\n4.2\n4.0\n")
    run("train", "--model", "own.py:square", "--data", "own.csv", "--guide", "MeanField",
        "--objective", objective, "--num_epochs", 3, "--out", "made")  # fmt: skip
    assert Path("made", "config.yaml").read_text().count(objective) == 1
    refusal = refused(capsys, "train", "--objective", "FAB(num_temperatures=0)", "--out", "other")
    assert "num_temperatures" in refusal
    refusal = refused(capsys, "train", "--objective", "ForwardKLOnDraws(draws=a)", "--out", "other")
    assert "unknown option of ForwardKLOnDraws 'draws'" in refusal


def test_other_data_are_another_posterior():
    """An objective that is used again looks at them, and at as many data of their own."""
    objective, guide = ForwardKLOnDraws(DRAWS), At(Normal())
    losses = [objective.loss(shared, guide, data) for data in (Y, Y + 1)]
    log_p = [
        dist.Normal(0.0, 1.5).log_prob(z) + dist.Normal(z, 1.0).log_prob(data[:, None]).sum(0)
        for data in (Y, Y + 1)
        for z in [DRAWS["z"]]
    ]
    apart = (log_p[0] - log_p[1]).mean().item()
    assert losses[0] - losses[1] == pytest.approx(apart)


# Modes


def trained(objective, name="separated-modes", seed=0):
    problem = PROBLEMS[name]
    guide = Mixture.for_model(problem.model, (), num_components=4, standardize="prior")
    options = {"num_steps": 500, "lr": 0.02, "seed": seed, "progress": False}
    fit(problem.model, guide, (), objective=objective, **options)
    pyro.set_rng_seed(0)
    return problem, guide


@pytest.mark.long
def test_draws_of_smc_keep_the_modes_that_the_elbo_loses():
    """Shares within 0.1 of the exact ones, forward KL below 0.1; the ELBO's guide has one mode."""
    sampled = smc(PROBLEMS["separated-modes"].model, (), seed=1)
    problem, guide = trained(ForwardKLOnDraws(sampled))
    fresh = smc(problem.model, (), seed=2)
    seen = compare_to_reference(problem.model, guide, fresh, (), modes=problem.modes)
    assert (seen.modes.guide.shares - seen.modes.guide.exact).abs().max() < 0.1
    assert seen.forward_kl.item() < 0.1
    evidence = importance_weighted_evidence(problem.model, guide, ())
    assert evidence.not_reliable is None
    assert abs(evidence.mean - problem.log_evidence) < 5 * evidence.mc_se + 1e-3
    _, lost = trained(None)
    seen = compare_to_reference(problem.model, lost, fresh, (), modes=problem.modes)
    assert seen.modes.guide.shares.min() < 0.02
    assert seen.forward_kl.item() > 1
    assert importance_weighted_evidence(problem.model, lost, ()).not_reliable is not None


@pytest.mark.long
def test_fab_keeps_the_modes_without_any_draws():
    problem, guide = trained(FAB(64))
    seen = mode_coverage(problem.modes, guide_draws(problem.model, guide, (), 4000))
    assert (seen.shares - seen.exact).abs().max() < 0.15
    evidence = importance_weighted_evidence(problem.model, guide, ())
    assert abs(evidence.mean - problem.log_evidence) < 5 * evidence.mc_se + 1e-3


# What is refused


class Learned(Normal):
    def forward(self, x=None):
        raw = pyro.sample(
            "raw", dist.Normal(torch.zeros(()).double(), 1.0), infer={"is_auxiliary": True}
        )
        z = self.loc + self.log_scale.exp() * raw
        pyro.sample("z", dist.Delta(z, log_density=-self.log_scale))


def shared(y):
    z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.5))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def guide_of_shared(y):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(()).double()), 1.0))


DRAWS = {"z": torch.linspace(-1, 1, 50).double()}
Y = torch.linspace(-1, 1, 6).double()
QUICK = {"num_steps": 1, "progress": False}
BAD = {
    "per datum": (
        lambda: ForwardKLOnDraws(DRAWS).loss(per_datum, Normal(), X),
        "data share latents, got one with latents of each datum: use ForwardKL, or FAB",
    ),
    "learned map": (
        lambda: FAB(8).loss(bimodal, Learned()),
        "whose map is learned: train with an objective of the guide's own draws",
    ),
    "minibatch": (
        lambda: fit(shared, guide_of_shared, Y, objective=FAB(8), batch_size=3, **QUICK),
        "'y' is scaled: train on all data at once",
    ),
    "warm-up": (
        lambda: fit(
            shared, guide_of_shared, Y, objective=FAB(8), kl_warmup_epochs=3.0, num_epochs=5,
            progress=False,
        ),
        "'z' is scaled: .* without warm-ups or poutine.scale",
    ),
    "temperatures": (lambda: FAB(num_temperatures=0), "num_temperatures to be an integer .* got 0"),
    "steps": (lambda: FAB(num_leapfrog_steps=1.5), "num_leapfrog_steps to be an integer"),
    "one chain": (lambda: FAB(1), "at least 2 for FAB, got 1"),
    "no draws": (
        lambda: ForwardKLOnDraws({"w": DRAWS["z"]}).loss(bimodal, Normal()),
        "draws of every latent",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_advice_against_minibatches_is_right():
    history = fit(shared, guide_of_shared, Y, objective=FAB(8), batch_size=6, **QUICK)
    assert math.isfinite(history.train_loss[0])
