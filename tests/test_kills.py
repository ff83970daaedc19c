"""Every change of a file or folder by every command, with a kill before it; then the command again.

A kill is an error that nobody catches, raised by an audit hook at the n-th change, and at every
change after it: what `finally` clauses would still do to the disk does not happen either. A file
that was being written is cut in half, as a crash may leave it.
"""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from evidence.experiments.cli import main
from evidence.experiments.commands import annealing
from evidence.experiments.storage import checkpoints, files
from tests.test_cli import results, run, weights

MODEL = ["--model", "LinearGaussian(latent_dim=1)", "--data", "toy", "--batch_size", 900]
FIT = [*MODEL, "--num_epochs", 2, "--checkpoint_every", 2]
QUICK = ["--num_particles", 4, "--num_data", 5]
SHORT = ["--num_chains", 3, "--num_temperatures", 4, "--num_leapfrog_steps", 1]
RESUMED = ["train", *MODEL, "--num_epochs", 3, "--checkpoint_every", 2, "--out", "run"]
COMMANDS = {
    "train": ["train", *FIT, "--out", "new"],
    "resumed": [*RESUMED, "--resume", "true"],
    "evaluate": ["evaluate", "run", *QUICK],
    "ais": ["evaluate", "run", "--estimator", "ais", *QUICK, *SHORT],
    "bdmc": ["evaluate", "run", "--estimator", "bdmc", *QUICK, *SHORT],
    "gaps": ["gaps", "run", *QUICK, "--max_steps", 2],
    "calibrate": ["calibrate", "run", "--num_simulations", 5, "--num_draws", 19],
    "reference": ["reference", "run", "--num_samples", 60, "--num_warmup", 20, "--num_chains", 2],
    "export": ["export", "run", "--num_draws", 2, "--num_data", 2, "--overwrite", "true"],
    "sample": ["sample", "run", "--num_samples", 2],
    "compare": ["compare", *FIT, "--guides", "MeanField", *QUICK, "--out", "new"],
}
_TWICE = ("train", "resumed", "evaluate", "ais", "gaps", "export", "sample")
_SLOW = ("bdmc", "reference", "compare")
_CHANGING = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink",
             "os.truncate", "shutil.move")  # fmt: skip


class Killed(BaseException):
    """Neither an error nor an interrupt."""


class Killer:
    """Counts the changes below a folder, and kills before one of them."""

    def __init__(self) -> None:
        self.below, self.kill_at, self.changes = None, None, []

    def __call__(self, event, arguments):
        if self.below is None or not self._changes(event, arguments):
            return
        named = arguments[: 1 if event == "open" else 2]
        paths = [os.path.relpath(a, self.below) for a in named if isinstance(a, str | os.PathLike)]
        if not paths or paths[0].startswith(".."):
            return
        change = f"{'write' if event == 'open' else event} {' '.join(paths)}"
        self.changes.append(re.sub(r"[0-9a-f]{12,}|[0-9]+|MeanField|FullRank|model", "N", change))
        if self.kill_at is not None and len(self.changes) > self.kill_at:
            self._cut_what_is_written()
            raise Killed

    @staticmethod
    def _changes(event, arguments):
        if event == "open":
            _, mode, flags = arguments
            return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and mode != "r"
        return event in _CHANGING

    def _cut_what_is_written(self):
        below, self.below = self.below, None  # these changes are the crash's
        for path in Path(below).rglob(".unfinished.*"):
            if path.is_file():
                os.truncate(path, path.stat().st_size // 2)
        self.below = below


@pytest.fixture(scope="module")
def killer():
    killer = Killer()
    sys.addaudithook(killer)  # for good, but it sleeps
    yield killer
    killer.below = None


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run("train", *FIT, "--out", folder)
    run("sample", folder, "--num_samples", 2)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A short pilot run."""
    for name in ("anneal", "bidirectional_evidence"):
        slow = getattr(annealing, name)
        monkeypatch.setattr(
            annealing, name, lambda *a, slow=slow, **o: slow(*a, **o, num_pilot_temperatures=2)
        )


def start(words, once, folder):
    """A fresh folder for the command, in which it can be started."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    shutil.copytree(once, "run")
    return [str(word) for word in words]


def places(name, changes):
    """One of each kind of change: the first, and where it goes fast the last."""
    found = list(enumerate(changes))
    first = {change: place for place, change in reversed(found)}
    last = {change: place for place, change in found}
    return sorted({*first.values(), *last.values()} if name in _TWICE else first.values())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in _SLOW)) for n in COMMANDS]
)
def test_a_command_that_was_killed_anywhere_can_be_started_again(
    name, once, killer, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = start(COMMANDS[name], once, tmp_path / "whole")
    killer.below, killer.kill_at, killer.changes = str(tmp_path / "whole"), None, []
    assert main(words) == 0
    killer.below = None
    expected, changes = outcome(), killer.changes
    assert len(changes) > 3
    for place in places(name, changes):
        words = start(COMMANDS[name], once, tmp_path / "killed")
        killer.below, killer.kill_at, killer.changes = str(tmp_path / "killed"), place, []
        try:
            main(words)
            pytest.fail(f"not killed before {changes[place]}")
        except Killed:
            pass
        finally:
            killer.below = None
        again = [*words, "--resume", "true"] if name == "train" else words
        assert main(again) == 0, changes[place]
        assert outcome() == expected, changes[place]


def outcome():
    """What a command leaves, without times: names of all files, results and weights."""
    names = sorted(str(path) for path in Path().rglob("*") if "earlier" not in path.parts)
    found = {"names": names}
    assert not [name for name in names if files.is_leftover(Path(name))]
    for folder in sorted({path.parent for path in Path().rglob("results.json")}):
        if "earlier" not in folder.parts:
            rows = results(folder)["rows"]
            keys = ("estimates", "weights_sha256", "gaps", "num_epochs", "num_samples")
            found[str(folder)] = [{key: row.get(key) for key in keys} for row in rows]
    for folder in Path().rglob("checkpoints"):
        found[str(folder)] = {n: t.tolist() for n, t in weights(folder.parent).items()}
    return found


def test_snapshots_of_an_annealing_whose_result_is_written_go(once, killer, tmp_path, monkeypatch):
    """Also where a comparison was killed between the two, and finds its evaluation done."""
    monkeypatch.chdir(tmp_path)
    options = ["--estimator", "bdmc", *QUICK, *SHORT, "--out", "new"]
    words = start(["compare", *FIT, "--guides", "MeanField", *options], once, tmp_path / "killed")
    removing = annealing.remove_snapshots
    for count in (1, 2):  # of the data, and of the simulated ones
        killed = iter(range(count))

        def kill(place, killed=killed, count=count):
            if next(killed) + 1 == count:
                raise Killed
            removing(place)

        for name in (
            "evidence.experiments.commands.evaluate",
            "evidence.experiments.commands.annealing",
        ):
            monkeypatch.setattr(f"{name}.remove_snapshots", kill)
        with pytest.raises(Killed):
            main(words)
        assert list(Path("new/MeanField/annealing").iterdir())
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path / "killed")
    assert main(words) == 0
    assert not Path("new/MeanField/annealing").exists()


def test_the_walk_sees_every_change_and_ends_at_a_kill(killer, tmp_path, monkeypatch):
    """And what a clause would do to it after a kill does not happen."""
    monkeypatch.chdir(tmp_path)
    killer.below, killer.kill_at, killer.changes = str(tmp_path), 2, []

    def careless():
        try:
            Path("a").write_text("a")
            Path("a").rename("b")
            Path("a").write_text("a")
        finally:
            Path("b").unlink()  # a clause that a kill would not have run

    with pytest.raises(Killed):
        careless()
    killer.below = None
    assert killer.changes == ["write a", "os.rename a b", "write a", "os.remove b"]
    assert Path("b").exists()


def test_leftovers_of_a_process_that_died_are_swept(once, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(once, "run")
    left = [Path("run/.unfinished.1.results.json"), Path("run/.12345.gaps.png")]
    left += [Path("run/checkpoints/.unfinished"), Path("run/checkpoints/.unfinished.9.epoch-1")]
    for path in left[:2]:
        path.write_text("half")
    for path in left[2:]:
        path.mkdir()
        (path / "tensors.safetensors").write_text("half")
    assert main(["sample", "run", "--num_samples", "2"]) == 0
    assert not any(path.exists() for path in left)
    assert checkpoints.newest(Path("run/checkpoints")).name == "epoch-00002-step-000000"


def test_what_is_written_without_a_lock_sweeps_after_the_dead_alone(tmp_path):
    dead, alive = tmp_path / ".unfinished.4194999.a", tmp_path / f".unfinished.{os.getppid()}.a"
    dead.write_text("half")
    alive.write_text("half")
    files.write(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert (dead.exists(), alive.exists()) == (False, True)


def test_a_folder_that_died_at_its_start_is_not_dead_for_good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, ".lock").touch()
        Path(folder, ".unfinished.1.config.yaml").write_text("mod")
    assert main([str(w) for w in ["train", *FIT, "--out", "a"]]) == 0
    assert (
        main([str(w) for w in ["compare", *FIT, "--guides", "MeanField", *QUICK, "--out", "b"]])
        == 0
    )
    assert torch.isfinite(weights("a")["model.weight"]).all()
