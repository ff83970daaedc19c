"""Training on the command line: until flat, optimizers, held-out data, and what it refuses."""

import json
from pathlib import Path

import pyro.distributions as dist
import pytest
import torch
import yaml

from evidence.experiments.cli import main
from evidence.experiments.config import Train
from evidence.experiments.setup.assembly import assemble, expect_evidence, has_prior
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage import checkpoints
from evidence.experiments.storage.runs import RunFolder
from evidence.guides import MeanField
from evidence.inference import UntilFlat, log_prob_terms
from evidence.inference.training import options
from evidence.models import VAE, Autoencoder
from tests.test_cli import refused, results, run, weights

SMALL = ["--model", "VAE(latent_dim=2, hidden_dims=[8])"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_whose_elbo_was_still_rising_is_said_wherever_its_numbers_are(capsys):
    run("train", *SMALL, "--num_epochs", 8, "--out", "run")
    said = "MeanField: the ELBO was still rising when training ended, by "
    assert said in capsys.readouterr().out
    run("evaluate", "run", "--num_particles", 9)
    assert said in capsys.readouterr().out
    short = ["--num_epochs", 8, "--num_particles", 9, "--out", "cmp"]
    run("compare", *SMALL, "--guides", "MeanField", "FullRank", *short)
    out = capsys.readouterr().out
    assert said in out
    assert "FullRank: the ELBO was still rising" in out
    assert said in Path("cmp/table.md").read_text()


def test_without_a_number_of_epochs_training_is_until_flat(capsys, monkeypatch):
    monkeypatch.setitem(options.USUAL, "until", UntilFlat(4))
    model = ["--model", "LinearGaussian(latent_dim=1)", "--data", "toy", "--guide", "FullRank"]
    run("train", *model, "--lr", 0.05, "--out", "run")
    assert "still rising" not in capsys.readouterr().out
    assert results("run")["rows"][0]["history"][-1]["is_flat"]
    assert yaml.safe_load(Path("run/config.yaml").read_text())["num_epochs"] is None
    run("train", *model, "--max_steps", 99, "--out", "capped")
    said = capsys.readouterr()
    assert "FullRank: max_steps ended training after 1" in said.out
    assert "the ELBO still rising" in said.out
    assert "NotConvergedWarning" not in said.err
    assert not results("capped")["rows"][0]["history"][-1]["is_flat"]


def test_optimizer_and_scheduler_reach_training_and_are_resumed():
    options = [*SMALL, "--optimizer", "AdamW(weight_decay=0.1)"]
    options += ["--scheduler", "CosineAnnealingLR(T_max=4)"]
    run("train", *options, "--num_epochs", 4, "--out", "whole")
    run("train", *options, "--num_epochs", 2, "--out", "run")
    run("train", *options, "--num_epochs", 4, "--out", "run", "--resume", "true")
    assert all(torch.equal(t, weights("run")[n]) for n, t in weights("whole").items())
    rates = [record["lr"] for record in results("whole")["rows"][0]["history"]]
    assert rates == pytest.approx([1e-3, 0.5e-3 * (1 + 0.5**0.5), 0.5e-3, 0.5e-3 * (1 - 0.5**0.5)])
    run("train", *SMALL, "--num_epochs", 4, "--out", "adam")
    assert any(not torch.equal(t, weights("adam")[n]) for n, t in weights("whole").items())


def test_the_weights_of_the_best_epoch_on_held_out_data_are_kept():
    options = [*SMALL, "--binarize", "static", "--held_out", 0.9, "--lr", 0.05]
    run("train", *options, "--num_epochs", 60, "--out", "run")
    losses = [r["held_out_loss"] for r in results("run")["rows"][0]["history"]]
    assert losses[-1] > min(losses)
    assembly, _ = load_run(RunFolder("run"))
    terms = log_prob_terms(assembly.model, assembly.guide, assembly.held_out, 20)
    assert -terms.log_w.mean().item() == pytest.approx(min(losses), abs=0.05)
    assert len(assembly.x_train) + len(assembly.held_out) == 1437


def test_held_out_data_are_no_training_data():
    whole = assemble(Train(binarize="threshold", held_out=0.0)).x_train
    parts = assemble(Train(binarize="threshold", held_out=0.25))
    both = torch.cat([parts.x_train, parts.held_out])
    assert len(parts.held_out) == round(0.25 * len(whole))
    assert torch.equal(both.sum(0), whole.sum(0))
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, whole.tolist()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--clip_norm", ".nan"], "expected a finite clip_norm > 0 or None, got nan"),
        (["--clip_norm", ".inf"], "expected a finite clip_norm > 0 or None, got inf"),
        (["--kl_warmup_epochs", ".inf"], "expected a finite kl_warmup_epochs >= 0, got inf"),
        (["--kl_warmup_epochs", ".nan"], "expected a finite kl_warmup_epochs >= 0, got nan"),
        (["--likelihood_warmup_epochs", ".nan"], "finite likelihood_warmup_epochs >= 0, got nan"),
        (["--lr_decay", "1e200"], "factor lr_decay > 0 of at most 1, got 1e+200"),
        (["--lr_decay", ".nan"], "factor lr_decay > 0 of at most 1, got nan"),
        (["--lr_decay", "1.5"], "factor lr_decay > 0 of at most 1, got 1.5"),
        (["--lr", ".inf"], "expected a finite lr > 0, got inf"),
        (["--lr", "1e38"], "lower the learning rate (lr = 1e+38)"),
        (["--max_steps", "0"], "max_steps of at least 1, got 0"),
        (["--optimizer", "AdamX"], "unknown optimizer 'AdamX'"),
        (["--optimizer", "AdamW(decay=1)"], "unknown option of the optimizer AdamW 'decay'"),
        (["--optimizer", "AdamW(weight_decay=-1)"], "Invalid weight_decay value: -1"),
        (["--optimizer", "AdamW(weight_decay=much)"], "AdamW(weight_decay='much'): "),
        (["--optimizer", "SGD(lr=0.1)"], "expected the learning rate of SGD as --lr"),
        (["--optimizer", "LBFGS"], "LBFGS"),
        (["--optimizer", "SparseAdam"], "SparseAdam"),
        (["--scheduler", "StepLR"], "StepLR: "),
        (["--scheduler", "CosineLR(T_max=3)"], "unknown scheduler 'CosineLR'"),
        (["--held_out", "1"], "share of at least 0, below 1, got 1"),
        (["--held_out", ".nan"], "share of at least 0, below 1, got nan"),
        (["--held_out", "0.1", "--guide", "Unamortized(guide=MeanField)"], "--held_out"),
        (["--guide", "Refined(guide=Unamortized(guide=MeanField))"], "no encoder to train a model"),
        (["--lr_decay", "0.9", "--scheduler", "ExponentialLR(gamma=0.9)"], "got both"),
    ],
)
def test_bad_options_get_one_line_and_leave_nothing(capsys, options, message):
    text = refused(capsys, "train", *SMALL, "--num_epochs", 1, *options, "--out", "run")
    assert message in text
    assert checkpoints.newest(Path("run/checkpoints")) is None
    assert not Path("run").exists()


@pytest.mark.parametrize(
    "guide", ["Unamortized(guide=MeanField)", "Refined(guide=Unamortized(guide=MeanField))"]
)
def test_guides_of_their_data_alone_serve_a_model_that_learns_nothing(guide):
    """They are fitted to the data that they are evaluated on, also inside another guide."""
    model = ["--model", "BayesianLinearRegression", "--data", "simulated"]
    run("train", *model, "--guide", guide, "--max_steps", 2, "--out", "run")
    run("evaluate", "run", "--num_data", 5, "--num_particles", 100)
    estimates = {one["estimator"]: one["nats"] for one in results("run")["rows"][0]["estimates"]}
    assert estimates["elbo"] < estimates["exact"]


def test_a_model_without_a_prior_is_known_by_its_prior():
    class Flat(VAE):
        def prior(self):
            return dist.ImproperUniform(dist.constraints.real_vector, (), (2,))

    x = torch.zeros(3, 8)
    assert [has_prior(m) for m in (VAE(8, 2), Flat(8, 2), Autoencoder(8, 2))] == [
        True,
        False,
        False,
    ]
    expect_evidence(VAE(8, 2), MeanField(2, 8), x)
    with pytest.raises(ValueError, match="Flat has no prior"):
        expect_evidence(Flat(8, 2), MeanField(2, 8), x)


def test_a_moment_of_another_shape_with_a_right_checksum_is_refused(capsys):
    run("train", *SMALL, "--num_epochs", 1, "--out", "run")
    path = checkpoints.newest(Path("run/checkpoints"))
    snapshot, meta = checkpoints.load(path)
    name = next(n for n in snapshot.tensors if n.endswith("/exp_avg"))
    snapshot.tensors[name] = snapshot.tensors[name].flatten()[:1].clone()
    for file in path.iterdir():
        file.unlink()
    path.rmdir()
    context = {k: v for k, v in meta.items() if k not in ("format", "tensors_sha256", "snapshot")}
    checkpoints.save(path.parent, snapshot, context)
    text = refused(capsys, "train", *SMALL, "--num_epochs", 2, "--out", "run", "--resume", "true")
    assert f"is of another optimizer: expected {name} " in text
    assert json.loads((path / "meta.json").read_text())["snapshot"]["position"]["epoch"] == 1


def test_help_says_what_the_default_is(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "until the ELBO" in " ".join(capsys.readouterr().out.split())
