"""The build of the course: its formats, what a cell may cost, what is said of one that fails."""

import json
import re
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the notebooks are not installed")
pytest.importorskip("nbclient", reason="the notebooks are not installed")
pytest.importorskip("nbconvert", reason="the notebooks are not installed")

import jupytext

from notebooks import build, execution, exercises

# A kernel's sockets are closed when they are collected, in its own good time.
pytestmark = pytest.mark.filterwarnings("default")
ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "notebooks").glob("0*.py"))
SLEEP = "# %%\nimport time\ntime.sleep(1.5)\n"
BURN = "# %%\nimport time\nwhile time.process_time() < 1000:\n    pass\n"
EXERCISE = '''# %%
from evidence.notebooks import checks

# %%
def negative_elbo(log_p_x, kl):
    """The loss."""
    ### BEGIN SOLUTION
    # Hint: −(log-likelihood − KL), a
    # "mean"
    return (kl - log_p_x).mean()
    ### END SOLUTION


# %% points=3
checks.negative_elbo(negative_elbo)

# %% [markdown]
# Why the mean?
#
# ### BEGIN SOLUTION
# Learning rates.
# ### END SOLUTION
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "sources").mkdir()
    monkeypatch.setattr(execution, "FOLDER", tmp_path / "sources")
    monkeypatch.setattr(execution, "CELL_SECONDS", 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "sources"


def write(folder, *cells, name="1_test"):
    (folder / f"{name}.py").write_text("\n".join(cells))


def cells(path):
    return json.loads(Path(path).read_text())["cells"]


def source(cell):
    return "".join(cell["source"])


def test_every_format_of_an_exercise(folder, capsys):
    write(folder, EXERCISE, "# %%\nimport matplotlib.pyplot as plt\nplt.plot([0, 1]);\n")
    assert build.main(["--out", "course", "--install", "git+https://github.com/a/b"]) == 0
    assert "| 1_test     | 3        |" in capsys.readouterr().out

    student = cells("course/students/1_test.ipynb")
    text = "\n".join(map(source, student))
    assert "BEGIN SOLUTION" not in text
    assert "(kl - log_p_x).mean()" not in text
    assert "Learning rates" not in text
    assert 'raise NotImplementedError("−(log-likelihood − KL), a \\"mean\\"")' in text
    assert "*Your answer here.*" in text
    assert "colab.research.google.com/github/a/b/blob/course/students/1_test.ipynb" in text
    assert 'subprocess.run([*pip, "git+https://github.com/a/b"], check=True)' in text
    assert not any(cell.get("outputs") for cell in student)

    solved = cells("course/solutions/1_test.ipynb")
    text = "\n".join(map(source, solved))
    assert "Hint" not in text
    assert "**Answer.** Learning rates." in text
    assert any("✓ negative_elbo" in json.dumps(c, ensure_ascii=False) for c in solved)
    assert "✓ negative_elbo" in Path("course/pages/1_test.html").read_text()
    assert Path("course/pictures/1_test-07a.svg").read_text().startswith("<?xml")

    graded = [c["metadata"]["nbgrader"] for c in cells("course/nbgrader/source/1_test/1_test.ipynb")
              if "nbgrader" in c["metadata"]]  # fmt: skip
    assert [(g["solution"], g["grade"], g.get("points")) for g in graded] == [
        (True, False, None),
        (False, True, 3),
        (True, True, 1),
    ]
    assert len({g["grade_id"] for g in graded}) == 3

    otter = cells("course/otter/1_test.ipynb")
    raw = [source(c) for c in otter if c["cell_type"] == "raw"]
    assert raw[1] == "# BEGIN QUESTION\nname: negative_elbo\npoints: 3\ncheck_cell: false"
    assert raw[-1] == "# END QUESTION"
    check = next(c for c in otter if source(c).startswith("checks."))
    assert "✓ negative_elbo" in "".join(check["outputs"][0]["text"])
    assert "Learning rates" not in "\n".join(map(source, otter))


def test_a_report_is_worth_more_than_a_question(folder):
    write(folder, EXERCISE.replace("[markdown]", "[markdown] points=10"))
    assert build.main(["--out", "course"]) == 0
    report = cells("course/nbgrader/source/1_test/1_test.ipynb")[-1]
    assert report["metadata"]["nbgrader"]["points"] == 10
    assert "| 1_test     | 3        |" in Path("course/timings.md").read_text()
    raw = [source(c) for c in cells("course/otter/1_test.ipynb") if c["cell_type"] == "raw"]
    assert sum("BEGIN QUESTION" in text for text in raw) == 1


def test_without_a_place_to_install_from_a_notebook_asks(folder):
    write(folder, "# %%\nx = 1\n")
    assert build.main(["--out", "course"]) == 0
    first = source(cells("course/students/1_test.ipynb")[0])
    assert "raise SystemExit" in first
    assert not Path("course/binder").exists()


@pytest.mark.parametrize(
    ("address", "repository"),
    [
        ("https://github.com/a/b", "a/b"),
        ("https://github.com/a/b.git", "a/b"),
        ("git@github.com:a/b.c.git", "a/b.c"),
        ("ssh://git@github.com/a/b/", "a/b"),
        ("https://example.org/a/b", None),
        ("/srv/github.com.git", None),
    ],
)
def test_badges_are_those_of_the_repository_that_was_cloned(folder, address, repository):
    for words in (["init", "--quiet"], ["remote", "add", "origin", address]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    write(folder, "# %%\nx = 1\n")
    assert build.main(["--out", "course"]) == 0
    text = "".join(source(cell) for cell in cells("course/students/1_test.ipynb"))
    assert ("colab.research.google.com" in text) == (repository is not None)
    if repository:
        assert f"colab.research.google.com/github/{repository}/blob/course/students/1_test" in text
        assert f"mybinder.org/v2/gh/{repository}/course?labpath=students/1_test.ipynb" in text
        wanted = Path("course/binder/requirements.txt").read_text().splitlines()
        assert wanted[-1] == f"git+https://github.com/{repository}"
        version = tuple(map(int, re.findall(r"\d+", Path("course/binder/runtime.txt").read_text())))
        assert version >= (3, 11)  # as pyproject.toml says
    assert build.main(["--out", "course", "--install", ""]) == 0
    assert "colab" not in source(cells("course/students/1_test.ipynb")[0])
    assert not Path("course/binder").exists()


def test_a_notebook_that_takes_too_long_altogether_is_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(execution, "NOTEBOOK_SECONDS", 0.8)
    burn = BURN.replace("while", "end = time.process_time() + 0.6\nwhile").replace("1000", "end")
    write(folder, burn, burn)
    assert build.main(["--out", "course"]) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: 1_test.py: took \d s of CPU time, more than 0.8 s\n", said)
    assert not Path("course").exists()


def test_a_cell_may_wait_longer_than_it_may_compute(folder, capsys):
    write(folder, SLEEP)
    assert build.main(["--out", "course"]) == 0
    assert "| 1_test     | 0        | " in capsys.readouterr().out
    assert Path("course/timings.md").exists()


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (BURN, "cell 3 (import time): took more than 3 s of CPU time"),
        ("# %%\n1 / 0\n", "cell 3 (1 / 0): ZeroDivisionError: division by zero"),
        ("# %%\nimport os\nos._exit(1)\n", "cell 3 (import os): the kernel died"),
        (
            '# %%\nimport urllib.request as r\nr.urlopen("http://192.0.2.1")\n',
            "cell 3 (import urllib.request as r): URLError: <urlopen error the network is off "
            "while notebooks are built>",
        ),
    ],
)
def test_a_cell_that_fails_is_named_in_one_line_and_nothing_is_written(
    folder, capsys, cell, reason
):
    write(folder, "# %%\nx = 1\n", cell)
    assert build.main(["--out", "course", "1_test"]) == 1
    assert capsys.readouterr().err == f"error: 1_test.py, {reason}\n"
    assert not Path("course").exists()


def test_several_notebooks_at_a_time(folder, capsys):
    for number in (1, 2, 3):
        write(folder, f"# %%\nprint({number})\n", name=f"{number}_test")
    assert build.main(["--out", "course", "--jobs", "2"]) == 0
    assert [p.stem for p in sorted(Path("course/pages").iterdir())] == [
        "1_test",
        "2_test",
        "3_test",
    ]
    write(folder, "# %%\n1 / 0\n", name="2_test")
    assert build.main(["--out", "course", "--jobs", "2"]) == 1
    assert "2_test.py, cell 2 (1 / 0): ZeroDivisionError" in capsys.readouterr().err


def test_a_cell_that_waits_for_ever_ends(folder, capsys, monkeypatch):
    monkeypatch.setattr(execution, "WAIT_SECONDS", 1)
    write(folder, SLEEP)
    assert build.main(["--out", "course"]) == 1
    assert "cell 2 (import time): waited more than 1 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            ("    ### END SOLUTION\n", ""),
            "expected ### BEGIN SOLUTION and ### END SOLUTION in turn",
        ),
        (("# %%\nfrom evidence", "# %%\nx = 1 / 0\nfrom evidence"), "ZeroDivisionError"),
        (
            ("negative_elbo(negative_elbo)", "negative_elbo(checks.negative_elbo.right)"),
            "left blank",
        ),
    ],
)
def test_a_source_that_is_no_exercise_is_refused(folder, capsys, change, reason):
    write(folder, EXERCISE.replace(*change))
    assert build.main(["--out", "course"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: 1_test")
    assert reason in said
    assert said.count("\n") == 1


def test_a_folder_of_others_is_not_replaced(folder, capsys):
    write(folder, "# %%\nx = 1\n")
    Path("thesis").mkdir()
    Path("thesis/chapter.tex").write_text("years of work")
    assert build.main(["--out", "thesis"]) == 1
    assert "thesis holds files of others" in capsys.readouterr().err
    assert Path("thesis/chapter.tex").exists()


@pytest.mark.parametrize("name", ["submitted", "gradebook.db"])
def test_what_students_handed_in_is_not_deleted(folder, capsys, name):
    write(folder, "# %%\nx = 1\n")
    place = Path("course/nbgrader", name)
    place.mkdir(parents=True)
    Path("course/timings.md").write_text("of an earlier course")
    assert build.main(["--out", "course"]) == 1
    assert f"holds {name}, which a new course would delete" in capsys.readouterr().err
    assert place.exists()


def test_unknown_names_are_refused(folder, capsys):
    write(folder, "# %%\nx = 1\n")
    assert build.main(["2_test"]) == 1
    assert "no notebook '2_test': expected one of 1_test" in capsys.readouterr().err


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_every_notebook_has_a_goal_exercises_and_questions(path):
    """Three or more blanks, each with a hint and followed by a check that is worth points."""
    notebook = jupytext.read(path)
    blanks = [c for c in notebook.cells if c.cell_type == "code" and exercises.has_solution(c)]
    checked = [c for c in notebook.cells if exercises.points_of(c)]
    assert len(blanks) == len(checked) >= 3
    for blank, check in zip(blanks, checked, strict=True):
        name = re.search(r"def (\w+)", blank.source)[1]
        assert check.source == f"checks.{name}({name})"
        assert "# Hint: " in blank.source
    text = "\n".join(cell.source for cell in notebook.cells)
    assert "**Goal.**" in text
    questions = [c for c in notebook.cells if c.cell_type != "code" and exercises.has_solution(c)]
    assert len(questions) >= 1
    student = exercises.student_version(notebook)
    assert "SOLUTION" not in "\n".join(cell.source for cell in student.cells)


def test_the_instructors_page_tells_the_truth(capsys):
    """Points of every notebook, and the check that it shows."""
    page = (ROOT / "docs" / "teaching.md").read_text()
    told = [
        int(points) for points in re.findall(r"^\d\. \*\*.*\((\d+)(?: points|, and|\))", page, re.M)
    ]
    notebooks = [jupytext.read(path) for path in SOURCES]
    assert told == [sum(map(exercises.points_of, notebook.cells)) for notebook in notebooks]
    code = re.search(r"```python\n(.*?)```", page, re.S)[1]
    expected = re.search(r"# ✗ (.*)", code)[1]
    names = {}
    with pytest.raises(AssertionError) as caught:
        exec("import torch\n" + code, names)
    assert str(caught.value) == expected
    names["variance"](lambda x: x.var())
    assert "✓ variance" in capsys.readouterr().out
