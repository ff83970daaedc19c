"""Training until the ELBO is flat, what is said when it is not, and which parameters are kept."""

import copy
import functools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.guides import MeanField
from evidence.inference import (
    EpochRecord,
    History,
    NotConvergedWarning,
    UntilConverged,
    UntilFlat,
    fit,
    log_prob_terms,
)
from evidence.inference.training.stopping import Plateau
from evidence.models import VAE
from tests.test_training import X, pair, weights_of

DATA = math.sqrt(2) * torch.randn(256, generator=torch.Generator().manual_seed(3))


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(x):
    slope = pyro.param("slope", torch.tensor(-1.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale))


def records(losses, **last):
    made = [
        EpochRecord(n + 1, loss, 1.0, None, None, None, 0.0, 1) for n, loss in enumerate(losses)
    ]
    return History([*made[:-1], EpochRecord(**(vars(made[-1]) | last))])


def gap():
    """Evidence − ELBO of the guide, KL(q ‖ p) in closed form; the posterior is N(x/2, 1/2)."""
    slope, scale = pyro.param("slope").detach(), pyro.param("scale").detach()
    q, p = dist.Normal(slope * DATA, scale), dist.Normal(DATA / 2, math.sqrt(0.5))
    return torch.distributions.kl_divergence(q, p).mean().item()


def test_training_goes_on_until_the_elbo_is_flat():
    history = fit(normal_model, normal_guide, DATA, progress=False, until=UntilFlat(60), lr=0.01)
    assert history.epochs[-1].is_flat
    assert history.still_rising is None
    assert "until the ELBO was flat" in str(history)
    assert history.epochs[-1].lr == pytest.approx(0.01 * 0.5**9)
    assert gap() < 2e-3


def test_a_few_epochs_leave_the_elbo_rising_and_it_is_said():
    """The twin: what the test above asks for is missed by training that stops early."""
    history = fit(normal_model, normal_guide, DATA, progress=False, num_epochs=20, lr=0.01)
    assert gap() > 0.1
    assert history.still_rising == pytest.approx(0.5, abs=0.45)
    assert "still rising, by" in str(history)


def test_without_a_number_of_epochs_training_is_until_flat(monkeypatch):
    seen = []
    monkeypatch.setattr(Plateau, "is_flat", property(lambda self: bool(seen.append(self)) or True))
    history = fit(*pair(), X, progress=False)
    assert seen
    assert history.epochs == []


@pytest.mark.parametrize(
    ("losses", "looks"),
    [
        ([5, 4, 3, 2], 0),
        ([5, 5, 5, 5], 3),
        ([5, 4, 6, 4, 3], 2),  # 4 once more is no gain
        ([5, 4, 4.5, 3.5], 1),
    ],
)
@pytest.mark.parametrize("epochs_per_look", [1, 3])
def test_looks_without_gain_are_counted(losses, looks, epochs_per_look):
    rule = UntilFlat(steps_per_look=4 * epochs_per_look)
    plateau = Plateau(rule, steps_per_epoch=4, warmup_epochs=1.5)
    spread = np.linspace(-0.1, 0.1, epochs_per_look) if epochs_per_look > 1 else np.zeros(1)
    for loss in [0.0, 0.0, *(loss + d for loss in losses for d in spread)]:  # two of warm-up
        plateau.observe(loss)
    assert plateau.looks_without_gain == looks
    assert plateau.lr_factor == 0.5**looks
    assert not plateau.is_flat


def test_the_tenth_look_without_gain_is_the_last():
    plateau = Plateau(UntilFlat(1), steps_per_epoch=7, warmup_epochs=0)
    flat = []
    for _ in range(11):
        flat.append(plateau.is_flat)
        plateau.observe(1.0)
    assert not any(flat)
    assert plateau.is_flat


def test_a_cap_on_the_steps_ends_training_which_is_said_and_gone_on_from_as_advised():
    snapshots, options = [], {"progress": False, "until": UntilFlat(60), "lr": 0.01}

    def run(max_steps, **more):
        pyro.clear_param_store()
        return fit(normal_model, normal_guide, DATA, max_steps=max_steps, **options, **more)

    with pytest.warns(NotConvergedWarning, match=r"after 24 steps.*still rising.*raise max_steps"):
        history = run(23, on_snapshot=snapshots.append)
    assert len(history.epochs) == 12  # of two steps
    assert not history.epochs[-1].is_flat
    assert history.epochs[-1].is_capped
    assert history.still_rising > 0
    assert str(history).endswith(history.not_converged)
    before = copy.deepcopy(snapshots[-1].meta)
    history = run(100_000, resume_from=snapshots[-1])
    assert snapshots[-1].meta == before  # a run that goes on from it leaves it as it was
    assert not any(record.is_capped for record in history.epochs)
    assert history.not_converged is None
    assert gap() < 2e-3


def test_an_epoch_costs_no_more_the_more_epochs_went_before(monkeypatch):
    """Of a fit of all data at once, where every step is an epoch."""
    work = []
    make, judge = EpochRecord.__init__, EpochRecord.judged_loss.fget
    monkeypatch.setattr(
        EpochRecord, "__init__", lambda self, *args, **kw: work.append(1) or make(self, *args, **kw)
    )
    monkeypatch.setattr(
        EpochRecord, "judged_loss", property(lambda self: work.append(1) or judge(self))
    )

    def work_of(num_steps):
        pyro.clear_param_store()
        work.clear()
        options = {"num_steps": num_steps, "batch_size": len(DATA), "held_out": DATA[:32]}
        fit(normal_model, normal_guide, DATA, progress=False, compile=False, **options)
        return len(work)

    few, some, many = work_of(10), work_of(20), work_of(30)
    assert 10 <= some - few == many - some


def test_training_of_a_number_of_steps_is_not_said_to_be_cut_short():
    history = fit(normal_model, normal_guide, DATA, progress=False, num_steps=23, lr=0.01)
    assert history.not_converged is None


@pytest.mark.parametrize("size", [12, 100])
def test_flat_noise_is_rarely_called_rising_and_a_slope_is(size):
    """One in a hundred, by the test's level; |z| < 5 for 4,000 repetitions, and power at 4 SD."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(4000, size))
    share = np.mean([records(row).still_rising is not None for row in noise])
    assert abs(share - 0.01) < 5 * math.sqrt(0.01 * 0.99 / 4000)
    half = size - size // 2
    slope = 8 / math.sqrt(half * (half**2 - 1) / 12)  # eight standard errors
    falling = noise[:200] - slope * np.arange(size)
    gains = [records(row).still_rising for row in falling]
    found = [gain for gain in gains if gain is not None]
    assert len(found) > 190 if size == 100 else len(found) > 150
    assert np.mean(found) == pytest.approx(slope * (half - 1), rel=0.15)


def test_an_elbo_that_was_found_flat_is_not_rising():
    falling = list(range(20, 0, -1))
    assert records(falling).still_rising == pytest.approx(9.0)
    assert records(falling, is_flat=True).still_rising is None
    assert records([2.0, 1.0]).still_rising == 1.0
    assert records([1.0]).still_rising is None
    assert History().still_rising is None


def overfitting(**options):
    """A wide pair on a dozen binary patterns of pure noise."""
    pyro.set_rng_seed(1)
    noise = torch.bernoulli(torch.full((40, 12), 0.5))
    model, guide = VAE(12, 4, hidden_dims=(64,)), MeanField(4, 12, hidden_dims=(64,))
    options = {"num_epochs": 150, "lr": 0.01, "progress": False} | options
    history = fit(model, guide, noise[:12], held_out=noise[12:], **options)
    return model, guide, history, noise[12:]


def test_the_best_epoch_on_held_out_data_is_kept():
    snapshots = []
    model, guide, history, held_out = overfitting(on_snapshot=snapshots.append, snapshot_every=75)
    losses = [record.held_out_loss for record in history.epochs]
    assert history.best_epoch == 1 + int(np.argmin(losses))
    assert losses[-1] > min(losses) + 1  # the twin: the last epoch is worse
    terms = log_prob_terms(model, guide, held_out, 2000)
    exact = -terms.log_w.mean().item()
    assert exact == pytest.approx(min(losses), abs=0.3)
    assert f"epoch {history.best_epoch}" in str(history)
    assert history.best_epoch < snapshots[0].meta["position"]["epoch"]
    *resumed, _, _ = overfitting(resume_from=snapshots[0])  # where none is as good any more
    assert torch.equal(weights_of(*resumed), weights_of(model, guide))


def test_a_number_of_steps_may_end_within_an_epoch():
    """The last record has the steps that were taken, and their mean loss."""
    history = fit(normal_model, normal_guide, DATA, num_steps=5, batch_size=64, progress=False)
    assert [record.num_steps for record in history.epochs] == [4, 1]
    assert history.train_loss[1] == pytest.approx(history.train_loss[0], rel=0.5)
    with pytest.raises(ValueError, match="num_epochs or num_steps, got both"):
        fit(normal_model, normal_guide, DATA, num_steps=5, num_epochs=1, progress=False)


def test_held_out_data_end_training_early():
    *_, history, _ = overfitting(num_epochs=None, until=UntilFlat(steps_per_look=10))
    assert history.epochs[-1].is_flat
    assert len(history.epochs) < 300


class Stop(Exception):  # noqa: N818
    pass


WAYS = {
    "until flat": {"num_epochs": None, "until": UntilFlat(20), "max_steps": 400},
    "a number of steps": {"num_epochs": None, "num_steps": 20},
    "averages": {
        "num_epochs": None,
        "until": UntilConverged(tolerance=0.1, most=9.0),
        "max_steps": 300,
    },
    "held out": {"num_epochs": 20, "held_out": X[40:]},
    "held out until flat": {
        "num_epochs": None,
        "until": UntilFlat(8),
        "max_steps": 300,
        "held_out": X[40:],
    },
    "AdamW": {"optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.1)},
    "SGD": {"optimizer": functools.partial(torch.optim.SGD, momentum=0.9)},
    "plain SGD": {"optimizer": torch.optim.SGD},
    "RMSprop": {"optimizer": functools.partial(torch.optim.RMSprop, momentum=0.5, centered=True)},
    "one cycle": {
        "scheduler": functools.partial(
            torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=30
        )
    },
    "cosine": {"scheduler": functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=7)},
    "plateau": {
        "scheduler": functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0)
    },
}


@pytest.mark.filterwarnings("ignore::evidence.inference.NotConvergedWarning")
@pytest.mark.parametrize("stop_at", [3, 17])
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train_is_resumed_bit_identically(way, stop_at):
    options = {"num_epochs": 8, "batch_size": 16, "lr": 0.01, "progress": False} | WAYS[way]

    def run(**more):
        model, guide = pair()
        history = fit(model, guide, X[:40], **options, **more)
        return weights_of(model, guide), history

    snapshots = []

    def interrupt(snapshot):
        snapshots.append(snapshot)
        if len(snapshots) == stop_at:
            raise Stop

    weights, whole = run()
    with pytest.raises(Stop):
        run(snapshot_every=1, on_snapshot=interrupt)
    resumed, history = run(resume_from=snapshots[-1])
    assert torch.equal(resumed, weights)
    assert history.train_loss == whole.train_loss
    assert [record.lr for record in history.epochs] == [record.lr for record in whole.epochs]
    assert history.epochs[-1].is_flat == whole.epochs[-1].is_flat


def test_more_epochs_go_on_from_the_last_parameters_and_not_from_the_best():
    snapshots = []
    overfitting(num_epochs=100, on_snapshot=snapshots.append)
    _, _, resumed, _ = overfitting(num_epochs=150, resume_from=snapshots[-1])
    *_, whole, _ = overfitting(num_epochs=150)
    assert resumed.train_loss == whole.train_loss
