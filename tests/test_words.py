"""The command line as a person types it: flags, hyphens, home folders, files of options."""

from pathlib import Path

import pytest
import yaml

from evidence.experiments.cli import COMMANDS, build_parser
from evidence.experiments.setup.words import at_home, prepared, understandable
from tests.test_cli import QUICK, refused, results, run


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train --resume", "train --resume true"),
        ("train --resume --out x", "train --resume true --out x"),
        ("train --resume false --out x", "train --resume false --out x"),
        ("train --resume=true", "train --resume=true"),
        ("export a b --overwrite", "export a b --overwrite true"),
        ("export --overwrite a b", "export --overwrite true a b"),
        ("train --lr 1 --config a.yaml --seed 2", "train --config=a.yaml --lr 1 --seed 2"),
        ("train --config=a.yaml --config b.yaml", "train --config=a.yaml --config=b.yaml"),
        ("compare --guides A B --config c", "compare --config=c --guides A B"),
        ("train --out --config", "train --out --config"),
        ("guides", "guides"),
        ("--version", "--version"),
        ("", ""),
    ],
)
def test_words_are_put_as_they_are_meant(line, expected):
    assert prepared(line.split(), COMMANDS) == expected.split()


def test_every_boolean_option_may_stand_bare():
    for name, options in {"train": ("resume", "tensorboard"), "export": ("overwrite",)}.items():
        for option in options:
            words = [name, *(["run"] if name == "export" else []), f"--{option}"]
            assert build_parser().parse_args(prepared(words, COMMANDS))[name][option] is True


def test_a_bare_resume_goes_on():
    run("train", *QUICK, "--out", "run")
    run("train", *QUICK[:2], "--num_epochs", 3, "--out", "run", "--resume")
    assert results("run")["rows"][0]["num_epochs"] == 3


def test_home_folders_are_found_however_they_are_written(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run("train", *QUICK, "--num_epochs", 1, "--out=~/run")
    assert (tmp_path / "home/run/results.json").exists()
    assert not Path("~").exists()
    Path("home/o.yaml").write_text("out: ~/from_file\nnum_epochs: 1\n")
    run("train", *QUICK[:2], "--config=~/o.yaml")
    assert (tmp_path / "home/from_file").exists()
    found = at_home({"runs": ["~/a", "b"], "data_root": "~", "lr": 1.0, "model": "~"})
    home = str(tmp_path / "home")
    assert found == {"runs": [f"{home}/a", "b"], "data_root": home, "lr": 1.0, "model": "~"}


@pytest.mark.parametrize("options", [["--config", "o.yaml", "--lr", "0.02"],
                                     ["--lr", "0.02", "--config", "o.yaml"]])  # fmt: skip
def test_options_on_the_command_line_win_wherever_they_stand(options):
    Path("o.yaml").write_text("lr: 0.1\nnum_epochs: 1\n")
    run("train", *QUICK[:2], *options, "--out", "run")
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert (config["lr"], config["num_epochs"]) == (0.02, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--num-epochs", "3"], "(did you mean --num_epochs?)"),
        (["train", "--data-root=x"], "(did you mean --data_root?)"),
        (["train", "3"], "unrecognized arguments: 3: see `evidence train --help`"),
        (["evaluate"], "arguments are required: run\n"),
        (["check"], "arguments are required: model, guide\n"),
        (["gaps"], "arguments are required: runs\n"),
        (["train", "--num_epochs", "x"], 'option "num_epochs": expected a whole number, got x'),
        (["train", "--clip_norm", "x"], 'option "clip_norm": expected a number, got x'),
        (["evaluate", "r", "--num_data", "x"], "expected a whole number, got x"),
        (
            ["train", "--split", "x"],
            'option "split": expected one of auto, test, validation, all, got x',
        ),
        (["train", "--resume=x"], 'option "resume": expected true or false, got x'),
        (["train", "--model", "VAE(**{'latent_dim': 2})"], "expected Name or Name(option=value"),
        (["train", "--model", "Autoencoder"], "use --guide Delta"),
        (["train", "--model", "Autoencoder", "--guide", "Planar"], "such as Planar"),
        (
            ["train", "--model", "BayesianLinearRegression"],
            "expects vectors of N responses, one for each row of the design, got images of 8 × 8",
        ),
        (["train", "--model", "BayesianLogisticRegression"], "vectors of N binary responses"),
    ],
    ids=" ".join,
)
def test_what_a_person_gets_wrong_is_answered_in_the_words_they_used(capsys, words, message):
    assert message in refused(capsys, *words)
    assert not Path("runs").exists()


def test_messages_keep_names_that_only_look_like_a_command():
    assert understandable("cannot read my.train.yaml", COMMANDS) == "cannot read my.train.yaml"
