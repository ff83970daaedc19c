"""Build the course: `python notebooks/build.py [--out FOLDER] [NAME ...]`.

Of each source there are, in folders of their own: the solution, executed, as a notebook and as a
page; the students' notebook, whose blanks raise an error with a hint; a source for nbgrader and one
for Otter; every picture as SVG. `timings.md` says what each notebook costs. NAMEs such as `02_vae`
build only some. A cell that fails or takes more than `CELL_SECONDS`, and a notebook that takes more
than `NOTEBOOK_SECONDS`, end the build with one line on stderr, and nothing is written. These are
seconds of the kernel's CPU, not of the clock: other work on the machine costs none.

Badges, and what Binder and Colab install, are those of the repository on GitHub that the checkout
was cloned from, unless `--install` names another source.
"""

import argparse
import copy
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tabulate import tabulate

if __name__ == "__main__":  # started as a script: its folder is on the path, the checkout is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from notebooks import execution
from notebooks.execution import BuildError, CellError, describe
from notebooks.exercises import (
    MarkError,
    nbgrader_version,
    otter_version,
    points_of,
    solution_version,
    student_version,
    with_first_cell,
)

_TIMINGS = "timings.md"
_GRADING = ("submitted", "gradebook.db")  # of nbgrader
_NBGRADER_CONFIG = '''"""Configuration of nbgrader for this course."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "evidence"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.ExecutePreprocessor.timeout = 600
'''


def find_sources(names: Sequence[str]) -> list[Path]:
    """The sources of the notebooks named, with or without folder and suffix; all if none is.

    Raises:
        BuildError: there is no such notebook.
    """
    known = {source.stem: source for source in sorted(execution.FOLDER.glob("[0-9]*.py"))}
    for name in names:
        if Path(name).stem not in known:
            raise BuildError(f"no notebook {name!r}: expected one of {', '.join(known)}")
    return [known[Path(name).stem] for name in names] if names else list(known.values())


def origin(folder: Path) -> str | None:
    """What pip installs of the repository on GitHub that a checkout was cloned from, if it was."""
    words = ["git", "-C", str(folder), "remote", "get-url", "origin"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git
        return None
    address = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", found.stdout.strip())
    return f"git+https://github.com/{address[1]}" if address else None


def build(sources: Sequence[Path], out: Path, *, install: str | None = None, jobs: int = 1) -> str:
    """Write all formats of the sources into a folder, which is replaced.

    Args:
        sources: of the notebooks.
        out: the folder; an earlier course, or not there.
        install: see `with_first_cell`.
        jobs: notebooks at work at a time.

    Returns:
        The table of timings.

    Raises:
        BuildError: names the notebook and what is wrong with it; or the folder holds other files,
            or what students handed in.
    """
    if out.exists() and any(out.iterdir()) and not (out / _TIMINGS).exists():
        raise BuildError(f"{out} holds files of others: expected an earlier course, or no folder")
    if grading := [name for name in _GRADING if (out / "nbgrader" / name).exists()]:
        raise BuildError(
            f"{out / 'nbgrader'} holds {' and '.join(grading)}, which a new course would delete: "
            f"move {out} away first"
        )
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        formats = partial(_formats, folder=fresh, install=install)
        if jobs == 1:
            rows = [formats(source) for source in sources]
        else:
            with ProcessPoolExecutor(jobs) as pool:
                rows = list(pool.map(formats, sources))
        table = tabulate(
            rows,
            headers=["notebook", "points", "seconds of CPU", "slowest cell", "which"],
            tablefmt="github",
            disable_numparse=True,
        )
        (fresh / _TIMINGS).write_text(table + "\n", encoding="utf-8")
        _write(_NBGRADER_CONFIG, fresh / "nbgrader" / "nbgrader_config.py")
        if install:  # else Binder has nothing to install
            _write(f"{install}\n", fresh / "binder" / "requirements.txt")
            _write("python-3.11\n", fresh / "binder" / "runtime.txt")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(fresh, out)
    return table


def _formats(source: Path, folder: Path, install: str | None) -> list[str]:
    """All formats of one notebook; its row in the table of timings."""
    name = source.stem
    marked = with_first_cell(jupytext.read(source), name, install)
    try:
        solution, student = solution_version(marked), student_version(marked)
    except MarkError as error:
        raise BuildError(f"{source.name}: {error}") from None
    seconds = execution.execute(solution, source.name, formats=("png", "svg"))
    _expect_stop(student, marked, source.name)
    _keep_pictures(solution, folder / "pictures", name)
    versions = {
        f"students/{name}": student,
        f"solutions/{name}": solution,
        f"nbgrader/source/{name}/{name}": nbgrader_version(marked, name),
        f"otter/{name}": otter_version(marked, name, solution),
    }
    for path, version in versions.items():
        _write(f"{nbformat.writes(version)}\n", folder / f"{path}.ipynb")
    page, _ = HTMLExporter().from_notebook_node(solution)
    _write(page, folder / "pages" / f"{name}.html")
    longest, number = max((s, number) for number, s in seconds.items())
    points, total = sum(map(points_of, marked.cells)), sum(seconds.values())
    print(f"{name}: {total:.0f} s", flush=True)
    return [name, str(points), f"{total:.0f}", f"{longest:.0f}", describe(solution, number)]


def _expect_stop(student: NotebookNode, marked: NotebookNode, name: str) -> None:
    """Check that a student's notebook runs up to the first check of a blank, and no further."""
    checks = [number for number, cell in enumerate(marked.cells) if points_of(cell)]
    if not checks:
        return
    try:
        execution.execute(copy.deepcopy(student), name)
    except CellError as error:
        if error.number == checks[0] and "still blank" in error.reason:
            return
        raise BuildError(f"{error}: expected students to get to {checks[0] + 1}") from None
    raise BuildError(f"{name}: runs to its end with every exercise left blank")


def _write(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _keep_pictures(notebook: NotebookNode, folder: Path, name: str) -> None:
    """Every picture as SVG in a file of its own; pages keep the small one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(notebook.cells, start=1):
        for count, output in enumerate(cell.get("outputs", [])):
            data = output.get("data", {})
            if (svg := data.pop("image/svg+xml", None)) is not None:
                path = folder / f"{name}-{number:02d}{'abcdefgh'[count % 8]}.svg"
                path.write_text(svg, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the course; 0 if all was built, 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 02_vae [default: all]")
    parser.add_argument("--out", type=Path, default=Path("build/course"), help="folder to replace")
    parser.add_argument(
        "--install",
        default=origin(execution.FOLDER),
        help="what pip installs where the suite is missing [default: %(default)s]",
    )
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at work at a time")
    chosen = parser.parse_args(arguments)
    try:
        sources = find_sources(chosen.names)
        print(build(sources, chosen.out, install=chosen.install or None, jobs=chosen.jobs))
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nwrote {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
