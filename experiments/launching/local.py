"""Tasks in processes of this machine, a new process for each."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess, parent_process

from evidence.experiments.launching.base import (
    AbstractWorkers,
    Outcome,
    Task,
    WorkerDiedError,
    perform,
    tasks_at_once,
    threads_per_task,
)
from evidence.experiments.reports import terminal

_SECONDS_TO_END = 10
# A server that has imported what tasks need forks a process in no time; Windows has none.
_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


class LocalLauncher(AbstractWorkers["_Worker"]):
    """Runs tasks in processes of this machine, which share its devices.

    Args:
        jobs: processes at once [default: one for each core that this process may use, over the
            threads that each has].
    """

    def __init__(self, jobs: int | None = None) -> None:
        super().__init__(width=jobs or tasks_at_once())

    def start(self, task: Task) -> "_Worker":
        """Have a new process work on it."""
        context = multiprocessing.get_context(_METHOD)
        if _METHOD == "forkserver":
            context.set_forkserver_preload([task.call.__module__])
        ours, theirs = context.Pipe(duplex=False)
        arguments = (task, threads_per_task(), theirs)
        process = context.Process(target=_work, args=arguments)  # ty: ignore[missing-attribute]
        process.start()
        theirs.close()  # else its end would not be seen here
        return _Worker(process, ours)

    def ended(self, jobs: Sequence["_Worker"]) -> "_Worker":
        """One that has ended, once there is one."""
        pipe = wait([worker.pipe for worker in jobs])[0]
        return next(worker for worker in jobs if worker.pipe is pipe)

    def outcome(self, job: "_Worker") -> Outcome:
        """What it sent."""
        try:
            return pickle.loads(job.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            job.process.join()
            raise WorkerDiedError(_how(job.process.exitcode)) from None
        finally:
            job.end()

    def stop(self, jobs: Sequence["_Worker"]) -> None:
        """End those that are still at work."""
        for worker in jobs:
            worker.process.terminate()
        for worker in jobs:
            worker.end()


@dataclass(frozen=True)
class _Worker:
    """A process at work on a task, and the pipe by which its outcome comes."""

    process: BaseProcess
    pipe: Connection

    def end(self) -> None:
        """Wait until it is gone."""
        self.process.join(_SECONDS_TO_END)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _work(task: Task, num_threads: int, pipe: Connection) -> None:
    """What a worker does: one task, without progress bars, and not for longer than its parent."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    terminal.hide_terminal()
    try:
        with terminal.forgiving_streams(), terminal.signals_as_interrupts():
            pipe.send_bytes(pickle.dumps(perform(task, num_threads)))
    except KeyboardInterrupt as interrupt:
        sys.exit(128 + terminal.signal_of(interrupt))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _how(exit_code: int | None) -> str:
    with suppress(ValueError, TypeError):
        return signal.Signals(-exit_code).name  # ty: ignore[unsupported-operator]
    return f"exit code {exit_code}"
