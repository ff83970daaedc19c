"""Several processes train what one trains: shares of data and noise, and what cannot be shared."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from evidence.experiments.launching.base import Task
from evidence.experiments.launching.local import LocalLauncher
from evidence.inference import Ranks
from evidence.inference.training.shared_draws import ShareDraws
from tests.rank_tasks import pair_of, trained, trained_with_others
from tests.test_cli import QUICK, weights
from tests.test_launchers import wait_until


def by_processes(name, batch_size, size, folder):
    place = folder / "meeting"
    tasks = [
        Task(str(rank), trained_with_others, (rank, size, str(place), name, batch_size))
        for rank in range(size)
    ]
    return [found for _, found in LocalLauncher(size).run(tasks, unit="rank")]


@pytest.mark.parametrize(
    ("name", "batch_size", "size"),
    [
        ("MeanField", 30, 2),
        ("regression", 50, 2),
        pytest.param("IAF", 31, 3, marks=pytest.mark.slow),
        pytest.param("regression", 21, 3, marks=pytest.mark.slow),
    ],
)
def test_several_processes_take_the_steps_of_one(name, batch_size, size, tmp_path):
    """Batches that do not divide, dynamic pixels, and latents that the data share."""
    losses, parameters = trained(name, batch_size)
    assert losses[-1] < losses[0]
    found = by_processes(name, batch_size, size, tmp_path)
    assert len(found) == size
    for their_losses, theirs in found:
        np.testing.assert_allclose(their_losses, losses, rtol=1e-10)
        for key, value in parameters.items():
            assert np.abs(theirs[key] - value).max() <= 1e-10 * np.abs(value).max(), key
            assert (theirs[key] == found[0][1][key]).all()  # of each other, bit for bit


@pytest.mark.parametrize("name", ["Normed", pytest.param("Dropped", marks=pytest.mark.slow)])
def test_data_that_see_each_other_are_not_shared_out(name, tmp_path):
    """Planted errors: batch normalization and dropout by each process's own rows."""
    with pytest.raises(ValueError, match="do not add up to those of all of it"):
        by_processes(name, 30, 2, tmp_path)


def test_draws_by_what_cannot_be_shared_out_are_refused():
    share = ShareDraws(frozenset({-1}), slice(0, 10), 20)
    with share, pyro.plate("data", 10), pytest.raises(ValueError, match=r"_gamma.*one process$"):
        pyro.sample("rate", dist.Gamma(torch.ones(10), 1.0))


FAMILIES = ["MeanField", "LowRank", "FullRank", "Mixture", "Householder", "Planar", "Radial",
            "Sylvester", "IAF", "MAF", "RealNVP", "NeuralSpline"]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_the_noise_of_a_share_is_that_of_its_rows(name):
    _, guide, x, _ = pair_of(name)
    x, rows = x[:30], slice(10, 20)

    def drawn(data):
        pyro.set_rng_seed(1)
        with pyro.plate("particles", 3, dim=-2):
            z = pyro.poutine.trace(guide).get_trace(data).nodes["z"]["value"]
        return z, torch.get_rng_state()

    whole, state = drawn(x)
    with ShareDraws(frozenset({-1}), rows, len(x)):
        part, state_of_part = drawn(x[rows])
    assert torch.equal(state_of_part, state)
    torch.testing.assert_close(part, whole[:, rows], rtol=1e-12, atol=1e-12)
    apart, _ = drawn(x[rows])  # the planted error: the first rows' noise
    assert not torch.allclose(apart, whole[:, rows], rtol=1e-3)


@pytest.mark.parametrize("total", [1, 2, 3, 7, 128])
def test_shares_are_all_rows_once_and_weigh_as_much(total):
    ranks = [Ranks(rank, 3) for rank in range(3)]
    rows = [row for one in ranks for row in range(total)[one.share(total)]]
    assert sorted(rows) == list(range(total)) if total >= 3 else rows == [*range(total)] * 3
    assert sum(one.weight(total) for one in ranks) == pytest.approx(1.0)
    assert [one.is_first for one in ranks] == [True, False, False]


TRAIN = ["-m", "evidence", "train", *QUICK, "--num_epochs", "60", "--checkpoint_every", "20"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a run by two processes."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    words = [*TORCHRUN, *TRAIN, "--out", str(folder)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return weights(folder)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_which_goes_on_from_its_checkpoint(
    victim, whole, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = [*TORCHRUN, *TRAIN, "--out", "killed"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(Path("killed").glob("checkpoints/epoch-*")))
    os.kill(rank_of(process.pid, victim), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    (line,) = re.findall(r"^evidence: .*$", err, re.MULTILINE)
    assert "--resume true" in line
    before = sorted(Path("killed/checkpoints").iterdir())
    assert before[-1].name < "epoch-00060"
    assert not Path("killed/results.json").exists()
    subprocess.run([*words, "--resume", "true"], check=True, stdout=subprocess.DEVNULL)
    again = weights("killed")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def rank_of(parent, rank):
    """The process of a rank, among the children of torchrun."""
    for place in Path("/proc").glob("[0-9]*"):
        if f"PPid:\t{parent}\n" in (place / "status").read_text():
            variables = (place / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables:
                return int(place.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
def test_bad_options_are_told_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*TORCHRUN, *TRAIN, "--guide", "Planarr"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    (line,) = re.findall(r"^evidence: .*$", done.stderr, re.MULTILINE)
    assert "Planarr" in line
    assert not Path("runs").exists()
