"""Build and execute the notebooks: `python notebooks/build.py [NAME ...]`.

Each `notebooks/[0-9]*.py` becomes an executed `.ipynb` beside it. NAMEs such as `02_vae` build only
some. A cell that fails or takes more than `CELL_SECONDS` ends the build with one line on stderr.
These are seconds of the kernel's CPU, not of the clock: other work on the machine costs none.
"""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

CELL_SECONDS = 60  # of CPU time
WAIT_SECONDS = 60 * CELL_SECONDS  # by the clock, against a cell that waits for ever
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


class Watch(threading.Thread):
    """The CPU seconds of each cell; kills the kernel if a cell takes more than `CELL_SECONDS`.

    Attributes:
        seconds: by cell number, of the cells that ended.
        exceeded: whether a kernel was killed.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seconds: dict[int, float] = {}
        self.exceeded = False
        self._running: tuple[psutil.Process, float] | None = None  # kernel, CPU time at the start
        self._over = threading.Event()

    def begin(self, kernel: psutil.Process) -> None:
        """A cell starts."""
        self._running = kernel, _cpu_seconds(kernel)

    def end(self, number: int) -> None:
        """The cell has run."""
        assert self._running
        kernel, start = self._running
        self._running = None
        self.seconds[number] = _cpu_seconds(kernel) - start

    def close(self) -> None:
        """No cell will follow."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Look at the running cell several times a second."""
        while not self._over.wait(0.2):
            running = self._running
            if running and _cpu_seconds(running[0]) - running[1] > CELL_SECONDS:
                self.exceeded = True
                running[0].kill()
                return


def _cpu_seconds(kernel: psutil.Process) -> float:
    """CPU time of a process and of its children that ended; 0 if it is gone."""
    try:
        times = kernel.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return sum(times[:4])  # user and system, its own and its children's


def build(source: Path) -> str:
    """Convert, execute and write one notebook.

    Returns:
        A line on the CPU time it took.

    Raises:
        BuildError: names the notebook and the cell that failed.
    """
    notebook = jupytext.read(source)
    seconds = execute(notebook, source.name)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    longest, number = max((s, number) for number, s in seconds.items())
    return (
        f"{source.stem}: {sum(seconds.values()):.0f} s of CPU time, of which {longest:.0f} s in "
        f"{_describe(notebook, number)}"
    )


def execute(notebook: NotebookNode, name: str) -> dict[int, float]:
    """Run all cells in place, in the notebooks' folder.

    Returns:
        Seconds of CPU time by cell number.

    Raises:
        BuildError: names the notebook and the cell that failed, or there is no code.
    """
    watch = Watch()
    last_started = 0

    def on_start(cell: NotebookNode, cell_index: int) -> None:
        nonlocal last_started
        last_started = cell_index
        watch.begin(psutil.Process(client.km.provisioner.pid))

    def on_end(cell: NotebookNode, cell_index: int, **_: object) -> None:
        watch.end(cell_index)

    client = NotebookClient(
        notebook,
        timeout=WAIT_SECONDS,
        kernel_name="python3",
        extra_arguments=["--log-level=CRITICAL"],  # of its own affairs; a failure is raised here
        resources={"metadata": {"path": str(FOLDER)}},
        on_cell_execute=on_start,
        on_cell_executed=on_end,
    )
    watch.start()
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        reason = f"took more than {CELL_SECONDS} s of CPU time"
        reason = reason if watch.exceeded else _reason(error)
        raise BuildError(f"{name}, {_describe(notebook, last_started)}: {reason}") from None
    finally:
        watch.close()
    if not watch.seconds:
        raise BuildError(f"{name}: no cell with code")
    return watch.seconds


def _describe(notebook: NotebookNode, number: int) -> str:
    """The number of a cell, counted from 1, and its first line of code."""
    lines = [line.strip() for line in notebook.cells[number].source.splitlines()]
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return f"cell {number + 1} ({first})"


def _reason(error: Exception) -> str:
    if isinstance(error, CellExecutionError):
        return " ".join(f"{error.ename}: {error.evalue}".split())
    if isinstance(error, CellTimeoutError):
        return f"waited more than {WAIT_SECONDS} s"
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
