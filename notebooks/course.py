"""Build the course: `python notebooks/course.py [--out FOLDER] [NAME ...]`.

Of each source there are, in folders of their own: the solution, executed, as a notebook and as a
page; the students' notebook, whose blanks raise an error with a hint; a source for nbgrader and one
for Otter; every picture as SVG. `timings.md` says what each notebook costs. Nothing is written
unless all notebooks of the list were executed.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tabulate import tabulate

if __name__ == "__main__":  # started as a script: its folder is on the path, the checkout is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from notebooks import build, execution
from notebooks.exercises import (
    MarkError,
    nbgrader_version,
    otter_version,
    points_of,
    student_version,
)

# Of each notebook: what a laptop may take for all of its cells.
_SECONDS = 300
_NBGRADER_CONFIG = '''"""Configuration of nbgrader for this course."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "evidence"
c.ClearSolutions.code_stub = {"python": "# YOUR CODE HERE\\nraise NotImplementedError"}
c.ClearSolutions.text_stub = "*Your answer here.*"
c.ExecutePreprocessor.timeout = 600
'''


def build_course(sources: Sequence[Path], out: Path) -> str:
    """Write all formats of the sources into a folder, which is replaced.

    Returns:
        The table of timings.

    Raises:
        BuildError: names the notebook and what is wrong with it.
    """
    with tempfile.TemporaryDirectory() as name:
        fresh = Path(name)
        rows = [_formats(source, fresh) for source in sources]
        table = _timings(rows)
        (fresh / "timings.md").write_text(table + "\n", encoding="utf-8")
        (fresh / "nbgrader" / "nbgrader_config.py").write_text(_NBGRADER_CONFIG, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(fresh, out)
    return table


def _formats(source: Path, folder: Path) -> list[str | int | float]:
    """All formats of one notebook; its row in the table of timings."""
    marked, name = jupytext.read(source), source.stem
    solution = build.read(source)
    try:
        _write(student_version(marked), folder / "students" / f"{name}.ipynb")
        _write(
            nbgrader_version(marked, name), folder / "nbgrader" / "source" / name / f"{name}.ipynb"
        )
    except MarkError as error:
        raise execution.BuildError(f"{source.name}: {error}") from None
    seconds = execution.execute(solution, source.name, formats=("png", "svg"))
    _write(otter_version(marked, name, solution), folder / "otter" / f"{name}.ipynb")
    _keep_pictures(solution, folder / "pictures", name)
    _write(solution, folder / "solutions" / f"{name}.ipynb")
    page, _ = HTMLExporter().from_notebook_node(solution)
    (folder / "pages").mkdir(exist_ok=True)
    (folder / "pages" / f"{name}.html").write_text(page, encoding="utf-8")
    longest, number = max((s, number) for number, s in seconds.items())
    points = sum(points_of(cell) for cell in marked.cells)
    total = sum(seconds.values())
    print(f"{name}: {total:.0f} s", flush=True)
    return [name, points, f"{total:.0f}", f"{longest:.0f}", execution.describe(solution, number)]


def _timings(rows: Sequence[Sequence[str | int | float]]) -> str:
    headers = ["notebook", "points", "seconds of CPU", "slowest cell", "which"]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _write(notebook: NotebookNode, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, path)


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
    chosen = parser.parse_args(arguments)
    try:
        print(build_course(build.find_sources(chosen.names), chosen.out))
    except execution.BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"\nwrote {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
