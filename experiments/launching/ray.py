"""Tasks on Ray: a cluster on this machine for the time of a command, or one that others keep."""

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from evidence.experiments.launching.base import (
    AbstractLauncher,
    Outcome,
    Task,
    died,
    perform,
    tasks_at_once,
    threads_per_task,
)


class RayLauncher(AbstractLauncher):
    """Runs tasks on Ray, each with as many CPUs as it has threads, and a GPU if it computes on one.

    Run folders are where the command's are: the nodes of a cluster share that file system.

    Reference: P. Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018,
    https://arxiv.org/abs/1712.05889.

    Args:
        jobs: tasks at once [default: as many as the CPUs allow].
        address: of the cluster; without one, it is this machine.
    """

    def __init__(self, jobs: int | None = None, address: str | None = None) -> None:
        super().__init__(width=jobs or (None if address else tasks_at_once()))
        self.address = address

    def outcomes(self, tasks: Sequence[Task]) -> Iterator[Outcome]:
        """Of every task, in the order in which they end."""
        ray = self._connected()
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        waiting = deque((task, 1) for task in tasks)
        running: dict[Any, tuple[Task, int]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < (self.width or len(tasks)):
                    task, attempt = waiting.popleft()
                    running[self._start(ray, task, has_gpus=has_gpus)] = task, attempt
                (ended,), _ = ray.wait(list(running), num_returns=1)
                task, attempt = running.pop(ended)
                try:
                    yield ray.get(ended)
                except ray.exceptions.RayError as error:
                    failure = died(task.name, type(error).__name__, attempt)
                    if failure is None:
                        waiting.appendleft((task, attempt + 1))
                    else:
                        yield Outcome(task, failure=failure)
        finally:
            for ref in running:
                ray.cancel(ref, force=True)

    def _start(self, ray: Any, task: Task, *, has_gpus: bool) -> Any:
        if ":" in task.device:
            raise ValueError(
                f"--device {task.device} is of one machine, and Ray gives every task a GPU of its "
                "own: expected --device cuda"
            )
        on_gpu = task.device.startswith("cuda") or (task.device == "auto" and has_gpus)
        threads = threads_per_task()
        # Retries are counted here, where they are told of.
        remote = ray.remote(max_retries=0, num_cpus=threads, num_gpus=int(on_gpu))(_work)
        return remote.remote(task, threads, os.getcwd())

    def _connected(self) -> Any:
        """Ray, once there is a cluster: its first use starts one, or finds the one of the address.

        Raises:
            ValueError: there is none at the address.
        """
        ray = importlib.import_module("ray")
        if ray.is_initialized():
            return ray
        options: dict[str, Any] = {"address": self.address}
        if self.address is None:
            cpus = (self.width or 1) * threads_per_task()
            options = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        else:
            _expect_reachable(self.address)
        try:
            with _signals_kept():
                ray.init(logging_level=logging.ERROR, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"no Ray cluster at {self.address or 'this machine'}: {error}"
            ) from None
        return ray


@contextmanager
def on_ray(jobs: int | None = None, address: str | None = None) -> Generator[RayLauncher]:
    """A launcher, and the end of what it started.

    Raises:
        ValueError: Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("--launcher ray needs the package ray: pip install 'evidence[ray]'")
    ray = importlib.import_module("ray")
    was_there = ray.is_initialized()
    try:
        yield RayLauncher(jobs, address)
    finally:
        if not was_there:
            ray.shutdown()


def _work(task: Task, num_threads: int, folder: str) -> Outcome:
    """What a Ray worker does, in the folder of the command."""
    try:
        os.chdir(folder)
    except OSError:
        return Outcome(
            task,
            failure=f"{socket.gethostname()} has no folder {folder}: run folders lie on a file "
            "system that all nodes of the cluster share",
        )
    return perform(task, num_threads)


def _expect_reachable(address: str) -> None:
    """Check that somebody listens, for which Ray itself would wait for minutes.

    Raises:
        ValueError: nobody does.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", or what Ray knows how to find
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"no Ray cluster at --ray_address {address} ({error}): start one by `ray start --head`"
        ) from None


@contextmanager
def _signals_kept() -> Generator[None]:
    """SIGTERM stays what the command made of it; Ray would end the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
