"""Training from a recorded graph: to the bits of the program, whenever that begins."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal

from evidence.guides import FullRank, MeanField, Planar
from evidence.inference import FAB, STL, DReG, UntilConverged, fit
from evidence.inference.objectives import choice, loss_graphs, recorded
from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.loss_graphs import LossGraph
from evidence.inference.objectives.recorded import Recorded
from evidence.models import LinearGaussian
from tests.test_recorded import FAR_AWAY, Y, scale_of_backward, scale_of_caught, schools, with_scale


def regression(features, y):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.HalfCauchy(torch.tensor(1.0)))
    with pyro.plate("data", len(features)):
        pyro.sample("y", dist.Normal(features @ weights, scale), obs=y)


def autoguide(model, data):
    guide = AutoMultivariateNormal(model)
    guide(*data)
    return guide


def features():
    return torch.randn(20, 3), torch.randn(20)


# Model, guide, data, objective, and options of the fit.
PAIRS = {
    "schools": (lambda: schools, FullRank.for_model, lambda: Y, None, {}),
    "flow": (lambda: schools, Planar.for_model, lambda: Y, Trace_ELBO, {}),
    "autoguide": (lambda: regression, autoguide, features, Trace_ELBO, {}),
    "minibatches": (lambda: regression, FullRank.for_model, features, None, {"batch_size": 5}),
    "clipped": (lambda: regression, FullRank.for_model, features, None, {"clip_norm": 0.1}),
    "until": (lambda: schools, FullRank.for_model, lambda: Y, None, {"until": UntilConverged()}),
    "amortized": (
        lambda: LinearGaussian(3, 2),
        MeanField.for_model,
        lambda: torch.randn(20, 3),
        lambda: DReG(4),
        {"batch_size": 8},  # and a last one of 4
    ),
}


@pytest.fixture
def used(monkeypatch):
    """The objectives that fits have made to be recorded, from the sixth step on."""
    found = []

    class Noted(Recorded):
        def __init__(self, objective):
            super().__init__(objective)
            found.append(self)

        @property
        def num_calls(self):
            return sum(graph.num_calls for graph in self._graphs.values())

    monkeypatch.setattr(choice, "Recorded", Noted)
    monkeypatch.setattr(choice, "_FEWEST_RECORDED", 1)
    monkeypatch.setattr(recorded, "_BEFORE_RECORDING", 1)
    monkeypatch.setattr(LossGraph, "is_faster", lambda self, call: True)  # on any machine
    return found


def trained(name, **options):
    make_model, make_guide, make_data, objective, usual = PAIRS[name]
    torch.manual_seed(0)
    pyro.clear_param_store()
    model, data = make_model(), make_data()
    guide = make_guide(model, data)
    usual = {"lr": 0.01, "seed": 1, "progress": False} | usual
    usual |= {"max_steps": 40} if "until" in usual else {"num_steps": 40}
    made = None if objective is None else objective()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "max_steps ended training")
        history = fit(model, guide, data, objective=made, **usual | options)
    modules = [part for part in (model, guide) if isinstance(part, torch.nn.Module)]
    return history.train_loss, [p.detach() for m in modules for p in m.parameters()]


@pytest.mark.parametrize("name", PAIRS)
def test_a_fit_has_the_bits_of_one_that_is_not_recorded(name, used):
    losses, parameters = trained(name)
    assert used[0].refused is None
    assert used[0].num_calls > 15
    theirs, their_parameters = trained(name, compile=False)
    assert len(used) == 1
    assert losses == theirs
    assert all(map(torch.equal, parameters, their_parameters))


def test_a_resumed_run_has_the_bits_whenever_it_is_recorded(used, monkeypatch):
    snapshots = []
    _, parameters = trained("minibatches", on_snapshot=snapshots.append, snapshot_every=17)
    monkeypatch.setattr(recorded, "_BEFORE_RECORDING", 6)
    _, again = trained("minibatches", resume_from=snapshots[0])
    assert [objective.num_calls > 0 for objective in used] == [True, True]
    assert all(map(torch.equal, parameters, again))


@pytest.mark.parametrize("is_planted", [False, True])
def test_a_graph_of_other_bits_is_not_used(is_planted, used, monkeypatch):
    """Planted: whatever is recorded, is; a loss that is off by a rounding would go unseen."""

    def rounded(steps, inputs):
        graph = correct(steps, inputs)

        def run(*tensors):
            loss, *gradients = graph(*tensors)
            return loss, *(gradient * (1 + 1e-6) for gradient in gradients)

        return run

    correct = recorded.interpreted
    monkeypatch.setattr(recorded, "interpreted", rounded)
    if is_planted:
        monkeypatch.setattr(recorded, "same_bits", lambda ours, theirs: True)
    _, parameters = trained("schools")
    assert (used[0].num_calls == 0) is not is_planted
    _, theirs = trained("schools", compile=False)
    assert all(map(torch.equal, parameters, theirs)) is not is_planted


def test_short_runs_and_what_cannot_be_recorded_go_on_without_a_word(used, monkeypatch):
    def branching(y):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z if z > 0 else -z, 10.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guide = MeanField.for_model(branching, Y)
        fit(branching, guide, Y, num_steps=20, objective=Trace_ELBO(), progress=False)
        assert "looks at a number" in used[0].refused
        monkeypatch.setattr(recorded, "_BEFORE_RECORDING", 500)
        trained("schools")
    assert used[1].num_calls == 0
    assert used[1].refused is None


def test_what_is_no_faster_is_not_run_from_a_graph(monkeypatch):
    monkeypatch.setattr(recorded, "_BEFORE_RECORDING", 1)
    for ours, theirs, is_used in ((1.0, 2.0, True), (1.9, 2.0, False)):
        times = iter([[ours] * 3, [theirs] * 3])  # of the graph, and of the program
        monkeypatch.setattr(loss_graphs.timeit, "repeat", lambda *_, times=times, **__: next(times))
        objective = Recorded(Trace_ELBO())
        guide = FullRank.for_model(schools, Y)
        with pyro.validation_enabled(False):
            for _ in range(4):
                objective.loss_and_grads(schools, guide, Y)
        assert (objective.refused is None) is is_used


@pytest.mark.parametrize("scale", [s for s in FAR_AWAY if s is not scale_of_backward])
def test_what_no_graph_sees_has_the_bits_of_the_program(scale, used):
    """Draws of a guide that leaves where it was recorded for where the program does otherwise."""
    model, ends = with_scale(scale), []
    for compile in (False, "auto"):
        torch.manual_seed(0)
        guide = MeanField.for_model(model, Y)
        options = {"num_steps": 60, "lr": 0.3, "seed": 1, "progress": False, "batch_size": 8}
        fit(model, guide, Y, objective=Trace_ELBO(), compile=compile, **options)
        ends.append(torch.cat([p.detach().flatten() for p in guide.parameters()]))
    assert torch.equal(*ends)
    assert scale is scale_of_caught or used[0].num_calls == 0


def test_a_program_that_changes_is_found_out_and_told_of(used, monkeypatch):
    """A weight that the user's own loop raises: what the advice leads to is right at once."""
    monkeypatch.setattr(recorded, "_CALLS_PER_CHECK", 5)
    weight = 1.0

    def model(y):
        z = pyro.sample("z", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)), pyro.poutine.scale(scale=weight):
            pyro.sample("y", dist.Normal(z, 10.0), obs=y)

    def fitted(compile, warn):
        nonlocal weight
        torch.manual_seed(0)
        weight, guide = 1.0, MeanField.for_model(model, Y)

        def rise(_):
            nonlocal weight
            weight = 2.0

        options = {"num_steps": 40, "seed": 1, "progress": False, "batch_size": 8}
        with warn:
            fit(model, guide, Y, on_snapshot=rise, snapshot_every=20, compile=compile, **options)
        return torch.cat([p.detach().flatten() for p in guide.parameters()])

    late = fitted("auto", pytest.warns(UserWarning, match=r"something that changes; pass compile"))
    right = fitted(False, warnings.catch_warnings())
    assert not torch.equal(late, right)
    torch.testing.assert_close(late, right, rtol=0, atol=0.05)  # five steps of 40 were late


@pytest.mark.parametrize(("num_calls", "kind"), [(None, Recorded), (1000, Recorded), (999, STL)])
def test_runs_of_a_known_length_are_recorded_where_they_are_long(num_calls, kind, monkeypatch):
    monkeypatch.setattr(choice, "is_worth_compiling", lambda work, num_calls: False)
    guide = FullRank.for_model(schools, Y)
    with pyro.validation_enabled(False):
        found = choice.compiled_where_it_pays(STL(), "auto", schools, guide, Y, num_calls=num_calls)
    assert type(found) is kind


class OwnELBO(Trace_ELBO):
    """Of a user, which may keep a baseline."""


@pytest.mark.parametrize("objective", [FAB(4), OwnELBO()])
def test_objectives_that_may_keep_something_are_not_recorded(objective):
    """Trying a graph calls them more often."""
    guide = FullRank.for_model(schools, Y)
    found = choice.compiled_where_it_pays(objective, "auto", schools, guide, Y, num_calls=None)
    assert found is objective


def test_what_is_compiled_already_is_left_alone():
    compiled = Compiled(Trace_ELBO())
    for compile in (True, False, "auto"):
        found = choice.compiled_where_it_pays(compiled, compile, schools, schools, Y, num_calls=9)
        assert found is compiled
