"""Annealing against exact evidence: unbiased weights both ways, and what would make them biased."""

import itertools
import json
import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoNormal

from evidence import guides
from evidence.guides import Delta, FullRank, MeanField
from evidence.inference import log_weights
from evidence.inference.annealing import schedule
from evidence.inference.annealing.pilot import NUM_WARMUP_STEPS, Pilot
from evidence.inference.annealing.run import AnnealingRun
from evidence.inference.estimation.annealed import anneal, annealed_evidence
from evidence.inference.paths import hmc
from evidence.inference.paths.guide_path import path_of
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.programs.estimators import iwae, iwae_curve
from evidence.inference.programs.unconstrained import Assignment
from evidence.inference.training.snapshots import Snapshot
from evidence.models import VAE, Autoencoder
from tests.conftest import make_oracle

# Few temperatures, few leapfrog steps: weights are noisy, and must be unbiased all the same.
ROUGH = {"num_leapfrog_steps": 3, "num_pilot_temperatures": 50, "chunk_size": 1_000_000}
LATENT_DIMS = {2: 2, 10: 3, 50: 5}
TEMPERATURES = {2: 3, 10: 15, 50: 50}


def mean_field_of(model):
    """The diagonal of the exact posterior, half as wide again."""
    guide = MeanField(model.latent_dim, model.data_dim, hidden_dims=()).double()
    zero = torch.zeros(1, model.data_dim, dtype=torch.float64)
    unit = torch.eye(model.data_dim, dtype=torch.float64)
    with torch.no_grad():
        at_zero = model.posterior(zero)
        last = guide.encoder[-1]
        last.weight.zero_()
        last.weight[: model.latent_dim] = (model.posterior(unit).loc - at_zero.loc).mT
        scale = 1.5 * at_zero.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        last.bias.copy_(torch.cat([at_zero.loc, scale.log()], -1)[0])
    return guide


def z_scores(ratios):
    """Of the mean of `[N, B]` that should be 1."""
    return (ratios.mean(0) - 1) / ratios.std(0) * math.sqrt(len(ratios))


def worst_of(log_w, exact):
    """Largest |z| of E[w] / p(x) = 1, one test per datum."""
    return z_scores((log_w - exact).exp()).abs().max().item()


def worst_forward(model, x, exact, **options):
    return worst_of(anneal(model, x, **ROUGH | {"num_chains": 20_000} | options).log_w, exact)


def oracle_forward(data_dim=10, *, from_guide=False, **options):
    model = make_oracle(data_dim, LATENT_DIMS[data_dim])
    x = model(None, size=2)
    guide = mean_field_of(model) if from_guide else None
    options = {"num_temperatures": TEMPERATURES[data_dim], "guide": guide} | options
    return worst_forward(model, x, model.log_evidence(x), **options)


@pytest.mark.parametrize("from_guide", [False, True], ids=["prior", "guide"])
@pytest.mark.parametrize("data_dim", [2, 10, 50])
def test_forward_weights_average_to_the_evidence(data_dim, from_guide):
    chains = 4000 if data_dim == 50 else 20_000
    assert oracle_forward(data_dim, from_guide=from_guide, num_chains=chains) < 5


def gamma_exponential(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(x.new_tensor(3.0), x.new_tensor(2.0)))
        pyro.sample("x", dist.Exponential(z), obs=x)


def gamma_exponential_evidence(x):
    """p(x) = ∫ Gamma(z; a, b) z exp(−zx) dz = a bᵃ / (b + x)ᵃ⁺¹."""
    return math.log(3) + 3 * math.log(2) - 4 * (2 + x).log()


def gamma_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.LogNormal(-x / 8, x.new_tensor(0.8)))


def gamma_forward(guide=None, num_temperatures=20):
    x = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    exact = gamma_exponential_evidence(x)
    options = {"num_temperatures": num_temperatures, "num_leapfrog_steps": 2}
    return worst_forward(gamma_exponential, x, exact, guide=guide, **options)


@pytest.mark.parametrize("guide", [None, gamma_guide])
def test_a_constrained_latent_has_its_closed_form_evidence(guide):
    assert gamma_forward(guide) < 5


def mixture(scale):
    logits, loc = torch.tensor([0.3, -0.4]).double(), torch.tensor([-2.0, 2.0]).double()
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale))


def test_a_mixture_for_a_prior_has_its_closed_form_evidence():
    """The twin's noise is a tenth wider."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", mixture(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)
    log_w = anneal(model, x, num_chains=20_000, num_temperatures=10, **ROUGH).log_w
    assert worst_of(log_w, mixture(math.hypot(0.5, 1.0)).log_prob(x)) < 5
    assert worst_of(log_w, mixture(math.hypot(0.5, 1.1)).log_prob(x)) > 5


def planted_adaptation(monkeypatch):
    """Each chain goes on tuning its step size while it is measured, hastily."""
    move = AnnealingRun._move

    def adapting(self, path, chains, t):
        frozen = chains.step_sizes
        own = getattr(chains, "own", frozen[0].expand(chains.log_w.shape).log())
        chains.step_sizes = own.exp().expand(len(frozen), *own.shape)
        acceptance = move(self, path, chains, t)
        chains.own = own + 4 * (acceptance - self.options.target_acceptance)
        chains.step_sizes = frozen
        return acceptance

    monkeypatch.setattr(AnnealingRun, "_move", adapting)


def planted_end(monkeypatch):
    """The schedule stops at β = 0.97."""
    plan = Pilot.plan

    def cut(self, options):
        found = plan(self, options)
        return found._replace(betas=0.97 * found.betas)

    monkeypatch.setattr(Pilot, "plan", cut)


def planted_shift(monkeypatch):
    """Weights take the next step's change of temperature."""
    increment = AnnealingRun._log_increment

    def shifted(self, path, chains, t):
        return increment(self, path, chains, min(t + 1, self.options.num_temperatures))

    monkeypatch.setattr(AnnealingRun, "_log_increment", shifted)


def planted_order(monkeypatch):
    """The weight's change and the move to the new temperature come in the other order."""
    advance = AnnealingRun._advance

    def swapped(self, stage, paths, chains, step):
        if stage == "pilot":
            return advance(self, stage, paths, chains, step)
        t = step + 1 if stage == "forward" else self.options.num_temperatures - step
        if stage == "reverse":
            chains.log_w += self._log_increment(paths[0], chains, t)
        self._move(paths, chains, t)
        if stage == "forward":
            chains.log_w += self._log_increment(paths[0], chains, t)
        return None

    monkeypatch.setattr(AnnealingRun, "_advance", swapped)


def planted_jacobian(monkeypatch):
    """Constrained latents move without the Jacobian of their transform."""
    assign = Assignment.assign

    def without_jacobian(self, site):
        assign(self, site)
        self.ladj.clear()

    monkeypatch.setattr(Assignment, "assign", without_jacobian)


@pytest.mark.parametrize("plant", [planted_adaptation, planted_end, planted_shift, planted_order])
def test_a_planted_error_biases_the_forward_weights(plant, monkeypatch):
    plant(monkeypatch)
    assert oracle_forward() > 5


@pytest.mark.parametrize(
    "plant", [planted_adaptation, planted_end, planted_shift, planted_order, planted_jacobian]
)
def test_a_planted_error_biases_the_weights_of_a_constrained_latent(plant, monkeypatch):
    plant(monkeypatch)
    assert gamma_forward() > 5


def test_blocks_of_the_same_weights_are_ordered():
    """Jensen, without any noise: the mean over blocks of log-means rises with their size."""
    model = make_oracle()
    result = anneal(model, model(None, size=20), num_temperatures=15, **ROUGH)
    curve = iwae_curve(result.log_w, [1, 2, 4, 8, 16])
    assert (curve.diff(dim=0) > 0).all()
    assert torch.equal(curve[-1], result.evidence.log_px)
    planted = curve.flip(0)
    assert not (planted.diff(dim=0) > 0).any()


def test_data_are_averaged_after_the_logarithm_not_before():
    """The planted estimate sums log-weights over the data first: still below, and far looser."""
    model = make_oracle()
    x = model(None, size=100)
    log_w = anneal(model, x, num_temperatures=6, **ROUGH).log_w
    exact = model.log_evidence(x).mean().item()
    ours, planted = iwae(log_w).mean().item(), iwae(log_w.sum(1, keepdim=True)).item() / len(x)
    assert exact - 0.1 < ours
    assert planted < exact - 0.1
    assert annealed_evidence(model, x, num_temperatures=6, **ROUGH).mean == ours


def test_the_record_says_what_it_is():
    model = make_oracle()
    x = model(None, size=40)
    result = anneal(model, x, num_temperatures=100, num_leapfrog_steps=5)
    evidence = result.evidence
    assert (evidence.estimator, evidence.num_particles, evidence.num_data) == ("ais", 16, 40)
    assert str(evidence).startswith("ais (S = 16): ")
    assert abs(evidence.mean - model.log_evidence(x).mean().item()) < 5 * evidence.mc_se + 0.02
    assert (result.acceptance - 0.8).abs().max() < 0.1
    assert (result.log_w.shape, result.latents["z"].shape) == ((16, 40), (16, 40, 3))


def test_the_chains_end_in_the_posterior():
    """Weighted draws have the posterior's mean, and not, the twin, that of the next datum."""
    model = make_oracle()
    x = model(None, size=4)
    result = anneal(model, x, num_chains=4000, num_temperatures=50, **ROUGH)
    weights = result.log_w.softmax(0).unsqueeze(-1)
    mean = (weights * result.latents["z"]).sum(0)

    def worst(expected):
        errors = (weights * (result.latents["z"] - expected)).square().sum(0).sqrt()
        return ((mean - expected) / errors).abs().max().item()

    assert worst(model.posterior(x).loc) < 5
    assert worst(model.posterior(x.roll(1, 0)).loc) > 5


def layered_model(x):
    """Two latents, one of them positive, one simplex-valued one, and pixels in their own plate."""
    with pyro.plate("rows", len(x), dim=-2):
        scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.0), 0.5))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            level = pyro.sample("level", dist.Normal(x.new_tensor(0.0), scale))
            pyro.sample("pixel", dist.Normal(level, 0.5), obs=x)
        pyro.sample("idle", dist.Dirichlet(x.new_tensor([1.0, 2.0, 3.0])))


def layered_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        scale = pyro.sample("scale", dist.LogNormal(x.new_tensor(0.1), 0.6))
        with pyro.plate("pixels", x.shape[1], dim=-1):
            pyro.sample("level", dist.Normal(0.5 * x, 0.8 * scale))
        pyro.sample("idle", dist.Dirichlet(x.new_tensor([1.0, 2.0, 2.0])))


def layered_evidence(x):
    """The pixels given the scale are normal; the scale by quadrature."""
    grid = torch.linspace(-5, 5, 4001, dtype=torch.float64)
    scale = (0.5 * grid).exp()
    pixels = dist.Normal(torch.zeros(()).double(), (scale**2 + 0.25).sqrt())
    log_p = pixels.log_prob(x.unsqueeze(-1)).sum(1) + dist.Normal(0.0, 1.0).log_prob(grid)
    return log_p.logsumexp(-1) + math.log(10 / 4000)


@pytest.mark.parametrize("guide", [None, layered_guide])
def test_plain_functions_with_layers_plates_and_supports(guide):
    """The twin's evidence is two nats away."""
    x = torch.tensor([[0.5, -1.0], [2.0, 1.0], [0.1, 0.3]], dtype=torch.float64)
    options = {"num_chains": 3000, "num_temperatures": 8, "guide": guide}
    log_w = anneal(layered_model, x, **ROUGH | options).log_w
    assert worst_of(log_w, layered_evidence(x)) < 5
    assert worst_of(log_w, layered_evidence(x) + 2) > 5


def test_latents_keep_their_names_shapes_and_supports():
    x = torch.randn(3, 2, dtype=torch.float64)
    latents = anneal(layered_model, x, num_temperatures=3, num_chains=4, **ROUGH).latents
    assert {n: t.shape for n, t in latents.items()} == {
        "scale": (4, 3),
        "level": (4, 3, 2),
        "idle": (4, 3, 3),
    }
    assert (latents["scale"] > 0).all()
    assert (latents["idle"].sum(-1) - 1).abs().max() < 1e-6


def positive_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(x.new_zeros(2), 0.5).to_event(1))
        w = pyro.sample("w", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.log() + w, 0.7).to_event(1), obs=x)


def positive_evidence(x):
    """log z + w + noise: one normal, with the covariance of w between its entries."""
    covariance = (0.25 + 0.49) * torch.eye(2).double() + torch.ones(2, 2).double()
    return dist.MultivariateNormal(torch.zeros(2).double(), covariance).log_prob(x)


def mapped_guide():
    return FullRank.for_model(positive_model, POSITIVE_X, hidden_dims=())


POSITIVE_X = torch.tensor([[0.5, -1.0], [1.0, 1.0]], dtype=torch.float64)


def auxiliary_guide(x):
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.LogNormal(x / 2, 0.6).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(u, event_dim=1))
        pyro.sample("w", dist.Normal(x[:, :1] / 3, 1.0).to_event(1))


def positive_forward(guide):
    exact = positive_evidence(POSITIVE_X)
    return worst_forward(positive_model, POSITIVE_X, exact, guide=guide, num_temperatures=10)


@pytest.mark.parametrize("make", [mapped_guide, lambda: auxiliary_guide])
def test_guides_that_make_latents_from_auxiliary_draws(make):
    assert positive_forward(make()) < 5


def test_a_planted_jacobian_of_an_auxiliary_draw_shows(monkeypatch):
    planted_jacobian(monkeypatch)
    assert positive_forward(auxiliary_guide) > 5


def test_a_guide_that_does_not_tell_its_support_gets_the_models():
    """Transforms may say that they reach everywhere; all draws stay positive."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(x.new_tensor([3.0]), 2.0).to_event(1))
            pyro.sample("x", dist.Exponential(z).to_event(1), obs=x)

    x = torch.tensor([[0.1], [1.0], [3.0]], dtype=torch.float64)
    inner = MeanField(1, 1, hidden_dims=()).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            exp = dist.transforms.ExpTransform()
            pyro.sample("z", dist.TransformedDistribution(inner.posterior(x), [exp]))

    assert path_of(model, guide, x).sample(100).min() < 0  # unconstrained
    exact = gamma_exponential_evidence(x[:, 0])
    assert worst_forward(model, x, exact, guide=guide, num_temperatures=20) < 5


def test_autoguides_of_pyro_work():
    """With few chains; the twin is of a quarter of the evidence."""
    guide = AutoNormal(positive_model, init_scale=0.7)
    guide(POSITIVE_X)
    guide.double()
    options = {"guide": guide, "num_temperatures": 6}
    options |= {"num_chains": 60, "num_pilot_temperatures": 5, "num_leapfrog_steps": 1}
    log_w = anneal(positive_model, POSITIVE_X, **ROUGH | options).log_w
    assert worst_of(log_w, positive_evidence(POSITIVE_X)) < 5
    assert worst_of(log_w, positive_evidence(POSITIVE_X) - math.log(4)) > 5


def constructed(name):
    kind = getattr(guides, name)
    return kind(3, 10, hidden_dims=()).double()


@pytest.mark.parametrize("name", ["MeanField", "FullRank", "Planar"])
def test_paths_have_the_gradients_of_their_terms(name):
    """Against central differences, from the guide and from the prior; the twin is of twice z."""
    model = make_oracle()
    x, guide = model(None, size=4), constructed(name)
    for start in (None, guide):
        with annealing_mode(model, start, 0, x.device):
            path = path_of(model, start, x)
            z = path.sample(5)
            state = hmc.init(z, path)
            direction, width = torch.randn_like(z), 1e-5
            terms = [torch.stack(path(z + sign * width * direction)) for sign in (1, -1)]
            expected = (terms[0] - terms[1]) / (2 * width)
            ours = (state.grads * direction).sum(-1)
            assert (ours - expected).abs().max() < 1e-5
            planted = (hmc.init(2 * z, path).grads * direction).sum(-1)
            assert (planted - expected).abs().max() > 1e-2


def test_the_cost_counts_every_evaluation_of_the_pilot_run_too():
    """Of seven data: one at the start of a run, two for each transition, and one at the end."""
    model = make_oracle()
    options = {k: v for k, v in RESUMED.items() if k != "seed"}
    annealed = anneal(model, model(None, size=7), metric="unit", **options)
    pilot, measured = 1 + 2 * (NUM_WARMUP_STEPS + 4), 1 + 2 * 9 + 1
    assert annealed.evidence.num_evaluations == 7 * 4 * (pilot + measured)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def through_a_file(snapshot):
    meta = json.loads(json.dumps(snapshot.meta))
    return Snapshot({n: t.clone() for n, t in snapshot.tensors.items()}, meta)


RESUMED = {"num_chains": 4, "num_temperatures": 9, "num_pilot_temperatures": 4, "chunk_size": 12}
RESUMED |= {"num_leapfrog_steps": 2, "seed": 3}


@pytest.mark.parametrize("from_guide", [False, True])
def test_a_resumed_run_is_the_run_bit_for_bit(from_guide):
    """From every seventh step of three blocks of data, pilot runs included, and from the end."""
    model = make_oracle()
    guide = mean_field_of(model) if from_guide else None
    x, snapshots = model(None, size=7), []
    whole = anneal(model, x, guide=guide, on_snapshot=snapshots.append, snapshot_every=7, **RESUMED)
    assert len(snapshots) > 12
    assert {s.meta["position"]["block"] for s in snapshots} == {0, 1, 2, 3}
    for snapshot in snapshots[::5] + snapshots[-1:]:
        torch.randn(5)
        resumed = anneal(model, x, guide=guide, resume_from=through_a_file(snapshot), **RESUMED)
        assert torch.equal(resumed.log_w, whole.log_w)
        assert torch.equal(resumed.acceptance, whole.acceptance)
        assert equal(resumed.latents, whole.latents)
        assert resumed.num_evaluations == whole.num_evaluations
    # The twin: one bit of one position.
    tampered = through_a_file(snapshots[3])
    tampered.tensors["state.z"][0, 0, 0] += 1e-9
    resumed = anneal(model, x, guide=guide, resume_from=tampered, **RESUMED)
    assert not torch.equal(resumed.log_w, whole.log_w)


def test_a_snapshot_of_another_run_is_refused():
    model, snapshots = make_oracle(), []
    x = model(None, size=3)
    anneal(model, x, on_snapshot=snapshots.append, snapshot_every=20, **RESUMED)
    with pytest.raises(ValueError, match=r"num_chains 5 \(was 4\)"):
        anneal(model, x, resume_from=snapshots[0], **RESUMED | {"num_chains": 5})
    with pytest.raises(ValueError, match="another model, guide or batch"):
        anneal(model, x + 1, resume_from=snapshots[0], **RESUMED)
    with pytest.raises(ValueError, match="another model or guide"):
        anneal(make_oracle(10, 2), x, resume_from=snapshots[0], **RESUMED)


def test_the_seed_decides_and_nothing_outside_is_touched():
    model = make_oracle()
    model.requires_grad_(True).train()
    x = model(None, size=3)
    names = set(pyro.get_param_store())
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = anneal(model, x, **RESUMED).log_w
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert set(pyro.get_param_store()) == names
    pyro.set_rng_seed(99)
    assert torch.equal(anneal(model, x, **RESUMED).log_w, first)
    assert not torch.equal(anneal(model, x, **RESUMED | {"seed": 4}).log_w, first)


def test_the_pilot_run_is_made_of_other_random_numbers(monkeypatch):
    """Given the step sizes, the measured run does not depend on what the pilot run drew."""
    starts = []
    start = AnnealingRun._start

    def recording(self, stage, path, before):
        chains = start(self, stage, path, before)
        starts.append(chains.state.z)
        return chains

    monkeypatch.setattr(AnnealingRun, "_start", recording)
    model = make_oracle()
    anneal(model, model(None, size=3), **RESUMED)
    pilot, measured = starts
    assert not torch.isin(measured, pilot).any()


@pytest.mark.parametrize("spread", [0.0, 0.1, 1e6])
def test_temperatures_rise_from_0_to_1(spread):
    """Whatever the pilot run found, a standstill included."""
    for num_pilot, num_temperatures in itertools.product((1, 2, 200), (1, 2, 999)):
        found = torch.cat([torch.zeros(1).double(), schedule.pilot_betas(num_pilot, spread)])
        spreads = torch.rand(num_pilot + 1).double() * (spread > 0)
        places = schedule.equidistant(found, spreads, num_temperatures)
        betas = schedule.at_places(found, places).tolist()
        assert (len(betas), betas[0], betas[-1]) == (num_temperatures + 1, 0.0, 1.0)
        assert all(a < b for a, b in itertools.pairwise(betas))


def test_temperatures_are_equidistant_in_standard_deviations():
    """For sd = 1/(0.01 + β), whose integral is log(0.01 + β); evenly spaced ones are not."""
    found = torch.cat([torch.zeros(1).double(), schedule.pilot_betas(1000, 100.0)])
    places = schedule.equidistant(found, 1 / (0.01 + found), 50)
    betas = schedule.at_places(found, places)
    lengths = (0.01 + betas).log().diff()
    assert lengths.max() < 1.7 * lengths.min()
    planted = (0.01 + torch.linspace(0, 1, 51)).log().diff()
    assert planted.max() > 10 * planted.min()


def test_weights_of_zero_stay_zero():
    """A likelihood that most of the prior cannot explain."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0))
            bound = torch.where(z > 1, 0.0, -math.inf)
            pyro.factor("bound", bound)
            pyro.sample("x", dist.Normal(z, 10.0), obs=x)

    x = torch.zeros(2, dtype=torch.float64)
    log_w = anneal(model, x, num_temperatures=5, num_chains=50, **ROUGH).log_w
    assert not log_w.isnan().any()
    assert (log_w == -math.inf).any()


def discrete(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(k.unsqueeze(-1) + x.new_zeros(10), 1.0).to_event(1), obs=x)


def unscorable(x):
    with pyro.plate("data", len(x)):
        flow = dist.transforms.Planar(3)
        base = dist.Normal(x.new_zeros(3), 1.0).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))


def model_of_z(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        pyro.sample(
            "x", dist.Normal(z.sum(-1, keepdim=True) + x.new_zeros(10), 1.0).to_event(1), obs=x
        )


X = torch.zeros(4, 10)
BAD = {
    "no chains": (lambda: anneal(VAE(10, 3), X, num_chains=0), "num_chains of at least 1"),
    "no steps": (
        lambda: anneal(VAE(10, 3), X, num_leapfrog_steps=0),
        "num_leapfrog_steps of at least 1",
    ),
    "no chunk": (lambda: anneal(VAE(10, 3), X, chunk_size=0), "chunk_size of at least 1"),
    "acceptance": (
        lambda: annealed_evidence(VAE(10, 3), X, target_acceptance=1.0),
        "target_acceptance between 0 and 1, got 1.0",
    ),
    "late grey pixel": (
        lambda: anneal(VAE(10, 3), torch.cat([X, X + 0.5]), chunk_size=16),
        "binarize the data first",
    ),
    "flat prior": (lambda: anneal(Autoencoder(10, 3), X), "cannot be drawn from"),
    "discrete": (lambda: anneal(discrete, X), r"'k' is discrete \(Bernoulli\)"),
    "no latent": (lambda: anneal(lambda x: {"x": x}, X), "latent sites, got none"),
    "point mass": (
        lambda: anneal(VAE(10, 3), X, guide=Delta(3, 10)),
        "point mass",
    ),
    "automatic point mass": (
        lambda: anneal(model_of_z, X, guide=AutoDelta(model_of_z)),
        "point mass",
    ),
    "unscorable guide": (lambda: anneal(model_of_z, X, guide=unscorable), "cannot score latents"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_float32_agrees_with_importance_weighting_on_a_small_vae():
    """Two estimators of the same evidence; half a nat of difference, the twin, is found."""
    model = VAE(20, 2, hidden_dims=(8,)).requires_grad_(False)
    x = model(None, size=20)

    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", model.prior())

    reference = iwae(log_weights(model, prior, x, 20_000)).double()
    evidence = annealed_evidence(model, x, num_temperatures=100, num_leapfrog_steps=5)
    difference = evidence.mean - reference.mean().item()
    assert abs(difference) < 5 * evidence.mc_se + 0.01
    assert abs(difference + 0.5) > 5 * evidence.mc_se + 0.01
