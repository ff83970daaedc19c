"""Tasks that need nothing of each other, and what every launcher of them has in common."""

import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import torch
from tqdm import tqdm

from evidence.experiments.reports import terminal

ATTEMPTS = 3  # of a task whose worker dies
_TOLD = 5  # failures at the most that one line tells of

Job = TypeVar("Job", bound=Hashable)


@dataclass(frozen=True)
class Task:
    """A call that can be made in any process, at any time, and again if its process dies.

    Args:
        name: in words, such as "Planar, seed 1".
        call: a function on the top level of a module.
        arguments: what it is called with; a process can be sent them.
        device: where it computes, as `--device` has it.
    """

    name: str
    call: Callable[..., Any]
    arguments: tuple[Any, ...]
    device: str = "cpu"


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Args:
        task: which one.
        value: what its call returned.
        failure: why it failed, in a sentence; None if it did not.
    """

    task: Task
    value: Any = None
    failure: str | None = None


class AbstractLauncher(ABC):
    """Runs tasks. A new launcher implements `outcomes`.

    What a task finds it writes into its run folder, from which it is read as an interrupted run's
    is. So a launcher need not know what a task does: it starts it, and starts it again, up to
    `ATTEMPTS` times, if the process that was at work on it died.

    Args:
        width: how many tasks run at once; None where only a cluster knows.
    """

    is_here: ClassVar[bool] = False  # in this process

    def __init__(self, width: int | None) -> None:
        self.width = width

    @abstractmethod
    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Of every task, in the order in which they end."""

    def run(
        self, tasks: Sequence[Task], *, unit: str, have_bars: bool = False
    ) -> Iterator[tuple[Task, Any]]:
        """Every task with what it returned, in the order in which they end.

        Args:
            tasks: in the order in which they begin.
            unit: what one of them is called.
            have_bars: whether they show progress bars of their own, in this process.

        Raises:
            ValueError: some failed; all others are done by then.
        """
        failed = []
        is_shown = sys.stderr.isatty() and not (have_bars and self.is_here)
        with tqdm(total=len(tasks), unit=unit, disable=not is_shown) as bar:
            for outcome in self.outcomes(tasks):
                bar.update()
                bar.set_description(outcome.task.name)
                if outcome.failure is None:
                    yield outcome.task, outcome.value
                else:
                    failed.append(f"{outcome.task.name}: {outcome.failure}")
        if failed:
            more = f"; and {len(failed) - _TOLD} more" if len(failed) > _TOLD else ""
            count = f"{len(failed)} of {len(tasks)} {unit}s failed"
            raise ValueError(f"{count}: {'; '.join(failed[:_TOLD])}{more}")


class InProcess(AbstractLauncher):
    """Makes the calls one after the other in this process; an error is not caught."""

    is_here = True

    def __init__(self) -> None:
        super().__init__(width=1)

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Of every task, in their order."""
        for task in tasks:
            yield Outcome(task, task.call(*task.arguments))


class WorkerDiedError(Exception):
    """The process at work on a task is gone; the message says how, in words."""


class AbstractWorkers(AbstractLauncher, Generic[Job]):
    """Gives tasks to processes, and a task whose process died to another one.

    A new kind implements `start`, `ended`, `outcome` and `stop`. A job is what it knows a task at
    work by.
    """

    @abstractmethod
    def start(self, task: Task) -> Job:
        """Have a process work on it."""

    @abstractmethod
    def ended(self, jobs: Sequence[Job]) -> Job:
        """One that has ended, once there is one."""

    @abstractmethod
    def outcome(self, job: Job) -> Outcome:
        """Of a job that has ended.

        Raises:
            WorkerDiedError: it never came to an end.
        """

    @abstractmethod
    def stop(self, jobs: Sequence[Job]) -> None:
        """End those that are still at work."""

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Of every task, in the order in which they end."""
        waiting = deque((task, 1) for task in tasks)
        running: dict[Job, tuple[Task, int]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.width or len(tasks)):
                    task, attempt = waiting.popleft()
                    running[self.start(task)] = task, attempt
                job = self.ended(list(running))
                task, attempt = running.pop(job)
                try:
                    yield self.outcome(job)
                except WorkerDiedError as death:
                    failure = died(task.name, str(death), attempt)
                    if failure is None:
                        waiting.appendleft((task, attempt + 1))
                    else:
                        yield Outcome(task, failure=failure)
        finally:
            self.stop(list(running))


def perform(task: Task, num_threads: int) -> Outcome:
    """Make the call, in a process of its own, as the command line would."""
    torch.set_num_threads(num_threads)
    try:
        with terminal.own_settings():
            return Outcome(task, task.call(*task.arguments))
    except Exception as error:
        if os.environ.get("EVIDENCE_DEBUG"):
            traceback.print_exc()
        return Outcome(task, failure=terminal.told(error))


def threads_per_task() -> int:
    """One, unless OMP_NUM_THREADS asks for more: more tasks at once are the better use of cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(asked) if asked.isdecimal() and int(asked) > 0 else 1


def tasks_at_once() -> int:
    """One for each core of this machine that this process may use, over the threads of each."""
    of_process = getattr(os, "sched_getaffinity", None)  # not on every system
    num_cores = len(of_process(0)) if of_process else os.cpu_count() or 1
    return max(1, num_cores // threads_per_task())


def died(name: str, how: str, attempt: int) -> str | None:
    """Say that a task is started again; or, when it was too often already, why it failed.

    Args:
        name: of the task.
        how: its process died, in words.
        attempt: which one it was, from 1.
    """
    if attempt == ATTEMPTS:
        return f"its process died {ATTEMPTS} times ({how}); there may be too little memory"
    print(
        f"evidence: {name}: its process died ({how}): started again from where it was, attempt "
        f"{attempt + 1} of {ATTEMPTS}",
        file=sys.stderr,
    )
    return None
