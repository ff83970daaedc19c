"""Averages of iterates at falling learning rates: the optimum, whatever the first one is."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from evidence.experiments.own.program import default_dtype
from evidence.guides import MeanField, RealNVP
from evidence.inference import (
    NonFiniteLossError,
    NotConvergedWarning,
    UntilConverged,
    UntilFlat,
    fit,
)
from evidence.inference.programs.parameters import fan_ins, named_parameters
from evidence.inference.training import averaging, run
from evidence.inference.training.averaging import IterateAverages
from evidence.inference.training.optimizer import JointOptim
from evidence.models.problems import PROBLEMS

SIZE, NOISE = 256, 0.7


def regression_data():
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(SIZE, 2, generator=generator) @ torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    return X, X @ torch.tensor([1.0, -2.0]) + NOISE * torch.randn(SIZE, generator=generator)


X, Y = regression_data()
PRECISION = torch.eye(2) / 100 + X.mT @ X / NOISE**2
MEAN = torch.linalg.solve(PRECISION, X.mT @ Y / NOISE**2)


def model(X, y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal((X * w).sum(-1), NOISE), obs=y)


def fitted(kind, **options):
    """The relative error of the standard deviations, and that of the means in these."""
    guide = kind(model)
    history = fit(model, guide, (X, Y), progress=False, **options)
    with torch.no_grad():
        if kind is AutoNormal:  # its optimum has the precisions of the posterior
            mean, sd, exact = guide.locs.w, guide.scales.w, PRECISION.diagonal().rsqrt()
        else:
            tril = guide.scale.unsqueeze(-1) * guide.scale_tril
            mean, sd = guide.loc, (tril @ tril.mT).diagonal().sqrt()
            exact = torch.linalg.inv(PRECISION).diagonal().sqrt()
    return history, (sd / exact - 1).abs().max().item(), ((mean - MEAN) / exact).abs().max().item()


QUICK = [(AutoNormal, 0.01, SIZE), (AutoMultivariateNormal, 0.02, 128)]
SLOW = [(AutoNormal, lr, size) for lr in (0.003, 0.05) for size in (32, SIZE)]


@pytest.mark.parametrize(
    ("kind", "lr", "batch_size"), QUICK + [pytest.param(*c, marks=pytest.mark.slow) for c in SLOW]
)
def test_the_optimum_is_found_whatever_the_first_learning_rate(kind, lr, batch_size):
    """Means within 0.1 sd and standard deviations within 5%, of mean field and full rank."""
    options = {"lr": lr, "batch_size": batch_size, "until": UntilConverged()}
    history, off_sd, off_mean = fitted(kind, **options)
    assert history.epochs[-1].is_average
    assert "until averages of the iterates converged" in str(history)
    assert off_sd < 0.05
    assert off_mean < 0.1


def test_the_last_iterate_would_be_off():
    """The twin: as many steps at the same learning rate, without averaging."""
    _, off_sd, off_mean = fitted(AutoNormal, lr=0.05, num_steps=600)
    assert max(off_sd, off_mean) > 0.1


def iterates(values, **options):
    """The averages of a scalar that wanders over `values`, of a loss that is its square."""
    parameter = torch.zeros(1)
    options = {"steps_per_epoch": 25, "warmup_epochs": 0.0} | options

    def losses():
        return parameter.double().square().expand(16)

    averages = IterateAverages(UntilConverged(), [parameter], losses, **options)
    for step, value in enumerate(values):
        parameter.fill_(value)
        averages.after_step()
        if (step + 1) % 25 == 0:
            averages.after_epoch()
        if averages.has_ended:
            break
    return averages, parameter.item(), step


def test_noise_is_averaged_and_a_trend_is_not_taken_for_rest():
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(4000, generator=generator)
    averages, value, step = iterates(noise)
    assert averages.has_ended
    assert abs(value) < 0.02
    assert step < 3000
    trend, *_ = iterates(noise + torch.linspace(5, 0, 4000))
    assert not trend.has_ended
    assert trend.lr_factor == 1


def wanderer(values, losses_of, steps_per_epoch=25):
    """The averages of a vector that wanders over `values` `[T, 2]`."""
    parameter = torch.zeros(2)
    averages = IterateAverages(
        UntilConverged(),
        [parameter],
        lambda: losses_of(parameter.double()),
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=0.0,
    )
    for step, value in enumerate(values):
        parameter.copy_(value)
        averages.after_step()
        if (step + 1) % steps_per_epoch == 0:
            averages.after_epoch()
            if averages.lr_factor == 1:
                assert torch.equal(parameter, value)  # a look leaves them as they are
        if averages.has_ended:
            break
    return averages, parameter


def test_directions_that_mean_nothing_to_the_loss_need_not_come_to_rest(monkeypatch):
    """As those of a network's weights; the twin, R̂ alone, waits for them forever."""
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(4000, 2, generator=generator)
    values = noise + torch.arange(4000.0).unsqueeze(1) * torch.tensor([0.0, 0.1])

    def losses(z):
        return z[0].square().expand(16)

    averages, parameter = wanderer(values, losses)
    assert averages.has_ended
    assert abs(parameter[0].item()) < 0.02
    monkeypatch.setattr(averaging, "_LOOKS_AT_REST", math.inf)
    assert not wanderer(values, losses)[0].has_ended


def test_a_loss_that_falls_does_not_rest_though_its_noise_is_larger(monkeypatch):
    """Heavy tails hide a trend from a mean and its standard error, the twin, not from a median."""
    generator = torch.Generator().manual_seed(0)
    values = 0.01 * torch.randn(2000, 2, generator=generator)
    values += torch.linspace(3, 1, 2000)[:, None]
    scales = torch.tensor([1.0] * 15 + [1e4], dtype=torch.float64)

    def losses(z):
        return z[0] * scales

    assert not wanderer(values, losses)[0].lr_factor < 1

    def lenient(self, before, after):
        here = self._now()
        gain = self._losses_at(before) - self._losses_at(after)
        self._put(here)
        return (gain.mean() - 2 * gain.std() / 4).item()

    monkeypatch.setattr(IterateAverages, "_gain", lenient)
    assert wanderer(values, losses)[0].lr_factor < 1


def test_what_training_ends_with_is_an_average_only_if_that_is_better():
    values = torch.linspace(4, 0, 400)[:, None].expand(-1, 2)
    averages, parameter = wanderer(values, lambda z: z[0].square().expand(16))
    averages.settle()  # a trend: the last iterate is better than any average
    assert torch.equal(parameter, values[-1])
    noise = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    noise[-1] = 3.0
    averages, parameter = wanderer(noise, lambda z: z[0].square().expand(16))
    averages.settle()
    assert abs(parameter[0].item()) < 0.3


def test_a_bias_that_falls_with_the_learning_rate_is_seen():
    """A second average that is far from the first one asks for a third."""
    generator = torch.Generator().manual_seed(0)
    stages = [0.5, 0.15, 0.045, 0.0135, 0.004]
    parameter, noise = torch.zeros(1), 0.02 * torch.randn(9000, generator=generator)
    averages = IterateAverages(
        UntilConverged(),
        [parameter],
        lambda: parameter.double().square().expand(16),
        steps_per_epoch=25,
        warmup_epochs=0.0,
    )
    for step, off in enumerate(noise):
        stage = round(math.log(averages.lr_factor, 0.3))
        parameter.fill_(stages[stage] + off)
        averages.after_step()
        if (step + 1) % 25 == 0:
            averages.after_epoch()
        if averages.has_ended:
            break
    assert averages.has_ended
    # The loss is x²: averages apart by 0.0315 cost 9.9e-4 > 4 × 1e-4 nats, by 0.0095 but 9e-5.
    assert round(math.log(averages.lr_factor, 0.3)) == 4
    assert parameter.item() == pytest.approx(0.004, abs=0.003)


def test_options_that_it_cannot_go_with_are_refused():
    with pytest.raises(ValueError, match="UntilConverged sets the learning rate"):
        fitted(AutoNormal, until=UntilConverged(), lr_decay=0.9)
    with pytest.raises(ValueError, match=r"tolerance > 0, got 0"):
        UntilConverged(0)


@pytest.mark.parametrize(
    ("options", "lr", "steps"),
    [
        ({}, 0.03, 1),
        ({"batch_size": 64}, 0.03, 4),
        ({"lr": 0.01}, 0.01, 1),
        ({"lr_decay": 0.5}, 1e-3, 2),  # something else sets the rate
        ({"until": UntilFlat()}, 1e-3, 2),
    ],
)
def test_what_is_left_open_is_settled_by_whether_data_share_latents(options, lr, steps):
    with pytest.warns(NotConvergedWarning):
        history = fit(model, AutoNormal(model), (X, Y), max_steps=2, progress=False, **options)
    assert history.epochs[0].lr == lr
    assert history.epochs[0].num_steps == steps


def test_latents_of_each_datum_are_trained_as_before():
    def local(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = MeanField.for_model(local, Y)
    with pytest.warns(NotConvergedWarning):
        history = fit(local, guide, Y, max_steps=2, progress=False)
    assert (history.epochs[0].lr, history.epochs[0].num_steps) == (1e-3, 2)


def test_what_max_steps_cut_short_converges_when_they_are_raised():
    """The advice is followed, from the last snapshot on."""
    snapshots, options = [], {"lr": 1.0, "until": UntilConverged()}
    with pytest.warns(NotConvergedWarning, match=r"after 250 steps.*: raise max_steps$"):
        fitted(AutoNormal, max_steps=250, on_snapshot=snapshots.append, **options)
    history, off_sd, off_mean = fitted(AutoNormal, resume_from=snapshots[-1], **options)
    assert history.not_converged is None
    assert max(off_sd, off_mean) < 0.05


def test_networks_take_a_rate_that_suits_their_width(monkeypatch):
    """The twin: at the rate of a standardized guide for all, a flow diverges in the first steps."""
    known = PROBLEMS["pumps"]

    def losses():
        with default_dtype(torch.float64):
            guide = RealNVP.for_model(known.model, known.arguments, seed=0)
            return fit(known.model, guide, known.arguments, max_steps=40, progress=False).train_loss

    with pytest.warns(NotConvergedWarning):
        assert 10 * losses()[-1] == pytest.approx(-known.log_evidence, abs=4)
    monkeypatch.setattr(run, "fan_ins", lambda *_: {})
    with pytest.raises(NonFiniteLossError):
        losses()


def test_layers_are_known_by_the_names_of_their_weights():
    guide = RealNVP(2, 3, hidden_dims=(7,))
    found = fan_ins(model, guide)
    assert found.keys() <= named_parameters(model, guide).keys()
    assert found["guide.encoder.0.weight"] == 3
    assert all(named_parameters(model, guide)[n].shape[1] == size for n, size in found.items())


def test_the_rate_of_some_is_divided():
    parameters = {"a": torch.zeros(1, requires_grad=True), "b": torch.zeros(1, requires_grad=True)}
    optim = JointOptim(parameters, lr=0.5, make=torch.optim.SGD, divisors={"a": 4})
    for lr in (0.5, 0.1):
        for parameter in parameters.values():
            parameter.data.zero_()
            parameter.grad = -torch.ones(1)
        optim.set_lr(lr)
        optim()
        assert optim.lr == lr
        assert parameters["a"].item() == pytest.approx(lr / 4)
        assert parameters["b"].item() == pytest.approx(lr)
