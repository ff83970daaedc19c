"""`marginal`, `compare --models` and `bench` on models whose evidence is known."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from evidence.experiments.commands import bench as bench_command
from evidence.experiments.commands import marginal as marginal_command
from evidence.experiments.setup.prior_scales import PriorScales
from evidence.experiments.setup.trials import Scorecard, Trial
from evidence.inference import nested_evidence
from evidence.inference.model_choice import marginal_likelihood as marginal_likelihood_module
from tests.test_cli import refused, run

MODELS = """
import pyro, pyro.distributions as dist, torch
from evidence.inference import from_log_weights

def wide(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

def zero(y):
    nu = pyro.sample("nu", dist.Normal(0.0, 0.1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(nu, 1.0), obs=y)

def share(y):
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(p, 1.0), obs=y)

def trained(y):
    pyro.param("loc", torch.tensor(0.0))
    wide(y)

def right(model, data, seed):
    torch.manual_seed(seed)
    return from_log_weights(-310.12829 + 0.1 * torch.randn(1000, 1))["iw"]

def number(model, data, seed):
    return 3.0

def failing(model, data, seed):
    raise ValueError("cannot")
"""
Y = np.array([1.1, 0.4, 2.0, 1.3, 0.9, 1.8, 0.2, 1.5])


@pytest.fixture(autouse=True)
def in_a_folder_with_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MODELS)
    Path("y.csv").write_text("y\n" + "\n".join(map(str, Y)) + "\n")


def exact(scale):
    covariance = np.eye(len(Y)) + scale**2
    return stats.multivariate_normal(np.zeros(len(Y)), covariance).logpdf(Y)


DATA = ["--data", "y.csv", "--max_rounds", "1"]


def test_models_are_compared_by_numbers_that_are_right(capsys):
    models = ["--models", "mine.py:wide", "mine.py:zero"]
    run("marginal", *models, *DATA, "--prior_scale", "mu=0.5,1,2", "--out", "found")
    out = capsys.readouterr().out
    assert "evidence for mine.py:wide" in out
    assert "P(model)" in out
    assert "Prior sensitivity: the prior of mu stretched" in out
    assert Path("found/table.md").read_text().strip() in out
    assert Path("found/marginal.png").exists()
    document = json.loads(Path("found/results.json").read_text())
    rows = {row["model"]: row for row in document["rows"]}
    for name, scale in (("mine.py:wide", 2.0), ("mine.py:zero", 0.1)):
        row = rows[name]
        assert row["not_reliable"] is None
        assert row["se"] <= 0.05
        assert abs(row["log_ml"] - exact(scale)) < 4 * row["se"]
        assert {one["estimator"] for one in row["estimates"]} >= {"smc", "iw"}
        assert all(one["unit"] == "data set" for one in row["estimates"])
    for at in document["prior_scales"]["mu"]:
        log_ml, se = at["log_ml"]["mine.py:wide"]
        assert abs(log_ml - exact(2.0 * at["factor"])) < 4 * se
        assert at["log_ml"]["mine.py:zero"][0] == rows["mine.py:zero"]["log_ml"]


def test_nested_sampling_stands_beside_the_others(capsys, monkeypatch):
    few = partial(nested_evidence, num_live=30)
    monkeypatch.setattr(marginal_likelihood_module, "nested_evidence", few)
    run("marginal", "--models", "mine.py:wide", *DATA, "--nested", "true", "--out", "found")
    assert "(nested)" in capsys.readouterr().out
    (row,) = json.loads(Path("found/results.json").read_text())["rows"]
    (found,) = [one for one in row["estimates"] if one["estimator"] == "nested"]
    assert abs(found["nats"] - exact(2.0)) < 4 * found["mc_se"] < 2


def test_compare_takes_models_too(capsys):
    run("compare", "--models", "mine.py:wide", "mine.py:zero", "--data", "y.csv", "--out", "found")
    assert "evidence for mine.py:wide" in capsys.readouterr().out
    assert json.loads(Path("found/results.json").read_text())["command"] == "marginal"


def test_what_cannot_be_done_is_said_in_one_line(capsys):
    def says(*words):
        return refused(capsys, "marginal", *words)

    assert "one or more different --models, got none" in says(*DATA)
    assert "different --models" in says("--models", "mine.py:wide", "mine.py:wide", *DATA)
    wide = ["--models", "mine.py:wide", *DATA]
    assert "parameters that are to be trained" in says("--models", "mine.py:trained", *DATA)
    assert "--prior_scale SITE=FACTOR" in says(*wide, "--prior_scale", "mu")
    assert "factors > 0, got 'mu=0,1'" in says(*wide, "--prior_scale", "mu=0,1")
    assert "is a file" in says(*wide, "--out", "y.csv")
    assert "--max_rounds of at least 1" in says("--models", "mine.py:wide", "--max_rounds", "0")
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("model", "scale", "words"),
    [("wide", "tau=1,2", "no model has a latent 'tau'"), ("share", "p=1,2", "which has no scale")],
)
def test_priors_that_cannot_be_stretched(model, scale, words, capsys, monkeypatch):
    """Which is known before anything is estimated."""
    monkeypatch.setattr(marginal_command, "marginal_likelihood", None)
    options = ["--models", f"mine.py:{model}", *DATA, "--prior_scale", scale]
    assert words in refused(capsys, "marginal", *options)
    assert not Path("runs").exists()


def test_prior_scales_are_read():
    assert PriorScales.parse("tau=2,0.5,1") == PriorScales("tau", (0.5, 1.0, 2.0))


def test_the_bench_tries_an_own_estimator_and_goes_on(capsys, monkeypatch):
    words = ["--estimators", "mine.py:right", "mine.py:failing", "--problems", "pines"]
    run("bench", *words, "--seeds", "2", "--out", "found")
    out = capsys.readouterr().out
    assert "2 seeds" in out
    document = json.loads(Path("found/bench.json").read_text())
    assert len(document["trials"]) == 4
    by = {(one["estimator"], one["seed"]): one for one in document["trials"]}
    assert by["mine.py:right", 1]["not_reliable"] is None
    assert abs(by["mine.py:right", 1]["nats"] - by["mine.py:right", 1]["exact"]) < 0.02
    assert by["mine.py:failing", 0]["not_reliable"] == "cannot"
    assert Path("found/bench.png").exists()
    tried = []
    trial = bench_command.trial
    monkeypatch.setattr(bench_command, "trial", lambda *a: tried.append(a[3]) or trial(*a))
    run("bench", *words, "--seeds", "3", "--out", "found")
    assert tried == [2, 2]


def test_the_bench_says_what_it_cannot_try(capsys, monkeypatch):
    def says(*words):
        return refused(capsys, "bench", *words)

    assert "unknown problem" in says("--problems", "pine")
    assert "unknown estimator" in says("--problems", "pines", "--estimators", "smcc")
    one = ["--problems", "pines", "--seeds", "1", "--out", "found"]
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "dynesty", None)
        assert "evidence[nested]" in says(*one, "--estimators", "nested")
    run("bench", *one, "--estimators", "mine.py:number")
    (trial,) = json.loads(Path("found/bench.json").read_text())["trials"]
    assert "return an Evidence, got float" in trial["not_reliable"]
    Path("found/bench.json").write_text("{}")
    assert "bench.json" in says(*one, "--estimators", "mine.py:right")


def a_trial(error, se=0.1, reason=None, seed=0):
    return Trial("pines", "iw", seed, -310.0, -310.0 + error, se, reason, 100, 1.0)


def test_a_scorecard_says_whether_the_bar_is_true():
    trials = [a_trial(e) for e in (0.05, -0.1, 0.25, -0.5)] + [a_trial(2.0, reason="k̂")]
    card = Scorecard(trials)
    assert card.share_reliable == 0.8
    assert card.coverage == 0.5
    assert card.bias == pytest.approx((0.5 - 1 + 2.5 - 5) / 4)
    assert card.silent_misses == 1
    assert card.rmse == pytest.approx(math.sqrt((0.0025 + 0.01 + 0.0625 + 0.25 + 4) / 5))
    none = Scorecard([a_trial(2.0, reason="k̂")])
    assert math.isnan(none.coverage)
    assert none.silent_misses == 0
