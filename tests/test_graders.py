"""The course's formats in the hands of nbgrader and Otter: a right, a wrong and a blank submission.

`make test-graders` installs both in an environment of their own; elsewhere this is left out.
"""

import copy
import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebooks are not installed")
pytest.importorskip("jupytext", reason="the notebooks are not installed")
pytest.importorskip("nbconvert", reason="the notebooks are not installed")

from notebooks import build, execution  # noqa: E402
from tests.test_notebooks import EXERCISE  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]
RIGHT = "    return (kl - log_p_x).mean()"
WRONG = "    return (log_p_x - kl).mean()"
BLANK = "raise NotImplementedError"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The course of one small exercise."""
    folder = tmp_path_factory.mktemp("course")
    (folder / "1_test.py").write_text(EXERCISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "FOLDER", folder)
        build.build(build.find_sources([]), folder / "built")
    return folder / "built"


def run(*words, folder):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def submission(notebook, answer):
    """The students' notebook with an answer in place of the blank; None leaves it blank."""
    notebook = nbformat.from_dict(json.loads(json.dumps(notebook)))
    for cell in notebook.cells:
        if BLANK in cell.source and answer is not None:
            lines = [line for line in cell.source.splitlines() if "raise" not in line]
            cell.source = "\n".join([*(line for line in lines if line.strip() != "..."), answer])
    return notebook


@pytest.mark.skipif(shutil.which("nbgrader") is None, reason="nbgrader is not installed")
def test_nbgrader_gives_the_points_of_the_checks(course):
    folder = course / "nbgrader"
    run("nbgrader", "generate_assignment", "1_test", "--create", folder=folder)
    released = nbformat.read(folder / "release" / "1_test" / "1_test.ipynb", 4)
    assert "(kl - log_p_x)" not in "".join(cell.source for cell in released.cells)
    for student, answer in {"right": RIGHT, "wrong": WRONG, "blank": None}.items():
        place = folder / "submitted" / student / "1_test"
        place.mkdir(parents=True)
        nbformat.write(submission(released, answer), place / "1_test.ipynb")
    run("nbgrader", "autograde", "1_test", folder=folder)
    run("nbgrader", "export", folder=folder)
    with (folder / "grades.csv").open() as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {"right": 3.0, "wrong": 0.0, "blank": 0.0}
    graded = (folder / "autograded" / "wrong" / "1_test" / "1_test.ipynb").read_text()
    assert "an optimizer minimizes" in graded  # what the student did, by name


@pytest.mark.skipif(shutil.which("otter") is None, reason="Otter is not installed")
def test_otter_gives_the_points_of_the_checks(course):
    folder = course / "otter"
    run("otter", "assign", "1_test.ipynb", "dist", folder=folder)
    released = nbformat.read(folder / "dist" / "student" / "1_test.ipynb", 4)
    text = "".join(cell.source for cell in released.cells)
    assert "(kl - log_p_x)" not in text
    assert "Learning rates" not in text  # the answer to the question for discussion
    with pytest.raises(execution.CellError, match=r"still blank. Hint: −\(log-likelihood"):
        execution.execute(copy.deepcopy(released), "what a student sees")
    (zipped,) = Path(folder / "dist" / "autograder").glob("*.zip")
    for answer, points in {RIGHT: 3.0, WRONG: 0.0, None: 0.0}.items():
        nbformat.write(submission(released, answer), folder / "submission.ipynb")
        run("otter", "run", "-a", str(zipped), "submission.ipynb", folder=folder)
        result = json.loads((folder / "results.json").read_text())
        assert sum(test.get("score", 0.0) for test in result["tests"]) == points
