"""Any torch optimizer and scheduler, what they are restored from, and updates that ruin."""

import functools
import math

import pyro
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR

from evidence.guides import MeanField
from evidence.inference import NonFiniteLossError, Snapshot, restore_tensors
from evidence.inference.training.optimizer import (
    JointOptim,
    describe_maker,
    fused_adam,
    joint_norm,
)
from evidence.models import VAE
from tests.test_training import X, pair, quick, weights_of


def optim_after_a_step(**options):
    torch.manual_seed(0)
    parameters = {"w": torch.randn(3, 2, requires_grad=True), "b": torch.randn(2).requires_grad_()}
    optim = JointOptim(parameters, lr=0.1, **options)
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    optim()
    return parameters, optim


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(torch.optim.AdamW, weight_decay=0.5),
        functools.partial(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
        torch.optim.Adagrad,
        torch.optim.NAdam,
    ],
)
def test_an_update_is_that_of_the_optimizer(make):
    """Against torch's own, on copies."""
    parameters, _ = optim_after_a_step(make=make)
    torch.manual_seed(0)
    copies = [torch.randn(3, 2, requires_grad=True), torch.randn(2).requires_grad_()]
    own = make(copies, lr=0.1)
    for copy in copies:
        copy.grad = torch.ones_like(copy)
    own.step()
    assert all(torch.equal(a, b) for a, b in zip(parameters.values(), copies, strict=True))


def test_weight_decay_reaches_training():
    norms = {}
    for decay in (0.0, 5.0):
        model, guide = pair()
        make = functools.partial(torch.optim.AdamW, weight_decay=decay)
        quick(model, guide, num_epochs=10, optimizer=make)
        norms[decay] = weights_of(model, guide).norm()
    assert norms[5.0] < 0.7 * norms[0.0]


@pytest.mark.parametrize(
    ("ruin", "message"),
    [
        (lambda s: s | {"w/exp_avg": s["w/exp_avg"][:1]}, r"w/exp_avg of shape \(3, 2\)"),
        (lambda s: s | {"w/exp_avg": s["w/exp_avg"].double()}, "torch.float32, got .*float64"),
        (lambda s: s | {"w/step": torch.zeros(9)}, "w/step of shape"),
        (lambda s: s | {"w/other": torch.zeros(3, 2)}, "w/other is on one side only"),
        (lambda s: s | {"v/step": torch.zeros(())}, "v/step is on one side only"),
        (lambda s: s | {"nothing": torch.zeros(())}, "nothing is on one side only"),
        (lambda s: {n: t for n, t in s.items() if n != "b/exp_avg_sq"}, "b/exp_avg_sq is on one"),
    ],
)
def test_a_state_of_another_form_is_refused_and_changes_nothing(ruin, message):
    _, optim = optim_after_a_step()
    before = {name: value.clone() for name, value in optim.get_state().items()}
    with pytest.raises(ValueError, match=message):
        optim.set_state(ruin(before))
    after = optim.get_state()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    optim.set_state(before)


@pytest.mark.parametrize(
    ("name", "ruin"),
    [
        ("optimizer.model.decoder.0.weight/exp_avg", lambda t: t[:1].clone()),
        ("optimizer.model.decoder.0.weight/exp_avg", lambda t: t.double()),
        ("model.decoder.0.weight", lambda t: t.double()),
        ("model.decoder.0.weight", lambda t: t.T.clone()),
        ("rng.torch", lambda t: t[:10].clone()),
        ("rng.numpy_keys", lambda t: t[:10].clone()),
        ("rng.python_words", lambda t: t.float()),
    ],
)
def test_a_ruined_snapshot_is_refused_before_any_of_it_is_used(name, ruin):
    snapshots = []
    quick(*pair(), on_snapshot=snapshots.append)
    tensors = snapshots[-1].tensors
    ruined = Snapshot(tensors | {name: ruin(tensors[name])}, snapshots[-1].meta)
    model, guide = pair()
    before, outside = weights_of(model, guide), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"snapshot"):
        quick(model, guide, resume_from=ruined)
    assert torch.equal(weights_of(model, guide), before)
    assert torch.equal(torch.get_rng_state(), outside)
    if name.startswith("model"):
        with pytest.raises(ValueError, match="another model"):
            restore_tensors(ruined, model=model)


@pytest.mark.parametrize(
    "position",
    [
        {},
        {"epoch": 3},
        {"epoch": 9, "step": 0, "loss_sum": 0.0, "seconds": 0.0, "history": []},
        None,
    ],
)
def test_a_snapshot_that_does_not_say_where_it_was_is_refused(position):
    snapshots = []
    quick(*pair(), on_snapshot=snapshots.append)
    ruined = Snapshot(snapshots[-1].tensors, snapshots[-1].meta | {"position": position})
    with pytest.raises(ValueError, match="where its run was"):
        quick(*pair(), resume_from=ruined)


def test_an_optimizer_of_another_kind_is_another_run():
    snapshots = []
    quick(*pair(), on_snapshot=snapshots.append)
    with pytest.raises(ValueError, match=r"optimizer SGD \(was Adam\(fused=True\)\)"):
        quick(*pair(), optimizer=torch.optim.SGD, resume_from=snapshots[-1])
    assert describe_maker(fused_adam) == "Adam(fused=True)"


def test_optimizers_that_evaluate_the_loss_are_refused():
    with pytest.raises(ValueError, match="got LBFGS, which evaluates the loss by itself"):
        quick(*pair(), optimizer=torch.optim.LBFGS)


def test_a_scheduler_sets_the_learning_rate_of_each_epoch():
    rates = [
        [record.lr for record in quick(*pair(), num_epochs=6, **options).epochs]
        for options in (
            {"scheduler": functools.partial(CosineAnnealingLR, T_max=5)},
            {"scheduler": functools.partial(ExponentialLR, gamma=0.5)},
            {"lr_decay": 0.5},
        )
    ]
    cosine = [0.005 * (1 + math.cos(math.pi * n / 5)) for n in range(6)]
    assert rates[0] == pytest.approx(cosine, abs=1e-9)
    assert rates[1] == pytest.approx([0.01 * 0.5**n for n in range(6)])
    assert rates[2] == pytest.approx(rates[1])
    with pytest.raises(ValueError, match="lr_decay or a scheduler, got both"):
        quick(*pair(), lr_decay=0.5, scheduler=functools.partial(ExponentialLR, gamma=0.5))


@pytest.mark.parametrize("batch_size", [16, 60])
def test_the_last_update_is_checked_before_it_is_kept(batch_size):
    """A learning rate near the largest float: one step, and the weights are NaN or infinite."""
    pyro.set_rng_seed(1)
    model, guide = VAE(12, 2, hidden_dims=(16,)), MeanField(2, 12, hidden_dims=(16,))
    seen = []
    with pytest.raises(NonFiniteLossError, match=r"lower the learning rate \(lr = 1e\+38\)"):
        quick(
            model,
            guide,
            X[:batch_size],
            lr=1e38,
            num_epochs=1,
            batch_size=60,
            on_snapshot=seen.append,
        )
    assert seen == []


def test_a_last_update_that_leaves_finite_weights_and_no_loss_is_found():
    model, guide = pair(likelihood="gaussian")
    seen = []
    with pytest.raises(NonFiniteLossError, match=r"after the last update|not finite"):
        quick(model, guide, lr=1e30, num_epochs=1, batch_size=60, on_snapshot=seen.append)
    assert seen == []


@pytest.mark.parametrize(
    "dtypes", [[torch.float32], [torch.float64], [torch.float32, torch.float64]]
)
def test_the_joint_norm_is_torchs_to_the_bit(dtypes):
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-30, 1.0, 1e30, math.inf):
        tensors = [
            scale * torch.randn(size, 7, generator=generator).to(dtype)
            for size in (1, 3, 40)
            for dtype in dtypes
        ]
        ours, theirs = joint_norm(tensors), torch.nn.utils.get_total_norm(tensors)
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
