"""Results accumulate by what made them, and are set aside when the weights change."""

import shutil
from pathlib import Path

import pytest

from evidence.experiments.cli import main
from evidence.experiments.commands import compare
from evidence.experiments.storage import checkpoints, per_datum, schema
from evidence.experiments.storage.records import Row
from tests.test_cli import refused, results, run

MODEL = ["--model", "LinearGaussian(latent_dim=1)", "--data", "toy", "--batch_size", 900]
FIT = [*MODEL, "--num_epochs", 2, "--out", "run"]
LONGER = [*MODEL, "--num_epochs", 3, "--out", "run", "--resume", "true"]
FEW = ["--num_data", 5, "--num_chains", 3, "--num_temperatures", 4, "--num_leapfrog_steps", 1]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", *FIT[:-1], folder)
    return folder


@pytest.fixture(autouse=True)
def trained(once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, "run")


def row():
    return results("run")["rows"][0]


def evaluations():
    return [
        (
            one["made_by"]["command"],
            one["made_by"].get("estimator"),
            one["made_by"]["num_particles"],
        )
        for one in row()["evaluations"]
    ]


def nats(evaluation):
    return {e["estimator"]: e["nats"] for e in evaluation["estimates"]}


def test_every_evaluation_stays_with_what_made_it():
    commands = {
        ("evaluate", "iw", 9): ["evaluate", "run", *FEW, "--num_particles", 9],
        ("evaluate", "elbo", 9): [
            "evaluate",
            "run",
            *FEW,
            "--num_particles",
            9,
            "--estimator",
            "elbo",
        ],
        ("evaluate", "iw", 12): ["evaluate", "run", *FEW, "--num_particles", 12],
        ("evaluate", "ais", 9): [
            "evaluate",
            "run",
            *FEW,
            "--num_particles",
            9,
            "--estimator",
            "ais",
        ],
        ("evaluate", "bdmc", 9): [
            "evaluate",
            "run",
            *FEW,
            "--num_particles",
            9,
            "--estimator",
            "bdmc",
        ],
        ("gaps", None, 9): ["gaps", "run", *FEW[:2], "--num_particles", 9, "--max_steps", 2],
    }
    alone = {}
    for key, words in commands.items():
        run(*words)
        alone[key] = row()["evaluations"][-1]
        made_by = alone[key]["made_by"]
        assert made_by["split"] == "test"
        assert made_by["seed"] == 0
        assert made_by["num_data"] == 5
        assert len(made_by["weights_sha256"]) == len(made_by["test_sha256"]) == 64
    assert evaluations() == list(commands)
    assert row()["evaluations"] == list(alone.values())  # nobody touched another's
    assert row()["estimates"] == alone["evaluate", "ais", 9]["estimates"]  # the newest of its kind
    assert row()["gaps"] == alone["gaps", None, 9]["gaps"]
    run(*commands["evaluate", "iw", 9])
    again = row()["evaluations"]
    assert len(again) == len(commands)
    assert nats(again[-1]) == nats(alone["evaluate", "iw", 9])
    assert row()["estimates"] == again[-1]["estimates"]


def test_the_elbo_is_not_read_as_of_other_particles():
    run("evaluate", "run", *FEW, "--num_particles", 9)
    run("evaluate", "run", *FEW, "--num_particles", 12, "--estimator", "elbo")
    assert [nats(one).keys() for one in row()["evaluations"]] == [
        {"elbo", "iw", "exact"},
        {"elbo", "exact"},
    ]


def everything():
    run("evaluate", "run", *FEW, "--num_particles", 9)
    run("gaps", "run", *FEW[:2], "--num_particles", 9, "--max_steps", 2)
    run("calibrate", "run", "--num_simulations", 5, "--num_draws", 19)
    run("export", "run", "--num_draws", 2, "--num_data", 2)
    run("sample", "run", "--num_samples", 2)
    return ["results.json", "per_datum.csv", "gaps.png", "calibration.json", "calibration.png",
            "posterior.nc", "samples"]  # fmt: skip


def test_results_of_earlier_weights_are_set_aside_and_said_so(capsys):
    names, before = everything(), row()
    capsys.readouterr()
    run("train", *LONGER)
    assert "of earlier weights, and so moved to run/earlier/" in capsys.readouterr().out
    (earlier,) = Path("run/earlier").iterdir()
    assert before["weights_sha256"].startswith(earlier.name)
    assert all((earlier / name).exists() for name in names)
    assert schema.parse_signed((earlier / "results.json").read_bytes())["rows"] == [before]
    assert [name for name in names if Path("run", name).exists()] == ["results.json"]
    assert row()["evaluations"] == []
    assert row()["estimates"] == []
    assert row()["num_epochs"] == 3
    run("evaluate", "run", *FEW, "--num_particles", 9)
    (only,) = row()["evaluations"]
    assert only["made_by"]["weights_sha256"] == row()["weights_sha256"] != before["weights_sha256"]


def test_also_where_training_was_cut_short_after_a_checkpoint(monkeypatch, capsys):
    names, save = everything(), checkpoints.save

    def killed(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, "save", killed)
        with pytest.raises(SystemExit):
            main(["train", *map(str, LONGER)])
    capsys.readouterr()
    run("evaluate", "run", *FEW, "--num_particles", 7)
    assert "of earlier weights" in capsys.readouterr().out
    assert evaluations() == [("evaluate", "iw", 7)]
    assert not [name for name in names[2:] if Path("run", name).exists()]


def test_going_on_with_nothing_left_to_train_keeps_everything(capsys):
    names, before = everything(), results("run")
    capsys.readouterr()
    run("train", *FIT, "--resume", "true")
    assert "of earlier weights" not in capsys.readouterr().out
    assert results("run") == before
    assert all(Path("run", name).exists() for name in names)


def test_a_comparison_measures_anew_what_is_no_longer_beside_its_results(monkeypatch):
    command = ["compare", *MODEL, "--num_epochs", 1, "--guides", "MeanField", *FEW[:2]]
    command += ["--num_particles", 9, "--out", "c"]
    run(*command)
    measured, evaluate = [], compare.evaluate_run
    monkeypatch.setattr(compare, "evaluate_run", lambda c: (measured.append(c), evaluate(c))[1])
    run(*command)
    assert not measured
    csv = Path("c/MeanField/per_datum.csv")
    csv.write_text(csv.read_text().replace("1", "2", 1))
    run(*command)
    assert len(measured) == 1
    row = Row.from_json(results("c/MeanField")["rows"][0])
    assert per_datum.is_of(Path("c/MeanField"), row)


def test_gaps_of_one_run_twice_are_refused(capsys):
    assert "expected different runs" in refused(capsys, "gaps", "run", "./run")
