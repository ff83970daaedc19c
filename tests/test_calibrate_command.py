"""`evidence calibrate`: ranks, bands and coverage of trained runs, and their verdicts."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.experiments.cli import main
from evidence.experiments.commands import calibrate
from evidence.experiments.reports import plots, plots_posterior
from evidence.inference.diagnostics.calibration import (
    LOG_P_X,
    LOG_Q_Z,
    Calibration,
    simulation_based_calibration,
)
from tests.test_cli import refused, run
from tests.test_weights import exact_guide

DRAWN = True

MODEL = ["--model", "LinearGaussian(latent_dim=2)", "--data", "toy"]
FIT = ["--num_epochs", "3", "--lr", "0.02"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """One run, which tests copy."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(folder)
    return folder


@pytest.fixture
def trained(once):
    return shutil.copytree(once, "run")


def train(out, guide="MeanField", *more):
    run("train", *MODEL, *FIT, "--guide", guide, "--out", out, *more)


def document(folder):
    return json.loads((Path(folder) / "calibration.json").read_text())


def by_name(folder):
    return {q["quantity"]: q for q in document(folder)["quantities"]}


def correlated(x=None, size=None):
    """Two latents whose posterior has the correlation −0.96: x is their sum."""
    with pyro.plate("data", size if x is None else len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 0.2).to_event(1), obs=x)


def mean_field(x):
    """The factorized Gaussian of least KL(q ‖ p): right means, variances of the conditionals."""
    with pyro.plate("data", len(x)):
        loc = (x / 2.04).expand(-1, 2)
        pyro.sample("z", dist.Normal(loc, torch.tensor(26.0).double() ** -0.5).to_event(1))


def document_of(found, label="guide"):
    quantities = calibrate._quantities(found, 1 - 0.01 / len(found.ranks))
    filled = {
        "label": label,
        "num_simulations": found.num_simulations,
        "quantities": quantities,
        "coverage": calibrate._coverage(found),
    }
    return filled | {"verdict": calibrate._verdict(filled)}


def test_mean_field_on_a_correlated_posterior_is_flagged():
    found = document_of(simulation_based_calibration(correlated, mean_field, num_simulations=500))
    assert not any(q["inside"] for q in found["quantities"] if q["quantity"].startswith("z"))
    assert "NOT CALIBRATED" in found["verdict"]
    assert "too narrow or misplaced" in found["verdict"]


def test_an_exact_guide_is_not_flagged(oracle):
    for seed in range(3):
        found = document_of(
            simulation_based_calibration(
                oracle, exact_guide(oracle), num_simulations=300, seed=seed
            )
        )
        assert all(q["inside"] for q in found["quantities"])
        assert "no miscalibration found in 300 simulations: all 5" in found["verdict"]


def test_only_the_likelihood_outside_is_said_in_words(oracle):
    def prior(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", oracle.prior())

    found = document_of(simulation_based_calibration(oracle, prior))
    assert "do not fit their data" in found["verdict"]


def test_the_command_writes_what_it_prints(trained, capsys):
    capsys.readouterr()
    run("calibrate", "run", "--num_simulations", 200, "--num_draws", 19, "--seed", 3)
    out = capsys.readouterr().out
    found = document("run")
    assert (found["version"], found["command"]) == (1, "calibrate")
    assert (found["num_simulations"], found["num_draws"], found["seed"]) == (200, 19, 3)
    names = [q["quantity"] for q in found["quantities"]]
    assert sorted(names[:2]) == ["z[0]", "z[1]"]
    assert names[2:] == [LOG_P_X, LOG_Q_Z]
    for quantity in found["quantities"]:
        assert sum(quantity["rank_counts"]) == 200
        low, high = quantity["band"]
        assert low < 0 < high
        assert 0 <= quantity["p_value"] <= 1
        assert [part["nominal"] for part in quantity["central_coverage"]] == [0.5, 0.9]
        assert f"{quantity['largest_deviation']:+.3f}" in out
    assert [row["nominal"] for row in found["coverage"]] == [0.5, 0.8, 0.9, 0.95]
    assert out.rstrip().endswith(found["verdict"])
    assert "covered at 50%" in out
    assert "wrote run: calibration.json, calibration.png" in out
    assert Path("run/calibration.png").stat().st_size > 10_000
    first = found["quantities"]
    run("calibrate", "run", "--num_simulations", 200, "--num_draws", 19, "--seed", 3)
    assert document("run")["quantities"] == first


def test_binary_data_and_several_sites_are_simulated_as_the_guide_expects_them(capsys):
    model = "VAE(latent_dim=14, hidden_dims=[8])"
    run("train", "--model", model, "--num_epochs", 1, "--out", "vae")
    options = ["--num_simulations", 60, "--num_draws", 19]
    run("calibrate", "vae", *options)
    out = capsys.readouterr().out
    assert "The worst 12 of 14 latents" in out
    assert out.count("| z[") == 12
    assert len(document("vae")["quantities"]) == 16
    levels = "HierarchicalVAE(latent_dims=[2, 2], hidden_dims=[8])"
    run("train", "--model", levels, "--num_epochs", 1, "--guide", "Hierarchical", "--out", "h")
    run("calibrate", "h", *options)
    assert len(by_name("h")) == 6


def test_numbers_are_those_of_the_ranks():
    """Ranks of half the simulations at 0, half at the top: a deviation of half, none covered."""
    ranks = torch.tensor([0, 99]).repeat(100)
    uniform = torch.arange(100).repeat(2)
    found = document_of(Calibration({"z": ranks, LOG_P_X: uniform, LOG_Q_Z: uniform}, 99))
    z, log_p, _ = found["quantities"]
    assert abs(z["largest_deviation"]) == pytest.approx(0.49)
    assert z["at_ranks_below"] in (1, 99)
    assert [part["estimate"] for part in z["central_coverage"]] == [0.0, 0.0]
    assert log_p["largest_deviation"] == pytest.approx(0.0, abs=1e-12)
    for part in log_p["central_coverage"]:
        assert part["estimate"] == pytest.approx(part["nominal"])
    assert [q["inside"] for q in found["quantities"]] == [False, True, True]
    assert "off in place or shape, not in size" in found["verdict"]


def test_curves_of_the_picture_are_the_ranks():
    generator = np.random.default_rng(0)
    names = [*(f"z[{i}]" for i in range(7)), LOG_P_X, LOG_Q_Z]
    ranks = {name: torch.from_numpy(generator.integers(0, 20, 100)) for name in names}
    ranks["z[5]"] = torch.zeros(100, dtype=torch.long)
    found = Calibration(ranks, 19)
    filled = document_of(found) | {"level_of_each": 0.999}
    left, right = plots_posterior.calibration(found, filled).axes
    curves = {line.get_label(): line for line in left.lines}
    assert "z[5]" in curves
    assert len([name for name in curves if name.startswith("z")]) == 4
    points = np.arange(1, 20) / 20
    assert np.allclose(curves[LOG_P_X].get_ydata(), found.ecdf(LOG_P_X) - points)
    assert "1 of 7 latents outside the band; the worst 4 shown" in left.get_title()
    (coverage,) = [line for line in right.lines if line.get_label() == "coverage"]
    assert np.allclose(coverage.get_ydata(), found.coverage(points).estimate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num_simulations", "0"], "expected --num_simulations of at least 1, got 0"),
        (["--num_draws", "9"], "expected --num_draws of at least 19, got 9"),
        (["--num_simulation", "9"], "did you mean --num_simulations?"),
    ],
)
def test_bad_options_get_one_line(trained, capsys, options, message):
    capsys.readouterr()
    assert message in refused(capsys, "calibrate", "run", *options)
    assert not Path("run/calibration.json").exists()


def test_runs_that_cannot_be_calibrated_are_named(trained, capsys):
    assert "is no run folder" in refused(capsys, "calibrate", "nowhere")
    run("train", "--model", "Autoencoder", "--guide", "Delta", "--num_epochs", 1, "--out", "ae")
    assert "no prior" in refused(capsys, "calibrate", "ae")
    train("un", "Unamortized(guide=MeanField)", "--frozen_model", "run")
    assert "knows no other data than its own" in refused(capsys, "calibrate", "un")
    assert {path.name for path in Path("un").iterdir()}.isdisjoint({"calibration.png"})


def test_an_interrupted_calibration_leaves_nothing(trained, capsys, monkeypatch):
    before = sorted(Path("run").iterdir())

    def interrupt(figure, path):
        path.write_text("half a picture")
        raise KeyboardInterrupt

    monkeypatch.setattr(plots, "save", interrupt)
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", "run", "--num_simulations", "20"])
    assert stop.value.code == 130
    assert "nothing was written" in capsys.readouterr().err
    assert sorted(Path("run").iterdir()) == before
