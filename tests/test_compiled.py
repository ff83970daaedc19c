"""Compiled objectives and weights beside the objectives and the pairs themselves.

Most run the recorded graph as it is: what Inductor makes of it costs tens of seconds to compile.
"""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from evidence import guides, inference
from evidence.inference import Compiled, fit, log_weights
from evidence.inference.compilation.functions import CompiledFunction
from evidence.inference.compilation.recording import NotRecordableError
from evidence.inference.programs.compiled_terms import CompiledTerms
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.models import VAE, HierarchicalVAE, LinearGaussian

block = poutine.block  # of all messages

OBJECTIVES = {
    "Trace_ELBO": lambda: Trace_ELBO(),
    "Trace_ELBO of 3": lambda: Trace_ELBO(num_particles=3),
    "vectorized": lambda: Trace_ELBO(num_particles=3, vectorize_particles=True),
    "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO(),
    "IWAE": lambda: inference.IWAE(4),
    "DReG": lambda: inference.DReG(4),
    "STL": lambda: inference.STL(),
    "Renyi": lambda: inference.Renyi(num_particles=4),
    "BetaELBO": lambda: inference.BetaELBO(num_particles=4),
    "FreeBits": lambda: inference.FreeBits(),
    "ForwardKL": lambda: inference.ForwardKL(4),
    "ReweightedWakeSleep": lambda: inference.ReweightedWakeSleep(4),
    "WakeSleep": lambda: inference.WakeSleep(),
}
MODELS = {
    "VAE": lambda: VAE(5, 2, hidden_dims=(6,)),
    "Gaussian VAE": lambda: VAE(5, 2, hidden_dims=(6,), likelihood="gaussian"),
    "HierarchicalVAE": lambda: HierarchicalVAE(
        5, latent_dims=(3, 2), hidden_dims=(6,), layer_hidden_dims=(4,)
    ),
    "LinearGaussian": lambda: LinearGaussian(5, 2),
}
# Those whose draws are scored by Newton's method, which looks at what it computes.
INVERTED = {"Planar", "Radial", "Sylvester"}
NEED_INVERSES = {"DReG", "STL", "ForwardKL", "ReweightedWakeSleep", "WakeSleep"}


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    with pyro.validation_enabled(False):
        yield


def made(name, guide="MeanField"):
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.rand(7, 5).bernoulli()
    return model, getattr(guides, guide).for_model(model, x), x


def loss_and_gradients(objective, model, guide, x, seed=1):
    torch.manual_seed(seed)
    parameters = [*model.parameters(), *guide.parameters()]
    for parameter in parameters:
        parameter.grad = None
    loss = objective.loss_and_grads(model, guide, x)
    after = torch.rand(())  # the generator has gone on alike
    return [torch.tensor(loss), *(p.grad for p in parameters), after]


def expect_same(objective, model, guide, x, compiled=None, tolerance=1e-10):
    compiled = compiled or Compiled(objective, backend="none")
    loss_and_gradients(objective, model, guide, x)  # a first call looks around, and draws for it
    expected = loss_and_gradients(objective, model, guide, x)
    for seed in (2, 1):
        found = loss_and_gradients(compiled, model, guide, x, seed)
    assert compiled.refused is None
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("objective", ["Trace_ELBO", "DReG"])
def test_loss_and_gradients_are_those_of_the_objective(objective):
    expect_same(OBJECTIVES[objective](), *made("VAE"))


# The objectives that take latents as a guide for several sites draws them.
TAKE_SEVERAL = ("Trace_ELBO", "vectorized", "IWAE", "BetaELBO", "Renyi")


@pytest.mark.slow
@pytest.mark.parametrize("objective", TAKE_SEVERAL)
@pytest.mark.parametrize("guide", ["MeanField", "Planar"])
def test_a_model_with_several_latent_sites(guide, objective):
    expect_same(OBJECTIVES[objective](), *made("HierarchicalVAE", guide))


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("guide", ["MeanField", "FullRank", "Planar", "IAF", "RealNVP"])
@pytest.mark.parametrize("model", ["VAE", "Gaussian VAE", "LinearGaussian"])
def test_every_model_guide_and_objective(model, guide, objective):
    model, guide_of_it, x = made(model, guide)
    if guide in INVERTED and objective in NEED_INVERSES:
        with pytest.warns(UserWarning, match="not compiled: it looks at a number"):
            Compiled(OBJECTIVES[objective]()).loss_and_grads(model, guide_of_it, x)
        return
    expect_same(OBJECTIVES[objective](), model, guide_of_it, x)


def test_what_inductor_compiles_is_the_objective_and_the_weights():
    model, guide, x = made("VAE")
    model, guide, x = model.float(), guide.float(), x.float()
    expect_same(Trace_ELBO(), model, guide, x, Compiled(Trace_ELBO()), tolerance=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["MeanField", "Planar", "IAF"])
def test_what_inductor_compiles_is_the_objective_in_double_precision(guide):
    expect_same(Trace_ELBO(), *made("VAE", guide), Compiled(Trace_ELBO()))


def regression(features, labels):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("data", len(features)):
        pyro.sample("y", dist.Normal(features @ weights, scale), obs=labels)


@pytest.mark.parametrize(
    "objective", [Trace_ELBO, lambda: inference.BetaELBO(1.0, num_particles=4)]
)
def test_a_model_with_shared_latents(objective):
    torch.manual_seed(0)
    data = torch.randn(20, 3), torch.randn(20)
    guide = guides.FullRank.for_model(regression, data)
    losses, gradients = [], []
    for each in (objective(), Compiled(objective(), backend="none")):
        each.loss_and_grads(regression, guide, *data)  # looks how particles are drawn
        guide.zero_grad()
        torch.manual_seed(1)
        losses.append(each.loss_and_grads(regression, guide, *data))
        gradients.append([p.grad.clone() for p in guide.parameters()])
        guide.zero_grad()
    assert each.refused is None
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("is_planted", [False, True])
def test_a_minibatch_of_data_that_share_latents_stands_for_all(is_planted, monkeypatch):
    """Planted: recorded outside of what scales it by N / B, the posterior would be too wide."""
    if is_planted:
        monkeypatch.setattr(
            "evidence.inference.objectives.loss_graphs.poutine.block", lambda **_: block()
        )
    data, losses = (torch.randn(40, 3), torch.randn(40)), []
    for objective in (Trace_ELBO(), Compiled(Trace_ELBO(), backend="none")):
        torch.manual_seed(0)
        guide = guides.FullRank.for_model(regression, data)
        options = {"batch_size": 10, "num_steps": 12, "progress": False, "compile": False}
        history = fit(regression, guide, data, objective=objective, **options)
        losses.append(history.train_loss)
    is_same = losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert is_same is not is_planted


def test_the_differentiable_loss_has_its_gradients_and_takes_factors():
    model, guide, x = made("VAE")
    expected = loss_and_gradients(Trace_ELBO(), model, guide, x)
    model.zero_grad()
    torch.manual_seed(1)
    loss = Compiled(Trace_ELBO(), backend="none")(model, guide)(x)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected[0], check_dtype=False)
    for parameter, theirs in zip(model.parameters(), expected[1:], strict=False):
        torch.testing.assert_close(parameter.grad, 3 * theirs)


def trained(objective):
    model, guide, x = made("VAE")
    history = fit(model, guide, x, num_epochs=12, batch_size=7, progress=False, objective=objective)
    return history, [p.detach().clone() for p in (*model.parameters(), *guide.parameters())]


def test_fit_ends_where_it_ends_without():
    compiled = Compiled(Trace_ELBO(), backend="none")
    history, parameters = trained(compiled)
    expected, their_parameters = trained(Trace_ELBO())
    assert sum(g.num_calls for g in compiled._graphs.values()) == 12 - 5  # 5 under validation
    assert history.epochs[-1].train_loss == pytest.approx(expected.epochs[-1].train_loss, abs=1e-9)
    torch.testing.assert_close(parameters, their_parameters)


def test_a_resumed_run_ends_with_the_same_bits():
    snapshots = []
    options = {"num_epochs": 12, "batch_size": 7, "progress": False}
    model, guide, x = made("VAE")
    compiled = Compiled(Trace_ELBO(), backend="none")
    fit(
        model,
        guide,
        x,
        objective=compiled,
        on_snapshot=snapshots.append,
        snapshot_every=8,
        **options,
    )
    again, guide_again, x = made("VAE")
    compiled = Compiled(Trace_ELBO(), backend="none")
    fit(again, guide_again, x, objective=compiled, resume_from=snapshots[0], **options)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    assert all(map(torch.equal, guide.parameters(), guide_again.parameters()))


def test_a_warm_up_is_not_compiled_with_the_weight_that_it_began_with():
    runs = []
    for objective in (Compiled(Trace_ELBO(), backend="none"), Trace_ELBO()):
        model, guide, x = made("VAE")
        options = {"num_epochs": 12, "kl_warmup_epochs": 9, "progress": False, "batch_size": 7}
        runs.append(fit(model, guide, x, objective=objective, **options))
    losses = [[epoch.train_loss for epoch in run.epochs] for run in runs]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_svi_trains_the_parameters_of_plain_functions():
    x = torch.randn(20) + 3

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    ends = []
    for objective in (Trace_ELBO(), Compiled(Trace_ELBO(), backend="none")):
        pyro.clear_param_store()
        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), objective)
        losses = [svi.step(x) for _ in range(20)]
        ends.append((losses[-1], pyro.param("loc").item(), pyro.param("scale").item()))
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)
    assert ends[0][1] > 1


def test_a_pair_that_looks_at_its_numbers_is_not_compiled_and_one_line_says_so():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z if z.sum() > 0 else -z
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    x, compiled = torch.randn(6), Compiled(Trace_ELBO())
    torch.manual_seed(1)
    expected = Trace_ELBO().loss_and_grads(model, guide, x)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="it looks at a number that it computes"):
        found = compiled.loss_and_grads(model, guide, x)
    assert found == expected
    compiled.loss_and_grads(model, guide, x)  # and says no more


def test_sizes_that_depend_on_draws_are_not_compiled():
    """Python reads them without asking, and a graph would keep those of one draw."""

    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0 + len(torch.nonzero(z.reshape(1) > 0))), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))

    with pytest.warns(UserWarning, match="not compiled: it makes a tensor whose shape depends"):
        Compiled(Trace_ELBO(), backend="none").loss_and_grads(model, guide, torch.randn(6))


def test_without_a_compiler_the_objective_goes_on_and_one_line_says_why(monkeypatch):
    def no_compiler(*args, **kwargs):
        raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: no_compiler)
    monkeypatch.setattr("evidence.inference.compilation.functions._COMPILED", {})
    model, guide, x = made("VAE")
    expected = loss_and_gradients(Trace_ELBO(), model, guide, x)
    with pytest.warns(UserWarning, match="not compiled: No working C"):
        found = loss_and_gradients(Compiled(Trace_ELBO()), model, guide, x)
    assert all(map(torch.equal, found, expected))


def test_a_program_that_changes_is_found_out(monkeypatch):
    monkeypatch.setattr("evidence.inference.objectives.compiled._CALLS_PER_CHECK", 3)
    weight = 1.0

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=weight):
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0), obs=x)

    x, compiled = torch.randn(6), Compiled(Trace_ELBO(), backend="none")

    def guide(x):
        return None

    losses = [compiled.loss_and_grads(model, guide, x) for _ in range(3)]
    weight = 2.0
    with pytest.warns(UserWarning, match="reads something that changes"):
        last = compiled.loss_and_grads(model, guide, x)
    assert last == pytest.approx(2 * losses[0])


def test_too_many_sizes_of_batch_are_not_compiled(monkeypatch):
    monkeypatch.setattr("evidence.inference.objectives.compiled._MOST_GRAPHS", 1)
    model, guide, x = made("VAE")
    compiled = Compiled(Trace_ELBO(), backend="none")
    compiled.loss_and_grads(model, guide, x)
    with pytest.warns(UserWarning, match="more than 1 sizes"):
        compiled.loss_and_grads(model, guide, x[:5])


@pytest.mark.parametrize("is_planted", [False, True])
def test_gradients_of_one_tensor_are_clipped_once_each(is_planted, monkeypatch):
    """Autograd returns one tensor for both; clipping changes each in place. Planted: it does."""
    if is_planted:
        monkeypatch.setattr("evidence.inference.objectives.loss_graphs._apart", iter)

    def model(x):
        a, b = pyro.param("a", torch.tensor(0.3)), pyro.param("b", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 0.1), obs=x)

    ends = []
    for objective in (Trace_ELBO(), Compiled(Trace_ELBO(), backend="none")):
        pyro.clear_param_store()
        options = {"num_steps": 12, "clip_norm": 0.5, "lr": 0.1, "optimizer": torch.optim.SGD}
        fit(model, lambda x: None, torch.ones(6), objective=objective, progress=False, **options)
        ends.append([pyro.param("a").item(), pyro.param("b").item()])
    is_same = ends[0] == pytest.approx(ends[1], rel=1e-9)
    assert is_same is not is_planted


class Dropped(nn.Module):
    """A guide with dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5))

    def forward(self, x):
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_modules_are_run_in_their_mode():
    model, _, x = made("VAE")
    guide, compiled = Dropped(), Compiled(Trace_ELBO(), backend="none")
    for _ in range(2):
        expect_same(Trace_ELBO(), model, guide, x, compiled)
        guide.eval()


def test_statistics_that_a_step_changes_are_not_compiled():
    model, guide, x = made("VAE")
    model.decoder = nn.Sequential(model.decoder, nn.BatchNorm1d(5))
    with pytest.warns(UserWarning, match="changes a tensor in place"):
        Compiled(Trace_ELBO(), backend="none").loss_and_grads(model, guide, x)


@pytest.mark.parametrize("guide", ["MeanField", "Planar"])
def test_compiled_weights_are_those_of_the_pair(guide):
    model, guide, x = made("VAE", guide)
    compiled = CompiledTerms(True, 700, backend="none")
    torch.manual_seed(1)
    found = unchecked_log_weights(model, guide, x, 100, chunk_size=25, compiled=compiled)
    torch.manual_seed(1)
    expected = log_weights(model, guide, x, 100, chunk_size=25, compile=False)
    assert [graph is not None for graph in compiled._graphs.values()] == [True]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_weights_of_a_pair_that_cannot_be_recorded_are_its_own():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z if z.isfinite().all() else 0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.randn(3)
    torch.manual_seed(1)
    expected = log_weights(model, guide, x, 100, chunk_size=10, compile=False)
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="the pair is not compiled: it looks at a number"):
        found = log_weights(model, guide, x, 100, chunk_size=10, compile=True)
    assert torch.equal(found, expected)


def test_a_recorded_function_draws_what_it_draws_and_reads_what_it_reads():
    shift = torch.zeros(3)

    def function(x):
        p = torch.sigmoid(x + torch.randn(3))
        return (torch.bernoulli(p) + shift,)

    x = torch.randn(3)
    compiled = CompiledFunction(function, [x], backend="none")
    shift += 5
    torch.manual_seed(1)
    expected = function(x)[0]
    torch.manual_seed(1)
    assert torch.equal(compiled(x)[0], expected)


def test_what_is_not_recordable_says_why():
    with pytest.raises(NotRecordableError, match="looks at a number"):
        CompiledFunction(lambda x: (x if x.sum() > 0 else -x,), [torch.ones(3)])


def test_auto_compiles_long_runs_alone():
    model, guide, x = made("VAE")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (1, 10**3, 10**6):
            compiled = inference.objectives.choice.compiled_where_it_pays(
                Trace_ELBO(), "auto", model, guide, x, num_calls=steps
            )
            assert (type(compiled) is Compiled) == (steps == 10**6)
