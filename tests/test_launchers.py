"""Fits in other processes and on Ray: the bits of one process, whoever dies in between."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout

from evidence.experiments.commands import compare
from evidence.experiments.launching.base import ATTEMPTS, InProcess, Task, threads_per_task
from evidence.experiments.launching.local import LocalLauncher
from tests.tasks import die, fail, succeed
from tests.test_cli import refused, results, run
from tests.test_kills import FIT, QUICK, outcome
from tests.test_marginal_command import MODELS, Y

TWO = ["--launcher", "local", "--jobs", 2]
RAY = ["--launcher", "ray", "--jobs", 2]
# What a guide does at a draw depends on files, not on its source, which a run remembers.
MINE = f"""
import os, signal
from pathlib import Path
from matplotlib.figure import Figure
from evidence.guides import MeanField

is_worker = os.getpid() != {os.getpid()}
if is_worker:  # as in the tests' own process
    Figure.savefig = lambda figure, file, **_: file.write(b"picture")

class Calm(MeanField):
    pass

class Moody(MeanField):
    def posterior(self, x):
        if is_worker and Path("angry").exists():
            raise ValueError("not today")
        deaths = Path("deaths")
        is_saved = any(Path("new").rglob("*Moody/checkpoints/epoch-*"))
        if is_worker and is_saved and deaths.exists() and (left := int(deaths.read_text())):
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        with open("draws", "a") as file:
            file.write("x")
        return super().posterior(x)
"""
COMPARE = ["compare", *FIT, *QUICK, "--guides", "mine.py:Calm", "mine.py:Moody"]


@pytest.fixture(autouse=True)
def in_a_folder_with_a_moody_guide(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)


def bits_of(folder):
    """All results and weights below a folder."""
    before = os.getcwd()
    os.chdir(folder)
    found = outcome()
    os.chdir(before)
    return found


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """What the comparison leaves, one fit after the other, and how often its guide drew."""
    folder = tmp_path_factory.mktemp("serial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("mine.py").write_text(MINE)
        run(*COMPARE, "--decoder", "frozen", "--out", "new")
        return bits_of("new"), len(Path("draws").read_text())


def test_processes_find_the_bits_of_one_though_a_worker_is_killed(serial, capsys, monkeypatch):
    whole, drawn = serial
    Path("deaths").write_text("1")
    command = [*COMPARE, "--decoder", "frozen", "--out", "new"]
    run(*command, *TWO)
    told = capsys.readouterr()
    assert "training and evaluating 2 fits, 2 at a time," in told.out
    assert told.err == (
        "evidence: mine.py:Moody, seed 0: its process died (SIGKILL): started again from where it "
        "was, attempt 2 of 3\n"
    )
    assert bits_of("new") == whole
    assert drawn < len(Path("draws").read_text()) < 1.5 * drawn  # it went on from its checkpoint
    before = results("new")
    monkeypatch.setattr(compare, "evaluate_run", None)  # all is there, whoever did it
    run(*command)
    assert results("new")["rows"] == before["rows"]


def test_what_fails_has_a_name_and_stops_nothing_else(capsys):
    Path("angry").touch()
    err = refused(capsys, *COMPARE, "--seed", 3, "--max_steps", 1, "--out", "new", *TWO)
    assert "1 of 2 fits failed: mine.py:Moody, seed 3: " in err
    assert "not today" in err
    assert results("new/mine.py_Calm")["command"] == "evaluate"
    assert not Path("new/mine.py_Moody").exists()


def test_trials_of_the_bench_are_those_of_one_process():
    Path("models.py").write_text(MODELS)
    problems = ["--problems", "pines", "pines-adjusted"]
    words = ["bench", "--estimators", "models.py:right", *problems]
    run(*words, "--seeds", 2, "--out", "serial")
    run(*words, "--seeds", 1, "--out", "new", *TWO)
    run(*words, "--seeds", 2, "--out", "new", *TWO)
    keys = ("problem", "estimator", "seed", "nats", "se", "not_reliable")
    trials = {
        folder: [
            tuple(one[key] for key in keys)
            for one in json.loads(Path(folder, "bench.json").read_text())["trials"]
        ]
        for folder in ("serial", "new")
    }
    assert [one[2] for one in trials["new"]] == [0] * 2 + [1] * 2  # what is there stays in front
    assert sorted(trials["new"], key=str) == sorted(trials["serial"], key=str)


@pytest.mark.slow
def test_models_are_compared_as_in_one_process():
    Path("models.py").write_text(MODELS)
    np.save("y.npy", Y)
    words = ["marginal", "--models", "models.py:zero", "--data", "y.npy"]
    words += ["--target_se", 1, "--max_rounds", 1, "--prior_scale", "nu=2"]
    run(*words, "--out", "serial")
    run(*words, "--out", "new", *TWO)
    timeless = []
    for folder in ("serial", "new"):
        document = results(folder)
        rows = [{**row, "seconds": 0.0} for row in document["rows"]]
        timeless.append((rows, document["prior_scales"]))
    assert timeless[0] == timeless[1]


def test_tasks_end_in_any_order_and_failures_are_told_at_the_end(tmp_path, capsys):
    (tmp_path / "deaths").mkdir()
    tasks = [
        Task("bad", fail, (2,)),
        Task("deadly", die, (tmp_path / "deaths",)),
        *(Task(f"good {number}", succeed, (number,)) for number in range(3)),
    ]
    run, found = LocalLauncher(jobs=2).run(tasks, unit="thing"), {}
    with pytest.raises(ValueError, match=r"^2 of 5 things failed: bad: KeyError in ") as told:
        found.update((task.name, value) for task, value in run)
    assert f"deadly: its process died {ATTEMPTS} times (SIGKILL)" in str(told.value)
    assert found == {f"good {number}": (number, 1) for number in range(3)}
    assert len(list((tmp_path / "deaths").iterdir())) == ATTEMPTS
    assert capsys.readouterr().err.count("deadly: its process died") == ATTEMPTS - 1


def test_in_one_process_an_error_stays_what_it_is():
    launcher = InProcess().run([Task("good", succeed, (1,)), Task("bad", fail, (2,))], unit="thing")
    assert next(launcher)[1][0] == 1
    with pytest.raises(KeyError):
        next(launcher)


@pytest.mark.parametrize(("asked", "threads"), [("4", 4), ("2,1", 2), ("", 1), ("many", 1)])
def test_a_worker_has_one_thread_unless_more_are_asked_for(asked, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads_per_task() == threads


def test_options_of_launchers_that_do_not_fit(capsys, monkeypatch):
    assert "--jobs 2 needs --launcher local, or ray" in refused(capsys, *COMPARE, "--jobs", 2)
    assert "--ray_address auto needs --launcher ray" in refused(
        capsys, "bench", *TWO, "--ray_address", "auto"
    )
    assert "--jobs of at least 1, got 0" in refused(capsys, "bench", *TWO[:2], "--jobs", 0)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'evidence[ray]'" in refused(capsys, *COMPARE, "--out", "new", *RAY)
    assert not Path("new").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_workers_end_with_their_command(number):
    """None goes on alone, in folders that the same command is to go on with."""
    endless = [*COMPARE, "--num_epochs", 10**6, "--max_steps", 10**8, "--out", "new", *TWO]
    command = [sys.executable, "-m", "evidence", *map(str, endless)]
    folders = [Path("new", f"mine.py_{guide}") for guide in ("Calm", "Moody")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: all(list(f.glob("checkpoints/epoch-*")) for f in folders))
        process.send_signal(getattr(signal, number))
        code = process.wait(60)
    finally:
        process.kill()
    assert code == (143 if number == "SIGTERM" else -9)
    wait_until(lambda: all(is_free(folder) for folder in folders))
    assert is_free(Path("new"))


def wait_until(is_so):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def is_free(folder):
    with suppress(Timeout), FileLock(folder / ".lock", timeout=0):
        return True
    return False


@pytest.fixture
def ray():
    return pytest.importorskip("ray", reason="Ray is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_finds_the_bits_of_one_process_though_a_worker_is_killed(serial, ray, capfd):
    whole, drawn = serial
    Path("deaths").write_text("1")
    run(*COMPARE, "--decoder", "frozen", "--out", "new", *RAY)
    assert "Moody, seed 0: its process died (WorkerCrashedError): started" in capfd.readouterr().err
    assert bits_of("new") == whole
    assert drawn < len(Path("draws").read_text()) < 1.5 * drawn
    assert not ray.is_initialized()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_takes_a_cluster_that_others_keep(serial, ray, capsys):
    whole, _ = serial
    from ray.cluster_utils import Cluster  # noqa: PLC0415 (optional)

    words = [*COMPARE, "--decoder", "frozen", "--out", "new", "--launcher", "ray"]
    assert "no Ray cluster at --ray_address" in refused(
        capsys, *words, "--ray_address", "127.0.0.1:1"
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        run(*words, "--ray_address", cluster.address)
    finally:
        cluster.shutdown()
    assert bits_of("new") == whole
