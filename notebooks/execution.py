"""Execution of a notebook: offline, with the CPU seconds of each cell, and one line if it fails."""

import threading
from collections.abc import Sequence
from pathlib import Path

import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

CELL_SECONDS = 60  # of CPU time
NOTEBOOK_SECONDS = 300  # of CPU time, all cells together
WAIT_SECONDS = 60 * CELL_SECONDS  # by the clock, against a cell that waits for ever
FOLDER = Path(__file__).resolve().parent
_OFFLINE = FOLDER / "offline.py"


class BuildError(Exception):
    """A notebook that cannot be built; the message is one line."""


class CellError(BuildError):
    """A cell that failed.

    Args:
        message: names the notebook, the cell and the reason.
        number: of the cell, counted from 0.
        reason: what it failed with.
    """

    def __init__(self, message: str, number: int, reason: str) -> None:
        super().__init__(message, number, reason)
        self.number, self.reason = number, reason

    def __str__(self) -> str:
        return str(self.args[0])


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


def execute(
    notebook: NotebookNode, name: str, *, formats: Sequence[str] = ("png",)
) -> dict[int, float]:
    """Run all cells in place, in the notebooks' folder, with the network off.

    Args:
        notebook: to run.
        name: for errors.
        formats: of the pictures.

    Returns:
        Seconds of CPU time by cell number.

    Raises:
        CellError: a cell failed, or took too long.
        BuildError: there is no code, or it took too long altogether.
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
        extra_arguments=[
            "--log-level=CRITICAL",  # of its own affairs; a failure is raised here
            f"--IPKernelApp.exec_files={_OFFLINE}",
            f"--InlineBackend.figure_formats={set(formats)}",
        ],
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
        message = f"{name}, {describe(notebook, last_started)}: {reason}"
        raise CellError(message, last_started, reason) from None
    finally:
        watch.close()
    if not watch.seconds:
        raise BuildError(f"{name}: no cell with code")
    if (total := sum(watch.seconds.values())) > NOTEBOOK_SECONDS:
        raise BuildError(f"{name}: took {total:.0f} s of CPU time, more than {NOTEBOOK_SECONDS} s")
    return watch.seconds


def describe(notebook: NotebookNode, number: int) -> str:
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
