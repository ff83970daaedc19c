"""What goes wrong around a command: sizes, devices, users' classes, streams, locks, full disks."""

import io
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import matplotlib
import pytest
import torch
from safetensors.torch import load_file

from evidence.experiments.cli import main
from evidence.experiments.reports import terminal
from evidence.experiments.storage import checkpoints, files
from tests.test_cli import refused, results, run

DRAWN = True

ROOT = Path(__file__).parents[1]
TINY = ["--model", "VAE(latent_dim=2, hidden_dims=[4])", "--num_epochs", 1, "--batch_size", 512]
QUICK = ["--num_particles", 2, "--num_data", 3]
WRITING = {
    "evaluate": ["evaluate", "run", *QUICK],
    "ais": ["evaluate", "run", *QUICK, "--estimator", "ais", "--num_temperatures", 3],
    "gaps": ["gaps", "run", *QUICK, "--max_steps", 3],
    "calibrate": ["calibrate", "run", "--num_simulations", 3, "--num_draws", 19],
    "reference": ["reference", "run", "--num_samples", 100, "--num_warmup", 60, "--num_chains", 2],
    "export": ["export", "run", "--num_draws", 2, "--num_data", 2],
    "sample": ["sample", "run", "--num_samples", 2],
    "train": ["train", *TINY, "--out", "run", "--resume", "true"],
}
RESULT = {
    "calibrate": "quantity",
    "export": "variable",
    "sample": "2 draws, mean",
    "train": "FullRank",
}


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", *TINY, "--out", folder)
    return folder


@pytest.fixture
def made(once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, "run")
    return Path("run")


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "Trace_ELBO(num_particles=0)"], "num_particles between 1 and"),
        (["--objective", "IWAE(num_particles=10000000000)"], "num_particles between 1 and"),
        (["--guide", "Refined(guide=MeanField, num_particles=0)"], "num_particles between 1 and"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--seed", "-1"], "--seed of at least 0"),
        (["--seed", str(2**80)], "--seed of at most"),
        (["--model", "VAE(latent_dim=-3)"], "latent_dim of at least 1"),
        (["--model", "VAE(hidden_dims=[1000000000000])"], "VAE"),
        (["--guide", "MeanField(hidden_dims=[0, -2])"], "layer sizes of at least 1"),
    ],
    ids=" ".join,
)
def test_impossible_options_get_one_line(empty, capsys, words, message):
    assert message in refused(capsys, "train", *TINY, "--out", "run", *words)
    assert not Path("run").exists()


@pytest.mark.parametrize("count", [0, -1, 10**10])
def test_impossible_particles_get_one_line_before_anything_is_trained(made, capsys, count):
    assert "--num_particles of at" in refused(capsys, "evaluate", "run", "--num_particles", count)
    command = ["compare", *TINY, "--guides", "MeanField", "--out", "c", "--num_particles", count]
    assert "--num_particles of at" in refused(capsys, *command)
    command = ["compare", *TINY, "--out", "c", "--estimator", "elbo", "--target_se", "0.1"]
    assert "leave out one" in refused(capsys, *command)
    assert not Path("c").exists()


FAILING = {
    "import": "raise RuntimeError('at import')",
    "syntax": "class",
    "init": """class Model(VAE):
    def __init__(self, data_dim, latent_dim: int = 2):
        1 / 0""",
    "forward": """class Model(VAE):
    def __init__(self, data_dim: int, latent_dim: int = 2):
        super().__init__(data_dim, latent_dim)
    def prior(self):
        raise KeyError('a table of mine')""",
}


@pytest.mark.parametrize("fault", FAILING)
def test_a_failing_class_of_the_user_gets_one_line(empty, capsys, fault):
    Path(f"mine_{fault}.py").write_text(f"from evidence.models import VAE\n{FAILING[fault]}\n")
    message = refused(capsys, "train", "--model", f"mine_{fault}.Model", *TINY[2:], "--out", "run")
    expected = {"import": "at import", "syntax": "SyntaxError", "init": "ZeroDivisionError"}
    assert expected.get(fault, "KeyError") in message
    assert not Path("run").exists()


def test_settings_of_matplotlib_do_not_reach_the_pictures(empty):
    run("train", *TINY, "--out", "run")
    with matplotlib.rc_context({"text.usetex": True, "savefig.dpi": 9, "savefig.format": "pdf"}):
        run("train", *TINY, "--out", "other")
        assert matplotlib.rcParams["text.usetex"]
    for name in ("latent_codes.png", "training_curves.png"):
        picture = Path("other", name).read_bytes()
        assert picture.startswith(b"\x89PNG")
        assert picture == Path("run", name).read_bytes() or name == "training_curves.png"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_terminals_that_cannot_spell_everything_show_the_result(made, monkeypatch, encoding):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["evaluate", "run", "--num_particles", "30", "--num_data", "3"]) == 0
    text = out.buffer.getvalue().decode(encoding)
    assert "wrote run/results.json" in text
    assert ("+/-" if encoding == "ascii" else "±") in text
    assert out.errors == "strict"


def test_characters_are_spelled_and_the_rest_is_marked():
    with (
        io.TextIOWrapper(io.BytesIO(), encoding="ascii") as stream,
        pytest.MonkeyPatch.context() as p,
    ):
        p.setattr(sys, "stdout", stream)
        with terminal.forgiving_streams():
            print("k\u0302 −1 ± 2 ‖ é \udc80", end="", flush=True)
        assert stream.buffer.getvalue() == b"k^ -1 +/- 2 || ? ?"
        with pytest.raises(UnicodeEncodeError):
            print("±")


@pytest.mark.parametrize("kind", ["closed", "none", "full"])
def test_a_stale_stdout_gets_one_line_and_loses_no_results(made, monkeypatch, capsys, kind):
    stream = None if kind == "none" else open("/dev/full" if kind == "full" else "out", "w")  # noqa: SIM115
    if kind == "closed":
        stream.close()
    monkeypatch.setattr(sys, "stdout", stream)
    words = ["sample", "run", "--num_samples", "2"]
    if kind == "none":
        assert main(words) == 0
    else:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1
        stream.close()


def test_a_full_stdout_of_a_process_gets_one_line(made):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            check=False,
            args=[sys.executable, "-m", "evidence", "guides"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert "No space left" in found.stderr


@pytest.mark.parametrize("name", WRITING)
def test_every_command_that_writes_takes_the_lock(made, capsys, name):
    capsys.readouterr()
    before = sorted(made.rglob("*"))
    with filelock.FileLock(made / ".lock"):
        message = refused(capsys, *WRITING[name])
    assert "in use by another process, which has locked it" in message
    assert sorted(made.rglob("*")) == before


@pytest.mark.parametrize("name", [name for name in WRITING if name != "train"])
def test_a_full_disk_loses_no_measurement(made, monkeypatch, capsys, name):
    capsys.readouterr()
    monkeypatch.setattr(files.os, "fsync", full_disk)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in WRITING[name]])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    *notes, last = captured.err.splitlines()
    assert "No space left" in last
    assert all("no snapshots of this annealing" in note for note in notes)
    assert len(notes) == (name == "ais")
    assert RESULT.get(name, "MeanField") in captured.out
    assert not [path for path in made.rglob("*") if files.is_leftover(path)]


def full_disk(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_at_the_start_blocks_nothing(empty, monkeypatch, capsys):
    compare = ["compare", *TINY, "--guides", "MeanField", *QUICK, "--out", "c"]
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full_disk)
        assert "No space left" in refused(capsys, "train", *TINY, "--out", "run")
        assert "No space left" in refused(capsys, *compare)
    run("train", *TINY, "--out", "run")
    run(*compare)


def test_an_unwritable_folder_is_measured(made, monkeypatch, capsys):
    def forbid(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filelock.FileLock, "acquire", forbid)
    monkeypatch.setattr(Path, "open", _only_reading(Path.open))
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in WRITING["evaluate"]])
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "IW-2" in captured.out
    assert captured.err.count("\n") == 1
    assert "Permission denied" in captured.err


def _only_reading(opened):
    def open_(path, mode="r", *arguments, **options):
        if "r" not in mode:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *arguments, **options)

    return open_


@pytest.fixture
def usual_signals():
    """As in a terminal: what runs in the background may ignore some of them."""
    usual = {signal.SIGINT: signal.default_int_handler}
    usual |= dict.fromkeys((signal.SIGTERM, signal.SIGHUP), signal.SIG_DFL)
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def heeded():
    """Signals that a test run in the background, or under nohup, would ignore."""
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_a_run_that_can_be_resumed(empty, monkeypatch, capsys, number, code, heeded):
    save = checkpoints.save

    def interrupted(*arguments):
        save(*arguments)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(checkpoints, "save", interrupted)
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in ["train", *TINY, "--out", "run", "--checkpoint_every", 1]])
    assert stop.value.code == code
    message = capsys.readouterr().err
    assert message == "evidence: interrupted; --resume true goes on from the newest checkpoint\n"
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.usefixtures("usual_signals")
def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminal.signals_as_interrupts():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_same_weights_have_one_checksum(made):
    row = results("run")["rows"][0]
    run("evaluate", "run", *QUICK)
    assert results("run")["rows"][0]["weights_sha256"] == row["weights_sha256"]
    assert torch.is_tensor(next(iter(load_file(next(made.rglob("*.safetensors"))).values())))
