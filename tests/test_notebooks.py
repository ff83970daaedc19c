"""The build of the notebooks: what it charges to a cell, and what it says of one that fails."""

import pytest

pytest.importorskip("jupytext", reason="the notebooks are not installed")
pytest.importorskip("nbclient", reason="the notebooks are not installed")

from notebooks import build, execution

# A kernel's sockets are closed when they are collected, in its own good time.
pytestmark = pytest.mark.filterwarnings("default")
HEADER = "# %%\n"
SLEEP = "import time\ntime.sleep(1.5)\n"
BURN = "import time\nwhile time.process_time() < 1000:\n    pass\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "FOLDER", tmp_path)
    monkeypatch.setattr(execution, "CELL_SECONDS", 1)
    return tmp_path


def write(folder, *cells):
    (folder / "1_test.py").write_text("\n".join(HEADER + cell for cell in cells))
    return folder / "1_test.py"


def test_a_cell_may_wait_longer_than_it_may_compute(folder, capsys):
    write(folder, SLEEP, "print(1 + 1)\n")
    assert build.main([]) == 0
    assert "s of CPU time, of which 0 s in cell" in capsys.readouterr().out
    assert (folder / "1_test.ipynb").exists()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (BURN, "cell 2 (import time): took more than 1 s of CPU time"),
        ("1 / 0\n", "cell 2 (1 / 0): ZeroDivisionError: division by zero"),
        ("import os\nos._exit(1)\n", "cell 2 (import os): the kernel died"),
    ],
)
def test_a_cell_that_fails_is_named_in_one_line(folder, capsys, cell, reason):
    write(folder, "x = 1\n", cell)
    assert build.main(["1_test"]) == 1
    assert capsys.readouterr().err == f"error: 1_test.py, {reason}\n"
    assert not (folder / "1_test.ipynb").exists()


def test_a_cell_that_waits_for_ever_ends(folder, capsys, monkeypatch):
    monkeypatch.setattr(execution, "WAIT_SECONDS", 1)
    write(folder, SLEEP)
    assert build.main([]) == 1
    assert "cell 1 (import time): waited more than 1 s" in capsys.readouterr().err


def test_unknown_names_are_refused(folder, capsys):
    write(folder, "x = 1\n")
    assert build.main(["2_test"]) == 1
    assert "no notebook '2_test': expected one of 1_test" in capsys.readouterr().err
