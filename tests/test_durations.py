"""What a command says beforehand about its duration, and the bars that it shows meanwhile."""

import re

import pytest
import torch

from evidence.experiments.config import Evaluate
from evidence.experiments.setup import durations
from evidence.experiments.setup.durations import evaluation_seconds, told
from evidence.guides import MeanField
from evidence.inference import inference_gaps, simulation_based_calibration, to_arviz
from tests.conftest import make_oracle
from tests.test_cli import QUICK, run

DATA = torch.zeros(50, 10, dtype=torch.float64)


@pytest.fixture
def pair():
    return make_oracle(), MeanField(3, 10, hidden_dims=()).double()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        ((0.2, 0.3), "it will take less than 10 seconds (from a short"),
        ((42.0, 44.0), "it will take about 40 seconds ("),
        ((240.0, 250.0), "it will take about 4 minutes ("),
        ((9000.0, 9000.0), "it will take about 2.5 hours ("),
        ((3.0, 900.0), "between about 10 seconds and 15 minutes, by how much"),
    ],
)
def test_durations_are_told_in_round_numbers(seconds, words):
    assert words in told("it", seconds)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (25.5, 25.5)),  # one second for a datum, half a second for each of 49 more
        (
            {"estimator": "ais", "num_temperatures": 750, "num_leapfrog_steps": 10},
            (1025.5, 10025.5),
        ),
        ({"estimator": "bdmc", "num_temperatures": 750, "num_leapfrog_steps": 1}, (1775.5,) * 2),
        ({"target_se": 0.1, "max_particles": 2000}, (25.5, 255.0)),
    ],
    ids=str,
)
def test_a_short_timing_is_scaled_to_all_data_and_steps(pair, monkeypatch, options, expected):
    seconds = iter([1.0, 5.0, 1.0])  # of one datum, of nine, of a gradient
    monkeypatch.setattr(durations, "_timed", lambda call: (call(), next(seconds))[1])
    config = Evaluate(run="", num_particles=20, **options)
    found = evaluation_seconds(*pair, DATA, config)
    assert found == pytest.approx(expected)


def test_evaluate_and_compare_say_beforehand_how_long_they_take(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["compare", *QUICK, "--guides", "MeanField", "FullRank", "--num_particles", 9]
    run(*command, "--decoder", "frozen", "--out", "c")
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"training and evaluating 2 fits will take (less than|about) \d+", first)
    run(*command, "--decoder", "frozen", "--out", "c")
    assert "will take" not in capsys.readouterr().out  # nothing is left to do
    run("evaluate", "c/MeanField", "--num_particles", 9)
    first = capsys.readouterr().out.splitlines()[0]
    assert re.match(r"evaluating 360 data will take (less than|about) \d+", first)


def test_long_work_shows_how_far_it_is(pair, capsys):
    model, guide = pair
    x = model(None, size=4)
    inference_gaps(model, guide, x, num_particles=10, max_steps=20, progress=True)
    assert "search for q*: 100%" in capsys.readouterr().err
    simulation_based_calibration(model, guide, num_simulations=9, num_draws=9, progress=True)
    assert "100%" in capsys.readouterr().err
    to_arviz(model, guide, x, num_draws=9, num_chains=2, prior=False, progress=True)
    assert "100%" in capsys.readouterr().err
    inference_gaps(model, guide, x, num_particles=10, max_steps=20)
    assert capsys.readouterr().err == ""
