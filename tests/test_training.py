"""`fit`: what it trains, what it leaves alone, where it stops, and how it goes on."""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn
from torch.distributions import kl_divergence

from evidence.guides import Delta, FullRank, MeanField, Planar
from evidence.inference import NonFiniteLossError, fit, log_weights
from evidence.inference.programs import precision
from evidence.inference.programs.data import as_data, tensors_in
from evidence.inference.programs.parameters import trainable_parameters
from evidence.inference.programs.random_state import isolated_rng, rng_state, set_rng_state
from evidence.inference.training.data import TrainingData
from evidence.inference.training.optimizer import JointOptim
from evidence.inference.training.tempering import TemperLatents
from evidence.models import VAE, Autoencoder, LinearGaussian
from tests.conftest import make_oracle

# Two patterns and 5% of flipped pixels.
X = (torch.arange(60).unsqueeze(1) + torch.arange(12) // 6) % 2.0
X = (X - (torch.rand(60, 12, generator=torch.Generator().manual_seed(0)) < 0.05).float()).abs()


def pair(kind=MeanField, **options):
    pyro.set_rng_seed(1)
    return VAE(12, 2, hidden_dims=(16,), **options), kind(2, 12, hidden_dims=(16,))


def quick(model, guide, x=X, **options):
    defaults = {"num_epochs": 3, "batch_size": 16, "lr": 0.01, "progress": False}
    return fit(model, guide, x, **(defaults | options))


def weights_of(*modules):
    return torch.cat([p.detach().flatten() for m in modules for p in m.parameters()])


@pytest.mark.parametrize("kind", [Delta, MeanField, FullRank, Planar])
def test_training_improves_every_guide(kind):
    history = quick(*pair(kind), x_test=X[:20], num_epochs=30)
    assert history.train_loss[-1] < history.train_loss[0] - 0.5
    last = history.epochs[-1]
    assert last.test_loss == pytest.approx(last.kl - last.reconstruction)
    assert (last.epoch, last.num_steps, last.beta) == (30, 4, 1.0)


def test_autoencoder_is_trained_by_the_same_fit():
    pyro.set_rng_seed(1)
    model, guide = Autoencoder(12, 4, hidden_dims=(16,)), Delta(4, 12, hidden_dims=(16,))
    history = quick(model, guide, num_epochs=40)
    with torch.no_grad():
        squared_error = (X - model.decoder(guide(X))).pow(2).sum(-1).mean()
    expected = 0.5 * squared_error + 6 * math.log(2 * math.pi)
    assert history.train_loss[-1] == pytest.approx(expected.item(), abs=0.1)


def test_same_seed_same_bits_and_another_seed_others():
    def run(seed):
        model, guide = pair()
        quick(model, guide, seed=seed, transform=torch.bernoulli)
        return weights_of(model, guide)

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_test_data_and_random_state_outside_do_not_touch_training():
    def run(draws, **options):
        model, guide = pair()
        torch.rand(draws)
        quick(model, guide, **options)
        return weights_of(model, guide)

    assert torch.equal(run(0), run(7, x_test=X[:10]))


def test_the_random_state_outside_is_as_it_was():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    model, guide = VAE(12), MeanField(6, 12)
    torch.set_rng_state(before)
    quick(model, guide, x_test=X)
    assert torch.equal(torch.get_rng_state(), before)


def test_two_fits_in_one_process_share_nothing():
    def alone():
        model, guide = pair()
        quick(model, guide)
        return weights_of(model, guide)

    first_model, first_guide = pair()
    quick(first_model, first_guide)
    first = weights_of(first_model, first_guide)
    second_model, second_guide = pair()
    quick(second_model, second_guide)
    assert torch.equal(weights_of(first_model, first_guide), first)
    assert torch.equal(weights_of(second_model, second_guide), alone())


def test_autoguides_of_one_class_share_nothing_either():
    """Pyro gives every AutoNormal the same parameter names."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)

    low, high = torch.full((8, 2), -3.0), torch.full((8, 2), 3.0)
    guides = [AutoNormal(model), AutoNormal(model)]
    for guide, x in zip(guides, (low, high), strict=True):
        quick(model, guide, x, batch_size=8, num_epochs=300, lr=0.05)
    means = []
    for guide, x in zip(guides, (low, high), strict=True):
        log_weights(model, guide, x)
        means.append(guide.locs.z.mean().item())
    assert means == pytest.approx([-2.4, 2.4], abs=0.2)  # 3 / (1 + 0.5²)


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(x):
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def test_plain_functions_are_fitted_and_keep_their_parameters():
    x = math.sqrt(2) * torch.randn(500)
    quick(normal_model, normal_guide, x, num_epochs=20, lr=0.02, lr_decay=0.9)
    store = pyro.get_param_store()
    assert store["slope"].item() == pytest.approx(0.5, abs=0.02)
    assert store["scale"].item() == pytest.approx(math.sqrt(0.5), abs=0.03)
    exact = dist.Normal(0.0, math.sqrt(2)).log_prob(x)
    assert (log_weights(normal_model, normal_guide, x) - exact).abs().mean() < 0.1


@pytest.mark.parametrize(
    "wrap",
    [lambda m: lambda x: m(x), config_enumerate, lambda m: poutine.mask(m, torch.tensor(True))],
)
def test_wrapped_models_are_trained_too(wrap):
    model, guide = pair()
    before = weights_of(model)
    quick(wrap(model), guide)
    assert not torch.equal(weights_of(model), before)


def test_tied_parameters_are_updated_once():
    model, guide = pair()
    guide.encoder[-1].bias = nn.Parameter(torch.zeros(4))
    model.tied = guide.encoder[-1].bias
    names = [n for n in trainable_parameters(model, guide) if "tied" in n or n.endswith("2.bias")]
    assert sorted(names) == ["model.decoder.2.bias", "model.tied"]


def tutorial_pair():
    pyro.set_rng_seed(1)
    encoder, decoder = nn.Linear(12, 4), nn.Linear(2, 12)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide, encoder, decoder


def test_functions_with_modules_inside_resume_bit_identically():
    model, guide, *whole = tutorial_pair()
    quick(model, guide)
    snapshots = []
    model, guide, *_ = tutorial_pair()
    quick(model, guide, snapshot_every=5, on_snapshot=snapshots.append)
    model, guide, *resumed = tutorial_pair()
    with torch.no_grad():
        resumed[0].weight.zero_()
    quick(model, guide, resume_from=snapshots[0])
    assert torch.equal(weights_of(*resumed), weights_of(*whole))


def test_local_parameters_of_an_autoguide_meet_their_own_data():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    x, guide = torch.randn(40), AutoNormal(model)
    quick(model, guide, x, batch_size=40, num_epochs=400, lr=0.03, lr_decay=0.99)
    assert (guide.locs.z - x / 1.25).abs().max() < 0.15


def test_what_functions_learned_survives_an_interruption():
    calls = []

    def interrupt(x):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return x

    with pytest.raises(KeyboardInterrupt):
        quick(normal_model, normal_guide, torch.randn(100), num_epochs=20, transform=interrupt)
    assert pyro.get_param_store()["slope"].item() > 0.1


def test_a_warm_start_goes_on_from_the_stored_parameters():
    x = math.sqrt(2) * torch.randn(200)
    first = quick(normal_model, normal_guide, x, num_epochs=20, lr=0.02)
    second = quick(normal_model, normal_guide, x, num_epochs=1, lr=1e-9, warm_start=True)
    assert second.train_loss[0] == pytest.approx(first.train_loss[-1], abs=0.1)
    assert first.train_loss[0] - second.train_loss[0] > 0.15


def test_functions_without_their_parameters_are_not_evaluated_as_if_trained():
    x = torch.randn(50)
    quick(normal_model, normal_guide, x)
    pyro.clear_param_store()
    with pytest.raises(ValueError, match=r"\['scale', 'slope'\] are not in Pyro's store: fit"):
        log_weights(normal_model, normal_guide, x)
    normal_guide(x)
    assert log_weights(normal_model, normal_guide, x).shape == (1, 50)


def test_a_second_fit_never_takes_over_parameters_of_functions():
    x = torch.randn(50)
    quick(normal_model, normal_guide, x)
    trained = pyro.get_param_store()["slope"].item()
    with pytest.raises(ValueError, match=r"\['scale', 'slope'\] are in Pyro's store already"):
        quick(normal_model, normal_guide, x)
    assert pyro.get_param_store()["slope"].item() == trained
    pyro.clear_param_store()
    quick(normal_model, normal_guide, x)


@pytest.mark.parametrize(
    "objective",
    [
        Trace_ELBO(num_particles=3),
        Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        TraceMeanField_ELBO(),
        RenyiELBO(alpha=0.5, num_particles=2),
    ],
    ids=lambda kind: f"{type(kind).__name__}-{kind.num_particles}",
)
def test_any_elbo_of_pyro_trains(objective):
    model, guide = pair()
    before = weights_of(model, guide)
    history = quick(model, guide, objective=objective, num_epochs=10)
    assert history.train_loss[-1] < history.train_loss[0]
    assert not torch.equal(weights_of(model, guide), before)


def test_pyros_own_svi_trains_the_suites_classes_too():
    model, guide = pair()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    losses = [svi.step(X) for _ in range(100)]
    assert sum(losses[-10:]) < sum(losses[:10])
    assert len(list(pyro.get_param_store().keys())) == len(
        [*model.parameters(), *guide.parameters()]
    )


def test_a_step_is_adam_on_the_mean_loss():
    """One step of `fit` against one by hand, in float64."""
    model, guide = (module.double() for module in pair())
    other_model, other_guide = (module.double() for module in pair())
    x = X.double()
    quick(model, guide, x, num_epochs=1, batch_size=len(x), objective=TraceMeanField_ELBO())
    pyro.set_rng_seed(0)
    guide_draw = other_guide.posterior(x)
    torch.randn(len(x), 2, dtype=torch.float64)  # the first, unused run draws too
    z = guide_draw.rsample()
    kl = kl_divergence(guide_draw, other_model.prior().expand([len(x)]))
    loss = (kl - other_model.likelihood(z).log_prob(x)).mean()
    adam = torch.optim.Adam([*other_model.parameters(), *other_guide.parameters()], lr=0.01)
    loss.backward()
    adam.step()
    difference = weights_of(model, guide) - weights_of(other_model, other_guide)
    assert difference.abs().max() < 1e-9


LAYOUTS = [
    lambda x: x,
    torch.t,
    lambda x: x[:, ::2],
    lambda x: x.view(6, 2, 2, 5).to(memory_format=torch.channels_last),
]


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_data_at_once_are_laid_out_as_a_minibatch_is(several, layout):
    """For sums depend on the layout, in their last bits; and they are nobody else's memory."""
    rows = layout(torch.randn(12, 10))
    x_train = as_data((rows, torch.arange(len(rows)))) if several else rows
    data = TrainingData(x_train, None, None, None)
    (batch,) = data.batches(len(rows), seed=0, start=0)
    assert list(data.batches(len(rows), seed=0, start=1)) == []
    for given, all_of_it in zip(tensors_in(x_train), tensors_in(batch), strict=True):
        expected = given[torch.arange(len(rows))]
        assert torch.equal(all_of_it, expected)
        assert all_of_it.stride() == expected.stride()
        assert all_of_it.data_ptr() != given.data_ptr()


def test_frozen_models_stay_as_they_are():
    model, guide = pair()
    model.requires_grad_(False)
    before = weights_of(model), weights_of(guide)
    quick(model, guide)
    assert torch.equal(weights_of(model), before[0])
    assert not torch.equal(weights_of(guide), before[1])
    with pytest.raises(ValueError, match="nothing to fit"):
        quick(model, guide.requires_grad_(False))


def test_the_temperature_weighs_the_kl_term_alone():
    model = make_oracle()
    guide = MeanField(3, 10, hidden_dims=()).double()
    x = model(None, size=2000)
    elbo = TraceMeanField_ELBO()

    def loss(beta):
        pyro.set_rng_seed(4)
        with TemperLatents(beta):
            return elbo.loss(model, guide, x) / len(x)

    kl = loss(1.0) - loss(1e-12)
    prior = model.prior().expand([len(x)])
    exact = kl_divergence(guide.posterior(x), prior).mean().item()
    assert kl == pytest.approx(exact, rel=1e-9)
    assert loss(0.25) == pytest.approx(loss(1e-12) + 0.25 * exact, rel=1e-9)


def test_the_temperature_reaches_training():
    """With next to no KL term the posterior goes its own way; the loss is reconstruction."""
    losses = {}
    for warmup in (0, 1e9):
        model, guide = pair()
        history = quick(model, guide, num_epochs=30, kl_warmup_epochs=warmup, x_test=X)
        losses[warmup] = history.epochs[-1]
    assert losses[1e9].kl > 2 * losses[0].kl
    assert losses[1e9].train_loss == pytest.approx(-losses[1e9].reconstruction, abs=0.5)


def test_likelihood_warm_up_reaches_training():
    """With next to no likelihood the posterior is the prior; after the warm-up it is not."""
    kls = {}
    for warmup in (0, 1e9):
        model, guide = pair()
        history = quick(model, guide, num_epochs=30, likelihood_warmup_epochs=warmup, x_test=X)
        kls[warmup] = history.epochs[-1].kl
    assert kls[1e9] < 0.1 * kls[0]


def test_kl_warm_up_rises_to_one():
    history = quick(*pair(), num_epochs=5, kl_warmup_epochs=3)
    betas = [record.beta for record in history.epochs]
    assert betas[:2] == pytest.approx([5 / 12, 9 / 12])
    assert betas[2:] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("clip_norm", "expected"), [(5.0, [3.0, 4.0]), (None, [30.0, 40.0])])
def test_clipping_limits_the_joint_norm(clip_norm, expected, monkeypatch):
    parameters = {name: torch.zeros(1, requires_grad=True) for name in ("first", "second")}
    optim = JointOptim(parameters, lr=0.1, clip_norm=clip_norm)
    for parameter, gradient in zip(parameters.values(), (30.0, 40.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    seen = []
    monkeypatch.setattr(
        optim.optimizer, "step", lambda: seen.extend(p.grad.item() for p in parameters.values())
    )
    optim()
    assert seen == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("lr", [1e4, 1e30])
def test_a_loss_that_is_not_finite_stops_before_the_update(lr):
    model, guide = pair(likelihood="gaussian")
    seen = []
    options = {"snapshot_every": 1, "on_snapshot": lambda _: seen.append(weights_of(model, guide))}
    with pytest.raises(NonFiniteLossError, match=r"epoch \d+, step \d+ of 4.*Likely cause"):
        quick(model, guide, lr=lr, **options)
    assert seen
    assert torch.equal(weights_of(model, guide), seen[-1])


def test_a_loss_of_several_tensors_that_is_not_finite_stops_with_its_cause():
    class Regression(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.0))

        def forward(self, x, covariate):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z + self.slope * covariate, 1.0), obs=x)

    def guide(x, covariate):
        normal_guide(x)

    data = torch.randn(20), torch.linspace(1.0, 2.0, 20)
    with pytest.raises(NonFiniteLossError, match="Likely cause"):
        fit(Regression(), guide, data, num_epochs=5, lr=1e30, progress=False)


def test_the_stop_names_data_that_the_transform_ruined():
    with pytest.raises(NonFiniteLossError, match="transform makes NaN"):
        quick(*pair(likelihood="gaussian"), transform=_poison_after_the_first())


def _poison_after_the_first():
    calls = []

    def transform(x):
        calls.append(1)
        return x * math.nan if len(calls) > 3 else x

    return transform


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_gradients_that_are_not_finite_stop_before_the_update(clip_norm):
    class Cliff(nn.Module):
        def __init__(self):
            super().__init__()
            self.height = nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.height.abs().sqrt(), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model = Cliff()
    with pytest.raises(NonFiniteLossError, match=r"gradient norm is (nan|inf)"):
        quick(model, normal_guide, torch.randn(20), clip_norm=clip_norm)
    assert model.height.item() == 0.0


def test_matrix_products_are_as_exact_as_before_and_the_setting_is_restored():
    assert torch.get_float32_matmul_precision() == "highest"
    with precision.fast_matmul(torch.device("cpu")):
        a, b = torch.randn(2, 300, 300)
        error = ((a @ b).double() - a.double() @ b.double()).abs().max()
        assert error < 1e-4  # bfloat16 would be off by 0.1
    bfloat16 = (a.bfloat16() @ b.bfloat16()).double() - a.double() @ b.double()
    assert bfloat16.abs().max() > 1e-2
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("precision_name", ["medium", "highest"])
def test_the_error_is_that_of_float32_whatever_the_default_type_is(precision_name):
    """Else a process that computed in double would choose otherwise, and find other bits."""
    before = precision.matmul_error(precision_name)
    torch.set_default_dtype(torch.float64)
    assert precision.matmul_error(precision_name) == before > 1e-8


@pytest.mark.parametrize(("error", "chosen"), [(5e-7, "medium"), (4e-3, "highest")])
def test_an_inexact_product_is_not_chosen(error, chosen, monkeypatch):
    """As on a CPU whose oneDNN rounds to bfloat16."""
    errors = {"highest": 4e-7, "medium": error}
    monkeypatch.setattr(precision, "matmul_error", errors.__getitem__)
    precision.medium_is_exact.cache_clear()
    with precision.fast_matmul(torch.device("cpu")):
        assert torch.get_float32_matmul_precision() == chosen
    with precision.fast_matmul(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest"
    precision.medium_is_exact.cache_clear()


def test_the_default_product_can_be_asked_for_and_the_log_says_which_is_used(monkeypatch, caplog):
    caplog.set_level("INFO", logger="evidence")
    monkeypatch.setattr(precision, "matmul_error", {"highest": 4e-7, "medium": 5e-7}.get)
    for switch, said in (("default", "as EVIDENCE_MATMUL says"), ("", "products: oneDNN's")):
        monkeypatch.setenv("EVIDENCE_MATMUL", switch)
        precision.medium_is_exact.cache_clear()
        assert precision.medium_is_exact() == (switch == "")
        assert said in caplog.text
    precision.medium_is_exact.cache_clear()


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 6, 11])
@pytest.mark.parametrize("kind", [MeanField, Planar])
def test_a_resumed_run_is_bit_identical(kind, stop_at):
    """Interrupted after any step, within and between epochs, and gone on with by fresh objects."""
    options = {"num_epochs": 3, "transform": torch.bernoulli, "x_test": X[:9], "lr_decay": 0.9}
    options |= {"kl_warmup_epochs": 2, "clip_norm": 3.0, "snapshot_every": 1}
    grey = torch.rand(60, 12, generator=torch.Generator().manual_seed(1))
    model, guide = pair(kind)
    whole = quick(model, guide, grey, **options)
    snapshots = []

    def interrupt(snapshot):
        snapshots.append(snapshot)
        if len(snapshots) == stop_at:
            raise Stop

    with pytest.raises(Stop):
        quick(*pair(kind), grey, on_snapshot=interrupt, **options)
    pyro.set_rng_seed(99)
    fresh_model, fresh_guide = VAE(12, 2, hidden_dims=(16,)), kind(2, 12, hidden_dims=(16,))
    history = quick(fresh_model, fresh_guide, grey, resume_from=snapshots[-1], **options)
    assert torch.equal(weights_of(fresh_model, fresh_guide), weights_of(model, guide))
    assert history.train_loss == whole.train_loss
    assert history.test_loss == whole.test_loss


def test_the_random_state_comes_back_with_its_cached_draws():
    random.gauss(0, 1)
    np.random.standard_normal()
    state = rng_state()

    def draws():
        return [random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(()).item()]

    first = draws()
    assert draws() != first
    set_rng_state(state)
    assert draws() == first


def test_what_is_drawn_apart_leaves_the_random_state_with_its_cached_draws():
    def draws():
        return [random.gauss(0, 1), random.random(), np.random.randn(), torch.rand(()).item()]

    state = rng_state()
    expected = draws() + draws()
    set_rng_state(state)
    first = draws()
    with isolated_rng(3):
        inside = draws()
    assert first + draws() == expected
    pyro.set_rng_seed(3)
    assert draws() == inside


def test_a_resumption_without_the_random_state_is_not_identical():
    """The twin of the test above: what it compares does depend on the random state."""
    model, guide = pair()
    quick(model, guide)
    snapshots = []
    quick(*pair(), snapshot_every=5, on_snapshot=snapshots.append)
    other = snapshots[0].tensors["rng.torch"].clone()
    torch.manual_seed(123)
    other.copy_(torch.get_rng_state())
    snapshots[0].tensors["rng.torch"] = other
    resumed = pair()
    quick(*resumed, resume_from=snapshots[0])
    assert not torch.equal(weights_of(*resumed), weights_of(model, guide))


def test_snapshots_of_another_run_are_refused():
    snapshots = []
    quick(*pair(), on_snapshot=snapshots.append)
    for options, message in (
        ({"lr": 0.5}, r"lr 0\.5 \(was 0\.01\)"),
        ({"seed": 4}, r"seed 4 \(was 0\)"),
        ({"x": X[:30]}, r"num_data 30 \(was 60\)"),
    ):
        with pytest.raises(ValueError, match=message):
            quick(*pair(), resume_from=snapshots[-1], **options)
    wider = VAE(12, 2, hidden_dims=(17,)), MeanField(2, 12, hidden_dims=(17,))
    with pytest.raises(ValueError, match="another model or guide"):
        quick(*wider, resume_from=snapshots[-1])


def test_more_epochs_go_on_from_where_fewer_ended():
    snapshots = []
    quick(*pair(), num_epochs=2, on_snapshot=snapshots.append)
    resumed, whole = pair(), pair()
    history = quick(*resumed, num_epochs=4, resume_from=snapshots[-1])
    quick(*whole, num_epochs=4)
    assert torch.equal(weights_of(*resumed), weights_of(*whole))
    assert [record.epoch for record in history.epochs] == [1, 2, 3, 4]


def test_a_writer_gets_every_epoch():
    class Writer:
        def __init__(self):
            self.seen = {}

        def add_scalar(self, tag, scalar_value, global_step):
            self.seen[tag, global_step] = scalar_value

    writer = Writer()
    history = quick(*pair(), writer=writer, x_test=X)
    assert writer.seen["test_loss", 3] == history.test_loss[-1]
    assert writer.seen["train_loss", 1] == history.train_loss[0]


def test_the_progress_bar_speaks_of_nats_per_datum(capsys):
    quick(*pair(), progress=True)
    assert "nats per datum" in capsys.readouterr().err


def test_plain_modules_that_pyro_cannot_see_are_named():
    """RenyiELBO finds parameters through Pyro alone."""

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor(0.1))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.slope * x, 1.0))

    with pytest.raises(ValueError, match=r"announce the parameters.*pyro\.module"):
        quick(normal_model, Plain(), torch.randn(20), objective=RenyiELBO())
    guide = PyroModule[Plain]()
    quick(normal_model, guide, torch.randn(20), objective=RenyiELBO())
    assert guide.slope.item() != pytest.approx(0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, "num_epochs of at least 1, got 0"),
        ({"batch_size": -1}, "batch_size of at least 1"),
        ({"lr": 0.0}, "finite lr > 0"),
        ({"lr": math.nan}, "finite lr > 0"),
        ({"kl_warmup_epochs": -1}, "kl_warmup_epochs >= 0"),
        ({"likelihood_warmup_epochs": -1}, "likelihood_warmup_epochs >= 0"),
        ({"clip_norm": 0.0}, "clip_norm > 0 or None"),
        ({"clip_norm": math.nan}, "finite clip_norm > 0 or None, got nan"),
        ({"clip_norm": math.inf}, "finite clip_norm > 0 or None, got inf"),
        ({"kl_warmup_epochs": math.inf}, "finite kl_warmup_epochs >= 0, got inf"),
        ({"kl_warmup_epochs": math.nan}, "finite kl_warmup_epochs >= 0, got nan"),
        ({"likelihood_warmup_epochs": math.nan}, "finite likelihood_warmup_epochs >= 0, got nan"),
        ({"lr_decay": 1e200}, r"factor lr_decay > 0 of at most 1, got 1e\+200"),
        ({"lr_decay": math.nan}, "factor lr_decay > 0 of at most 1, got nan"),
        ({"x": X * math.nan}, "x_train has NaN or infinite values in 60 of 60 data"),
        ({"x": X + 0.5}, r"Bernoulli expects values 0 and 1, got values such as"),
        ({"x": X.reshape(60, 3, 4)}, r"expected x of shape \(B, 12\), got \(16, 3, 4\)"),
        ({"x_test": X * math.inf}, "x_test has NaN"),
        ({"x_test": X + 0.5, "transform": torch.bernoulli}, "Bernoulli expects values 0 and 1"),
        ({"x": torch.cat([X, X + 0.25])}, r"got values such as 0\.25"),
        ({"snapshot_every": 0}, "snapshot_every of at least 1"),
    ],
)
def test_bad_input_is_named_and_changes_nothing(options, message):
    model, guide = pair()
    before = weights_of(model, guide)
    with pytest.raises(ValueError, match=message):
        quick(model, guide, **options)
    assert torch.equal(weights_of(model, guide), before)


def test_data_that_remember_the_parameters_that_made_them_are_data():
    """`model(None, size=n)` outside of `torch.no_grad` returns a tensor with a history."""
    model = LinearGaussian(6, 2)
    x = model(None, size=20)
    assert x.requires_grad
    fit(model, FullRank(2, 6, hidden_dims=()), x, num_epochs=2, progress=False)
