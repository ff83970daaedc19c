"""The course's formats in the hands of nbgrader and Otter: a right, a wrong and a blank submission.

`make test-graders` installs both in an environment of their own; elsewhere this is left out. The
commands are those of docs/teaching.md, word for word.
"""

import copy
import csv
import json
import re
import shutil
import subprocess
import sys
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
ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "teaching.md").read_text()
NAME = "02_vae"  # the example of the page; here it is one small exercise
needs_nbgrader = pytest.mark.skipif(shutil.which("nbgrader") is None, reason="no nbgrader here")
needs_otter = pytest.mark.skipif(shutil.which("otter") is None, reason="no Otter here")


def commands(program):
    """The lines of the page that begin with a program, and what it says of `pip` in its text."""
    lines = re.findall(rf"^    ({program} .*?)(?:  +#.*)?$", PAGE, re.M)
    return lines + re.findall(rf"`({program} [^`]*)`", PAGE.replace("\n", " "))


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The course of one small exercise."""
    folder = tmp_path_factory.mktemp("course")
    (folder / f"{NAME}.py").write_text(EXERCISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "FOLDER", folder)
        build.build(build.find_sources([]), folder / "built")
    return folder / "built"


def run(line, folder):
    done = subprocess.run(
        line, shell=True, cwd=folder, capture_output=True, text=True, check=False
    )  # as on the page, with its wildcards
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


@needs_nbgrader
def test_nbgrader_gives_the_points_of_the_checks(course):
    folder = course / "nbgrader"
    generate, autograde, export = commands("nbgrader")[:3]
    run(generate, folder)
    released = nbformat.read(folder / "release" / NAME / f"{NAME}.ipynb", 4)
    assert "(kl - log_p_x)" not in "".join(cell.source for cell in released.cells)
    for student, answer in {"right": RIGHT, "wrong": WRONG, "blank": None}.items():
        place = folder / "submitted" / student / NAME
        place.mkdir(parents=True)
        nbformat.write(submission(released, answer), place / f"{NAME}.ipynb")
    run(autograde, folder)
    run(export, folder)
    with (folder / "grades.csv").open() as file:
        scores = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    assert scores == {"right": 3.0, "wrong": 0.0, "blank": 0.0}
    graded = (folder / "autograded" / "wrong" / NAME / f"{NAME}.ipynb").read_text()
    assert "an optimizer minimizes" in graded  # what the student did, by name


@needs_otter
def test_otter_gives_the_points_of_the_checks(course):
    folder = course / "otter"
    assign, grade = commands("otter")[:2]
    run(assign, folder)
    released = nbformat.read(folder / "dist" / "student" / f"{NAME}.ipynb", 4)
    text = "".join(cell.source for cell in released.cells)
    assert "(kl - log_p_x)" not in text
    assert "Learning rates" not in text  # the answer to the question for discussion
    with pytest.raises(execution.CellError, match=r"still blank. Hint: −\(log-likelihood"):
        execution.execute(copy.deepcopy(released), "what a student sees")
    for answer, points in {RIGHT: 3.0, WRONG: 0.0, None: 0.0}.items():
        nbformat.write(submission(released, answer), folder / "submission.ipynb")
        run(grade, folder)
        result = json.loads((folder / "results.json").read_text())
        assert sum(test.get("score", 0.0) for test in result["tests"]) == points


def clone(folder):
    """A clone of this checkout as it stands, at the place that stands for the repository's."""
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in filter(lambda name: (ROOT / name).exists(), names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    who = "git -c user.name=course -c user.email=course@localhost"
    run(f"git init --quiet && git add --all && {who} commit --quiet --message=course", folder)


@needs_nbgrader
@needs_otter
def test_pip_takes_every_line_of_the_page(tmp_path, monkeypatch):
    """Wheels are made; what is to be installed is resolved, but not installed once more."""
    clone(tmp_path)
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")  # the clone stands for the repository
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{tmp_path.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/OWNER/REPOSITORY")
    lines = sorted(commands("pip"), key=lambda line: "pip wheel" not in line)  # before its use
    assert len(lines) == 5
    python = f"{sys.executable} -m pip --quiet --disable-pip-version-check"
    here = {
        '"evidence-': '"dist/evidence-',  # as handed out
        "pip install": f"{python} install --dry-run",
        "pip wheel": f"{python} wheel",
    }
    for line in lines:
        for said, meant in here.items():
            line = line.replace(said, meant)  # noqa: PLW2901
        assert "does not provide the extra" not in run(line, tmp_path)  # else only a warning


def test_every_command_of_the_page_is_known():
    """Each line of a block of commands is run here, by `make course`, or by whoever reads it."""
    blocks = re.findall(r"(?:^    (?! ).*\n)+", PAGE.split("## Writing a check")[0], re.M)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    known = r"(git clone|make course|\. \.venv|pip install|jupyter lab|nbgrader|otter|cd |#|✗)"
    assert lines
    assert [line for line in lines if not re.match(known, line)] == []
