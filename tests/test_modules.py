"""Modules are found however a program holds them, and evaluations leave them as they were."""

import copy
import functools
import weakref
from dataclasses import dataclass
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoNormal
from torch import nn

from evidence.guides import MeanField
from evidence.inference import (
    anneal,
    check,
    fit,
    importance_weighted_evidence,
    inference_gaps,
    latent_diagnostics,
    log_prob_terms,
    simulation_based_calibration,
)
from evidence.inference.programs.evaluation import evaluation_mode, modules_of
from evidence.inference.programs.parameters import tensors_of
from evidence.inference.programs.simulation import device_of, simulate
from evidence.models import VAE

NET = nn.Linear(2, 2)
NAMESPACE = SimpleNamespace(nets={"decoder": [NET]})


class Tutorial(nn.Module):
    """Pyro's tutorial: model and guide are methods of one module."""

    def __init__(self, dropout=0.3):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4)
        )
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.Dropout(dropout), nn.Linear(16, 8))

    def model(self, x, size=None):
        pyro.module("decoder", self.decoder)
        size = len(x) if size is None else size
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def in_closures(tutorial):
    nets = [SimpleNamespace(encoder=tutorial.encoder, decoder=tutorial.decoder)]
    return functools.partial(Tutorial.model, *nets), lambda x: Tutorial.guide(nets[0], x)


class Plain:
    """No module itself, with modules for attributes."""

    def __init__(self, tutorial):
        self.encoder, self.decoder = tutorial.encoder, tutorial.decoder

    model, guide = Tutorial.model, Tutorial.guide


def fetched(tutorial):
    """The module comes out of a call: nothing but a run shows it."""
    fetch = weakref.ref(tutorial)
    return lambda x: fetch().model(x), lambda x: fetch().guide(x)


WAYS = {
    "methods": lambda tutorial: (tutorial.model, tutorial.guide),
    "methods of a plain object": lambda t: (Plain(t).model, Plain(t).guide),
    "closures": in_closures,
    "fetched": fetched,
}


@pytest.mark.parametrize("way", WAYS)
def test_evaluations_switch_dropout_and_running_statistics_off(way):
    torch.manual_seed(1)
    tutorial = Tutorial()
    x = torch.randn(30, 8)
    tutorial.guide(x)  # moves the running statistics
    before = {name: buffer.clone() for name, buffer in tutorial.named_buffers()}
    model, guide = WAYS[way](tutorial)
    still = copy.deepcopy(tutorial).eval()

    def evidence(model, guide):
        pyro.set_rng_seed(0)
        return importance_weighted_evidence(model, guide, x, 50).mean

    assert evidence(model, guide) == evidence(still.model, still.guide)
    assert all(module.training for module in tutorial.modules())
    assert all(torch.equal(b, before[name]) for name, b in tutorial.named_buffers())
    tutorial.guide(x)  # the twin: running it in training mode does move them
    assert not all(torch.equal(b, before[name]) for name, b in tutorial.named_buffers())


def test_every_evaluation_of_a_pair_of_methods_leaves_its_statistics_alone():
    pair = Tutorial()
    x = torch.randn(20, 8)
    before = {name: buffer.clone() for name, buffer in pair.named_buffers()}
    latent_diagnostics(pair.model, pair.guide, x)
    log_prob_terms(pair.model, pair.guide, x)
    anneal(
        pair.model, x, guide=pair.guide, num_chains=2, num_temperatures=2, num_pilot_temperatures=2
    )
    check(pair.model, pair.guide, x)
    simulation_based_calibration(pair.model, pair.guide, num_simulations=20, num_draws=19)
    simulate(pair.model, 5, x)
    assert all(torch.equal(b, before[name]) for name, b in pair.named_buffers())
    assert all(module.training for module in pair.modules())
    assert all(parameter.requires_grad for parameter in pair.parameters())


def test_the_gaps_of_a_guide_with_dropout_do_not_drop():
    model, guide = VAE(8, 2, hidden_dims=(4,)), MeanField(2, 8, hidden_dims=(4,))
    guide.encoder.append(nn.Dropout(0.9))
    x = (torch.arange(24).reshape(3, 8) % 2).float()
    gaps = [
        inference_gaps(model, guide, x, num_particles=200, max_steps=1, num_draws=1)
        for _ in range(2)
    ]
    assert gaps[0].total.mean == pytest.approx(gaps[1].total.mean, abs=0.3)


def uses_a_global(x):
    return NET(x)


def calls_another(x):
    return uses_a_global(x)


def uses_a_namespace(x):
    return NAMESPACE.nets["decoder"][0](x)


def names_it_inside(x):
    def inner():
        return NET(x)

    return inner()


class Callable:
    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


@dataclass(slots=True)
class Slotted:
    net: nn.Module

    def run(self, x):
        return self.net(x)


class OfTheClass:
    net = NET

    @classmethod
    def run(cls, x):
        return cls.net(x)

    @staticmethod
    def run_static(x):
        return uses_a_global(x)


def by_default(x, *, net=NET):
    return net(x)


@functools.wraps(uses_a_global)
def wraps_another(*args):
    return globals()["uses_a_global"](*args)


class Outside(nn.Module):
    """A module that holds another one without owning it."""

    def __init__(self, net):
        super().__init__()
        self.held = (net,)


@pytest.mark.parametrize(
    "program",
    [
        NET,
        NET.forward,
        lambda x: NET(x),
        uses_a_global,
        calls_another,
        uses_a_namespace,
        names_it_inside,
        by_default,
        wraps_another,
        functools.partial(by_default, net=NET),
        functools.partial(lambda net, x: net(x), NET),
        Callable(NET),
        Slotted(NET).run,
        OfTheClass.run,
        OfTheClass().run_static,
        lambda x: OfTheClass.net(x),
        functools.lru_cache(uses_a_global),
        poutine.scale(poutine.block(uses_a_global), scale=2.0),
        config_enumerate(uses_a_global),
        torch.no_grad()(uses_a_global),
        [{"decoder": (NET,)}],
    ],
)
def test_the_module_of_any_callable_is_found(program):
    assert modules_of(program) == [NET]


def test_what_is_found_is_whole_and_found_once():
    tutorial, guide = Tutorial(), AutoNormal(uses_a_global)
    assert modules_of(tutorial.guide, tutorial.model, tutorial.decoder) == [tutorial]
    assert modules_of(guide) == [guide, NET]
    outside = Outside(NET)
    assert modules_of(outside, None) == [outside, NET]
    assert modules_of(None, print, dist.Normal, lambda x: torch.relu(x)) == []


def test_modes_of_each_module_come_back_as_they_were():
    net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    with evaluation_mode(lambda x: net(x)):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == [True, True, False]
    with pytest.raises(ValueError, match="datum"):
        log_prob_terms(net, net, torch.zeros(0))
    assert [module.training for module in net.modules()] == [True, True, False]


def test_running_statistics_of_methods_are_resumed_bit_identically():
    def run(**options):
        torch.manual_seed(3)
        tutorial = Tutorial()
        options |= {"num_epochs": 3, "batch_size": 16, "progress": False}
        fit(tutorial.model, tutorial.guide, X, **options)
        return tutorial.state_dict()

    snapshots = []
    whole = run(snapshot_every=3, on_snapshot=snapshots.append)
    resumed = run(resume_from=snapshots[0])
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert any(name.endswith("running_mean") for name in snapshots[0].tensors)


X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def test_state_is_named_once():
    tutorial = Tutorial()
    names = [n for n in tensors_of(tutorial.model, tutorial.guide) if "running_mean" in n]
    assert names == ["model.0.encoder.1.running_mean"]
    assert "model.encoder.1.running_mean" in tensors_of(tutorial, tutorial.guide)


def test_a_device_is_that_of_any_program():
    assert device_of(Tutorial().model, None) == torch.device("cpu")
    assert device_of(lambda x: x, None) is None
