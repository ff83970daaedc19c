"""Damaged and hostile config.yaml, meta.json, results.json and tensors: one line, exit code 2."""

import copy
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load, save

from evidence.experiments.config import Compare, Evaluate, Train
from evidence.experiments.storage import checkpoints, schema
from evidence.inference import anneal
from evidence.inference.programs.random_state import expect_rng_state, rng_state
from tests.conftest import make_oracle
from tests.test_cli import refused, run

TINY = ["--model", "VAE(latent_dim=2, hidden_dims=[4])", "--num_epochs", 2, "--batch_size", 512]
QUICK = ["--num_particles", 2, "--num_data", 3]
RESUME = ["train", *TINY[:2], "--num_epochs", 3, *TINY[4:], "--out", "run", "--resume", "true"]


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", *TINY, "--out", folder)
    run("evaluate", folder, *QUICK)
    return folder


@pytest.fixture
def made(once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, "run")
    return Path("run")


def newest(folder):
    return checkpoints.newest(folder / "checkpoints")


def is_refused_by_all(capsys, expected=""):
    capsys.readouterr()
    for words in (["evaluate", "run", *QUICK], RESUME):
        message = refused(capsys, *words)
        assert re.search(expected, message), message
        assert len(message) < 1000, message
        assert "EVIDENCE_DEBUG" not in message, message  # somebody foresaw it


BOMB = "\n".join(
    [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9 if i else ['x'] * 9)}]" for i in range(9)]
)


def with_value(name, value):
    return lambda text: yaml.safe_dump(yaml.safe_load(text) | {name: value})


YAML = {
    "empty": lambda text: "",
    "null": lambda text: "null",
    "a list": lambda text: "[1, 2]",
    "a number": lambda text: "7",
    "a text": lambda text: "model",
    "binary": lambda text: "\0\1\2",
    "truncated": lambda text: text[: len(text) // 2],
    "truncated in a value": lambda text: text[: text.index("likelihood")],
    "an alias bomb": lambda text: BOMB,
    "an alias": lambda text: text.replace("seed: 0", "seed: &s 0").replace("data: d", "data: *s #"),
    "deep": lambda text: f"{text}deep: {'[' * 500}{']' * 500}",
    "very deep": lambda text: f"{text}deep: {'[' * 30_000}",
    "large": lambda text: text + "#" * 70_000,
    "a key twice": lambda text: f"{text}seed: 0\n",
    "a tag": lambda text: f"{text}x: !!python/object/apply:os.getcwd []\n",
    "another document": lambda text: f"{text}---\nmodel: VAE\n",
    "a merge": lambda text: f"{text}<<: {{seed: 3}}\n",
    "a key that is a list": lambda text: f"{text}? [a, b]\n: 3\n",
    "tabs": lambda text: text.replace(": ", ":\t\t@"),
    "no model": lambda text: re.sub("model: .*\n", "model:\n", text, count=1),
    "an unknown key": with_value("colour", "blue"),
    "a comparison's": with_value("guides", "MeanField"),
    "elu is tanh": lambda text: text.replace("elu", "tanh"),
    "a model of another size": lambda text: text.replace("latent_dim=2", "latent_dim=3"),
    "another split": with_value("split", "validation"),
    "another seed": with_value("seed", 1),
    "other data": with_value("data", "toy"),
    "an unknown split": with_value("split", "training"),
    "negative epochs": with_value("num_epochs", -1),
    "no epochs": with_value("num_epochs", 0),
    "half an epoch": with_value("num_epochs", 1.5),
    "huge epochs": with_value("num_epochs", 10**30),
    "epochs as a text": with_value("num_epochs", "2"),
    "epochs as truth": with_value("num_epochs", True),
    "a batch of null": with_value("batch_size", None),
    "a huge number": lambda text: text.replace("seed: 0", f"seed: {'9' * 5000}"),
    "a NaN": with_value("lr", math.nan),
    "an infinity": with_value("lr", math.inf),
    "a negative rate": with_value("lr", -1.0),
    "a huge decay": with_value("lr_decay", 1e200),
    "a negative seed": with_value("seed", -1),
    "a huge seed": with_value("seed", 2**63),
    "a model that is a list": with_value("model", ["VAE"]),
    "a model that is a mapping": with_value("model", {"class_path": "os.system"}),
    "a model that is a number": with_value("model", 3),
    "a long model": with_value("model", "V" * 20_000),
    "an escape": with_value("model", "VAE\x1b[2J"),
    "a date": with_value("data", "2020-01-01"),
    "an expression": with_value("model", "VAE(latent_dim=" + "(" * 500 + ")"),
    "a call of a call": with_value("model", "VAE()()"),
    "nested minus": with_value("model", "VAE(latent_dim=" + "-" * 3000 + "1)"),
    "nested names": with_value("model", "VAE(likelihood=" + "-".join("a" * 3000) + ")"),
    "no latents": with_value("model", "VAE(latent_dim=0)"),
    "many latents": with_value("model", "VAE(latent_dim=10000000000000)"),
    "no such model": with_value("model", "VEA"),
    "a power": with_value("model", "VAE(latent_dim=9**9**9)"),
    "a device": with_value("device", 3),
    "a folder that is a number": with_value("data_root", 3),
    "tensorboard as a text": with_value("tensorboard", "yes"),
}


@pytest.mark.parametrize("damage", YAML.values(), ids=YAML)
def test_a_damaged_config_is_refused(made, capsys, damage):
    path = made / "config.yaml"
    path.write_text(damage(path.read_text()))
    is_refused_by_all(capsys)


def test_what_may_differ_between_a_run_and_its_resumption_still_may(made):
    path = made / "config.yaml"
    for name, value in (("out", "/nowhere/else"), ("device", "cpu"), ("checkpoint_every", 7)):
        path.write_text(with_value(name, value)(path.read_text()))
    run("evaluate", "run", *QUICK)
    assert not Path("/nowhere").exists()


def changed(document, path, value):
    """A copy of nested dictionaries and lists with one value changed, or left out."""
    found = copy.deepcopy(document)
    *parents, last = path
    inside = found
    for name in parents:
        inside = inside[name]
    if value is _MISSING:
        del inside[last]
    else:
        inside[last] = value
    return found


_MISSING = object()
_POSITION = ("snapshot", "position")
META = {
    "no snapshot": (("snapshot",), _MISSING),
    "a snapshot that is a list": (("snapshot",), [1]),
    "no position": (_POSITION, _MISSING),
    "a position that is a text": (_POSITION, "here"),
    "no identity": (("snapshot", "identity"), _MISSING),
    "an identity that is null": (("snapshot", "identity"), None),
    "no step": ((*_POSITION, "step"), _MISSING),
    "no epoch": ((*_POSITION, "epoch"), _MISSING),
    "a negative step": ((*_POSITION, "step"), -1),
    "a huge step": ((*_POSITION, "step"), 2**62),
    "half an epoch": ((*_POSITION, "epoch"), 1.5),
    "an epoch as a text": ((*_POSITION, "epoch"), "2"),
    "an epoch as truth": ((*_POSITION, "epoch"), True),
    "no loss": ((*_POSITION, "loss_sum"), _MISSING),
    "a loss that is null": ((*_POSITION, "loss_sum"), None),
    "seconds as a list": ((*_POSITION, "seconds"), [1]),
    "no history": ((*_POSITION, "history"), _MISSING),
    "an empty history": ((*_POSITION, "history"), []),
    "a history of texts": ((*_POSITION, "history"), ["a", "b"]),
    "a record too many": ((*_POSITION, "history"), [{}] * 3),
    "empty records": ((*_POSITION, "history"), [{}, {}]),
    "a record with a key more": ((*_POSITION, "history", 0, "colour"), "blue"),
    "a record of texts": ((*_POSITION, "history", 0, "train_loss"), "low"),
    "a record of a mapping": ((*_POSITION, "history", 1, "kl"), {"a": 1}),
    "no config": (("config",), _MISSING),
    "a config that is a text": (("config",), "VAE"),
    "an unknown option": (("config", "colour"), "blue"),
    "another model": (("config", "model"), "VAE(latent_dim=3)"),
    "an option of another type": (("config", "num_epochs"), "2"),
    "another rate": (("config", "lr"), 0.5),
    "other data": (("data_sha256",), "0" * 64),
    "data that are null": (("data_sha256",), None),
    "no digest of the tensors": (("tensors_sha256",), _MISSING),
    "another digest of the tensors": (("tensors_sha256",), "0" * 64),
    "no digest of the weights": (("weights_sha256",), _MISSING),
    "a digest that is a number": (("weights_sha256",), 3),
    "no format": (("format",), _MISSING),
    "another format": (("format",), "evidence-checkpoint-1"),
}


@pytest.mark.parametrize(("path", "value"), META.values(), ids=META)
def test_a_hostile_meta_with_a_right_checksum_is_refused(made, capsys, path, value):
    file = newest(made) / "meta.json"
    document = changed(schema.parse_signed(file.read_bytes()), path, value)
    file.write_bytes(schema.signed(document))
    is_refused_by_all(capsys, "checkpoint")


TEXTS = {
    "empty": lambda text: "",
    "truncated": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "a text": lambda text: '"text"',
    "binary": lambda text: "\0\1\2",
    "NaN": lambda text: re.sub(r"-?\d+\.\d+", "NaN", text, count=1),
    "an infinity": lambda text: re.sub(r"-?\d+\.\d+", "1e999", text, count=1),
    "a key twice": lambda text: text.replace("{", '{"sha256": "a",', 1),
    "a huge number": lambda text: re.sub(r"\d+\.\d+", "9" * 5000, text, count=1),
    "deep": lambda text: "[" * 100_000,
    "a flipped digit": lambda text: re.sub(r"(\d)(\.\d)", _another_digit, text, count=1),
    "a flipped last digit": lambda text: re.sub(r"(\d)(,\n)", _another_digit, text, count=1),
    "a key more": lambda text: text.replace("{", '{"colour": "blue",', 1),
    "no checksum": lambda text: re.sub(r',\s*"sha256": "\w+"\s*}\s*$', "}", text),
    "another checksum": lambda text: re.sub(r'"sha256": "\w', '"sha256": "g', text),
    "an object alone": lambda text: "{}",
    "a surrogate": lambda text: text.replace("digits", "\\ud800"),
}


def _another_digit(match):
    return str((int(match[1]) + 1) % 10) + match[2]


@pytest.mark.parametrize("damage", TEXTS.values(), ids=TEXTS)
def test_a_damaged_meta_is_refused(made, capsys, damage):
    file = newest(made) / "meta.json"
    text = damage(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    is_refused_by_all(capsys, "checkpoint")


@pytest.mark.parametrize("damage", TEXTS.values(), ids=TEXTS)
def test_damaged_results_are_not_replaced_without_a_word(made, capsys, damage):
    file = made / "results.json"
    text = damage(file.read_text())
    assert text != file.read_text()
    file.write_text(text)
    is_refused_by_all(capsys, r"results.json cannot be trusted: .*: move it away")
    assert file.read_text() == text
    file.unlink()
    run("evaluate", "run", *QUICK)


_ROW = ("rows", 0)
RESULTS = {
    "no rows": (("rows",), []),
    "rows that are no list": (("rows",), {"a": 1}),
    "rows of texts": (("rows",), ["row"]),
    "an empty row": (_ROW, {}),
    "a version that is a text": (("version",), "1"),
    "no command": (("command",), _MISSING),
    "no label": ((*_ROW, "label"), _MISSING),
    "a label that is a list": ((*_ROW, "label"), ["MeanField"]),
    "a label that clears the screen": ((*_ROW, "label"), "\x1b[2J"),
    "a history that is a text": ((*_ROW, "history"), "long"),
    "estimates that are null": ((*_ROW, "estimates"), None),
    "an estimate that is empty": ((*_ROW, "estimates", 0), {}),
    "an unknown estimator": ((*_ROW, "estimates", 0, "estimator"), "nuts"),
    "an estimate as a text": ((*_ROW, "estimates", 0, "nats"), "-3"),
    "particles as a list": ((*_ROW, "estimates", 0, "num_particles"), [5]),
    "weights that are null": ((*_ROW, "weights_sha256"), None),
    "evaluations that are texts": ((*_ROW, "evaluations"), ["iw"]),
    "an evaluation of nothing": ((*_ROW, "evaluations"), [{}]),
    "epochs as truth": ((*_ROW, "num_epochs"), True),
}


@pytest.mark.parametrize(("path", "value"), RESULTS.values(), ids=RESULTS)
def test_hostile_results_with_a_right_checksum_are_refused(made, capsys, path, value):
    file = made / "results.json"
    document = changed(schema.parse_signed(file.read_bytes()), path, value)
    file.write_bytes(schema.signed(document))
    is_refused_by_all(capsys, "results.json cannot be trusted")


def first(tensors, word, *, dims=1):
    """The first name that begins so, or of a moment so called."""
    return next(
        name
        for name, tensor in tensors.items()
        if (name.startswith(word) or name.endswith(f"/{word}")) and tensor.dim() >= dims
    )


def _replace(word, change):
    def forged(tensors):
        name = first(tensors, word)
        return tensors | {name: change(tensors[name]).contiguous()}

    return forged


def _without(tensors, name):
    return {n: t for n, t in tensors.items() if n != name}


TENSORS = {
    "a weight of another shape": _replace("model.", lambda t: t.reshape(-1)[:1]),
    "a weight of one dim more": _replace("model.", lambda t: t[None]),
    "a weight in float64": _replace("guide.", lambda t: t.double()),
    "a weight of integers": _replace("guide.", lambda t: t.long()),
    "a weight in float16": _replace("model.", lambda t: t.half()),
    "an empty weight": _replace("guide.", lambda t: t[:0]),
    "a moment of another shape": _replace("exp_avg_sq", lambda t: t.reshape(-1)[:1]),
    "a longer moment": _replace("exp_avg", lambda t: t.repeat(*[3] * t.dim())),
    "a moment in float64": _replace("exp_avg", lambda t: t.double()),
    "a moment of integers": _replace("exp_avg_sq", lambda t: t.long()),
    "a moment that is a number": _replace("exp_avg", lambda t: t.sum()),
    "a step of many": lambda tensors: (
        tensors | {n: torch.ones(7) for n in [first(tensors, "step", dims=0)]}
    ),
    "a step of integers": lambda tensors: (
        tensors | {n: torch.tensor(3) for n in [first(tensors, "step", dims=0)]}
    ),
    "a weight missing": lambda tensors: (
        {n: t for n, t in tensors.items() if n != "model.scale"}
        and {n: t for n, t in tensors.items() if n != first(tensors, "model.")}
    ),
    "a weight more": lambda tensors: tensors | {"model.extra": torch.ones(2)},
    "a moment of nothing": lambda tensors: (
        tensors | {"optimizer.model.extra/exp_avg": torch.ones(2)}
    ),
    "a tensor of nobody": lambda tensors: tensors | {"payload": torch.ones(2)},
    "no random state": lambda tensors: _without(tensors, "rng.torch"),
    "a short random state": _replace("rng.torch", lambda t: t[:9]),
    "an empty random state": _replace("rng.numpy_keys", lambda t: t[:0]),
    "random keys in float": _replace("rng.numpy_keys", lambda t: t.double()),
    "a random position beyond the end": _replace("rng.numpy_position", lambda t: t + 10**9),
    "a negative random position": _replace("rng.numpy_position", lambda t: t - 10**9),
    "random words beyond 32 bits": _replace("rng.python_words", lambda t: t + 2**40),
    "a random state of zeros": _replace("rng.torch", torch.zeros_like),
    "nothing": lambda tensors: {},
}


def forge_tensors(checkpoint, change):
    """Change tensors behind a right checksum."""
    path = checkpoint / "tensors.safetensors"
    payload = save(change(load(path.read_bytes())))
    path.write_bytes(payload)
    meta = checkpoint / "meta.json"
    digest = {"tensors_sha256": hashlib.sha256(payload).hexdigest()}
    meta.write_bytes(schema.signed(schema.parse_signed(meta.read_bytes()) | digest))


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_hostile_tensors_with_a_right_checksum_are_refused(made, capsys, change):
    forge_tensors(newest(made), change)
    is_refused_by_all(capsys, "checkpoint")


def test_a_frozen_model_is_checked_too(made, capsys):
    forge_tensors(newest(made), TENSORS["a weight in float64"])
    forge_tensors(newest(made), TENSORS["a weight in float16"])
    command = ["train", *TINY, "--guide", "FullRank", "--frozen_model", "run", "--out", "new"]
    assert "of another model or guide: expected" in refused(capsys, *command)
    path = made / "config.yaml"
    path.write_text(path.read_text().replace("elu", "tanh"))
    command[2] = "VAE(latent_dim=2, hidden_dims=[4], activation=tanh)"
    assert "config.yaml is not what checkpoint" in refused(capsys, *command)


def test_the_checkpoint_says_which_activation_was_trained(made, capsys):
    path = made / "config.yaml"
    path.write_text(path.read_text().replace("elu", "tanh"))
    assert "restore config.yaml" in refused(capsys, "evaluate", "run")


@pytest.mark.parametrize("kind", [Train, Compare, Evaluate])
def test_what_is_written_is_read_back(kind):
    options = kind(run="x") if kind is Evaluate else kind()
    values = schema.parse_yaml(yaml.safe_dump(vars(options)).encode())
    assert schema.typed(kind, values, complete=True) == options


def test_a_snapshot_of_an_annealing_is_checked_by_name_shape_and_type():
    model, kept = make_oracle(), []
    x = model(None, size=3).detach()
    options = {"num_chains": 4, "num_temperatures": 6, "num_leapfrog_steps": 2, "seed": 1}
    options |= {"num_pilot_temperatures": 5, "snapshot_every": 4, "progress": False}
    whole = anneal(model, x, on_snapshot=kept.append, **options)
    stages = [snapshot.meta["position"]["stage"] for snapshot in kept]
    for snapshot in (kept[0], kept[stages.index(1)], kept[-1]):  # pilot, forward run, end
        again = anneal(model, x, resume_from=snapshot, **options)
        assert torch.equal(again.evidence.log_px, whole.evidence.log_px)
        for name, tensor in snapshot.tensors.items():
            if not name.startswith("rng."):
                for forged in (tensor[:-1], tensor.long(), tensor[None]):
                    hostile = type(snapshot)(snapshot.tensors | {name: forged}, snapshot.meta)
                    with pytest.raises(ValueError, match="snapshot"):
                        anneal(model, x, resume_from=hostile, **options)
        for part in ("block", "stage", "step"):
            meta = copy.deepcopy(snapshot.meta)
            meta["position"][part] += 1000
            with pytest.raises(ValueError, match="snapshot is of another run"):
                anneal(model, x, resume_from=type(snapshot)(snapshot.tensors, meta), **options)


def test_a_random_state_as_it_is_passes():
    expect_rng_state(rng_state())
    with pytest.raises(ValueError, match="lacks or adds"):
        expect_rng_state({})


def test_json_of_a_run_is_json(made):
    for path in made.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)
