"""A run folder from anyone: it runs no code, and reads and writes nothing elsewhere."""

import inspect
import json
import os
import shutil
import sys
import typing
from pathlib import Path

import pytest
import yaml

from evidence.experiments.cli import main
from evidence.experiments.setup import catalogue
from evidence.experiments.storage import checkpoints, schema, trust
from tests.test_cli import refused, run

TINY = ["--model", "VAE(latent_dim=2, hidden_dims=[4])", "--num_epochs", 1, "--batch_size", 512]
READING = ("evaluate", "gaps", "calibrate", "reference", "export", "sample")
PAYLOAD = """
from pathlib import Path
Path("executed").touch()
from evidence.guides import MeanField as Guide
from evidence.models import VAE as Model
"""


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", *TINY, "--out", folder)
    return folder


@pytest.fixture
def sent(once, tmp_path, monkeypatch):
    """A run folder with a module in it, `run.payload`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, "run")
    Path("run/payload.py").write_text(PAYLOAD)
    yield Path("run")
    for name in [name for name in sys.modules if name.split(".")[0] == "run"]:
        del sys.modules[name]


def forge(folder, **options):
    """Write options into config.yaml and into the checkpoint, with a right checksum."""
    config = yaml.safe_load((folder / "config.yaml").read_text()) | options
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    meta = checkpoints.newest(folder / "checkpoints") / "meta.json"
    document = schema.parse_signed(meta.read_bytes())
    meta.write_bytes(schema.signed(document | {"config": config}))
    return config


@pytest.mark.parametrize("command", READING)
def test_a_run_folder_executes_nothing(sent, capsys, command):
    model = "run.payload.Model(latent_dim=2, hidden_dims=[4])"
    forge(sent, model=model)
    message = refused(capsys, command, "run")
    assert "run.payload.Model, which is no class of this suite" in message
    assert "--trust true" in message
    assert not Path("executed").exists()
    assert "run.payload" not in sys.modules


@pytest.mark.parametrize(
    "guide",
    [
        "run.payload.Guide",
        "Refined(guide=run.payload.Guide)",
        "Refined(guide='run.payload.Guide(hidden_dims=[4])')",
        "Refined(guide=Refined(guide=run.payload.Guide(hidden_dims=[4])))",
        "MeanField(hidden_dims=[run.payload.Guide])",
    ],
)
def test_no_guide_of_elsewhere_is_imported_however_deep(sent, capsys, guide):
    forge(sent, guide=guide)
    assert "run.payload.Guide" in refused(capsys, "evaluate", "run")
    assert not Path("executed").exists()


def test_what_the_user_trusts_is_imported(sent):
    forge(sent, model="run.payload.Model(latent_dim=2, hidden_dims=[4], likelihood=bernoulli)")
    run("sample", "run", "--num_samples", 2, "--trust", "true")
    assert Path("executed").exists()


def test_a_file_of_options_names_no_class_and_trusts_nobody(sent, capsys):
    Path("sent.yaml").write_text("model: run.payload.Model(latent_dim=2)\nnum_epochs: 1\n")
    message = refused(capsys, "train", "--config", "sent.yaml", "--out", "new")
    assert "name it on the command line" in message
    Path("bomb.yaml").write_text("a: &a [x, x]\nb: [*a, *a]\n")
    assert "it has aliases" in refused(capsys, "train", "--config=bomb.yaml", "--out", "new")
    Path("trust.yaml").write_text("trust: true\n")
    assert "yourself" in refused(capsys, "evaluate", "run", "--config", "trust.yaml")
    assert not Path("executed").exists()
    model = "run.payload.Model(latent_dim=2)"
    run("train", "--config", "sent.yaml", "--model", model, "--out", "new", "--batch_size", 999)
    assert Path("executed").exists()


def test_only_words_that_name_classes_count_as_named():
    words = ["train", "--config", "a.b", "--out=c.d", "--model", "e.F(x=g.H)", "--guide=i.J"]
    trust.expect_named(["e.F", "Refined(guide=g.H)", "i.J"], words)
    for spec in ("a.b", "c.d", "e.X"):
        with pytest.raises(ValueError, match=spec):
            trust.expect_named([spec], words)


def test_a_frozen_model_executes_nothing(sent, capsys):
    forge(sent, model="run.payload.Model(latent_dim=2, hidden_dims=[4])")
    command = ["train", *TINY, "--guide", "FullRank", "--frozen_model", "run", "--out", "new"]
    assert "pass the same model" in refused(capsys, *command)
    assert not Path("executed").exists()


def test_options_of_the_suites_classes_name_no_classes():
    """An option whose type is a class would be imported by the dotted path of a sent spec."""
    plain = {int, float, str, bool, type(None)}

    def leaves(hint):
        inside = [a for a in typing.get_args(hint) if not isinstance(a, str)]
        return {leaf for one in inside for leaf in leaves(one)} if inside else {hint}

    for kind in [*catalogue.all_models().values(), *catalogue.all_guides().values()]:
        options = catalogue.options_of(kind)
        for base in kind.__mro__:
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if name in options and parameter.annotation is not parameter.empty:
                    hints = typing.get_type_hints(base.__init__)
                    found = {x for x in leaves(hints[name]) if isinstance(x, type)}
                    assert found <= plain | {Ellipsis}, (kind, name)


def test_a_run_chooses_no_data(sent, capsys, monkeypatch):
    Path("elsewhere").mkdir()
    forge(sent, data="mnist", data_root="elsewhere")
    message = refused(capsys, "evaluate", "run")
    assert "pass --data_root elsewhere or --trust true" in message
    assert not any(Path("elsewhere").iterdir())
    monkeypatch.setenv("EVIDENCE_DATA", "elsewhere")  # it is the user's own
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    assert "no usable copy of MNIST" in refused(capsys, "evaluate", "run")


@pytest.mark.parametrize(
    "name",
    [".lock", ".weights", "gaps.png", "results.json", "config.yaml", "per_datum.csv",
     "posterior.nc", "calibration.json", "samples.png", ".unfinished.1.results.json",
     "checkpoints/link"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["train", *READING])
def test_links_are_refused_and_their_targets_left_alone(sent, capsys, name, command):
    target = Path("precious")
    target.write_text("mine")
    link = sent / name
    link.unlink(missing_ok=True)
    link.symlink_to(target.resolve())
    words = [*TINY, "--out", "run", "--resume", "true"] if command == "train" else ["run"]
    words += ["--overwrite", "true"] if command == "export" else []
    message = refused(capsys, command, *words)
    assert f"run/{name} is a symbolic link" in message
    assert target.read_text() == "mine"


def test_linked_folders_pipes_and_hard_links_are_refused(sent, capsys):
    Path("mine").mkdir()
    (sent / "samples").symlink_to(Path("mine").resolve())
    assert "run/samples is a symbolic link" in refused(capsys, "sample", "run")
    assert not any(Path("mine").iterdir())
    (sent / "samples").unlink()
    os.mkfifo(sent / "per_datum.csv")
    assert "is no regular file" in refused(capsys, "evaluate", "run")
    (sent / "per_datum.csv").unlink()
    (sent / ".lock").unlink(missing_ok=True)
    Path("precious").write_text("mine")
    os.link("precious", sent / ".lock")
    assert "no lock of this program" in refused(capsys, "evaluate", "run")
    assert Path("precious").read_text() == "mine"


def test_a_file_replaces_the_other_name_of_a_hard_link(sent):
    Path("precious").write_text("mine")
    os.link("precious", sent / "per_datum.csv")
    run("evaluate", "run", "--num_particles", 2, "--num_data", 3)
    assert Path("precious").read_text() == "mine"


def test_a_run_folder_may_be_reached_by_a_link(sent):
    Path("link").symlink_to("run")
    run("evaluate", "link", "--num_particles", 2, "--num_data", 3)
    assert json.loads(Path("run/results.json").read_text())["command"] == "evaluate"


def test_an_unwilling_command_says_so_before_it_imports(sent, capsys):
    """The class is refused though the module is imported already."""
    forge(sent, model="tests.test_security.Nothing")
    with pytest.raises(SystemExit):
        main(["sample", "run"])
    assert "which is no class of this suite" in capsys.readouterr().err
