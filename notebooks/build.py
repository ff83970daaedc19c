"""Build and execute the notebooks: `python notebooks/build.py [NAME ...]`.

Each `notebooks/[0-9]*.py` becomes an executed `.ipynb` beside it. NAMEs such as `02_vae` build only
some. A cell that fails or takes more than `CELL_SECONDS` ends the build with one line on stderr.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

CELL_SECONDS = 60
FOLDER = Path(__file__).resolve().parent


class BuildError(Exception):
    """A notebook that cannot be built; the message is one line."""


def find_sources(names: Sequence[str]) -> list[Path]:
    """The sources of the notebooks named, with or without folder and suffix; all if none is.

    Raises:
        BuildError: there is no such notebook.
    """
    known = {source.stem: source for source in sorted(FOLDER.glob("[0-9]*.py"))}
    for name in names:
        if Path(name).stem not in known:
            raise BuildError(f"no notebook {name!r}: expected one of {', '.join(known)}")
    return [known[Path(name).stem] for name in names] if names else list(known.values())


def build(source: Path) -> str:
    """Convert, execute and write one notebook.

    Returns:
        A line on the time it took.

    Raises:
        BuildError: names the notebook and the cell that failed.
    """
    notebook = jupytext.read(source)
    seconds = execute(notebook, source.name)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    longest, number = max((s, number) for number, s in seconds.items())
    return (
        f"{source.stem}: {sum(seconds.values()):.0f} s, of which {longest:.0f} s in "
        f"{_describe(notebook, number)}"
    )


def execute(notebook: NotebookNode, name: str) -> dict[int, float]:
    """Run all cells in place, in the notebooks' folder.

    Returns:
        Seconds by cell number.

    Raises:
        BuildError: names the notebook and the cell that failed, or there is no code.
    """
    started: dict[int, float] = {}
    seconds: dict[int, float] = {}

    def on_start(cell: NotebookNode, cell_index: int) -> None:
        started[cell_index] = time.perf_counter()

    def on_end(cell: NotebookNode, cell_index: int, **_: object) -> None:
        seconds[cell_index] = time.perf_counter() - started[cell_index]

    client = NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=CRITICAL"],  # of its own affairs; a failure is raised here
        resources={"metadata": {"path": str(FOLDER)}},
        on_cell_execute=on_start,
        on_cell_executed=on_end,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = _describe(notebook, max(started, default=0))
        raise BuildError(f"{name}, {cell}: {_reason(error)}") from None
    if not seconds:
        raise BuildError(f"{name}: no cell with code")
    return seconds


def _describe(notebook: NotebookNode, number: int) -> str:
    """The number of a cell, counted from 1, and its first line of code."""
    lines = [line.strip() for line in notebook.cells[number].source.splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return f"cell {number + 1} ({first})"


def _reason(error: Exception) -> str:
    if isinstance(error, CellExecutionError):
        return " ".join(f"{error.ename}: {error.evalue}".split())
    if isinstance(error, CellTimeoutError):
        return f"took more than {CELL_SECONDS} s"
    return "the kernel died"


def main(names: Sequence[str]) -> int:
    """Build the notebooks named, or all; 0 if all were built, 1 if one failed."""
    try:
        for source in find_sources(names):
            print(build(source), flush=True)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
