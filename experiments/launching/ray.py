"""Tasks on Ray: a cluster on this machine for the time of a command, or one that others keep."""

import importlib.util
import logging
import os
import signal
import socket
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from evidence.experiments.launching.base import (
    AbstractWorkers,
    Outcome,
    Task,
    WorkerDiedError,
    perform,
    tasks_at_once,
    threads_per_task,
)


class RayLauncher(AbstractWorkers[Any]):
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
        self._ray = self._connected()
        return super().outcomes(tasks)

    def start(self, task: Task) -> Any:
        """Have Ray find a worker for it."""
        if ":" in task.device:
            raise ValueError(
                f"--device {task.device} is of one machine, and Ray gives every task a GPU of its "
                "own: expected --device cuda"
            )
        has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        on_gpu = task.device.startswith("cuda") or (task.device == "auto" and has_gpus)
        threads = threads_per_task()
        # Retries are counted where they are told of.
        options = {"max_retries": 0, "num_cpus": threads, "num_gpus": int(on_gpu)}
        return self._ray.remote(**options)(_work).remote(task, threads, os.getcwd())

    def ended(self, jobs: Sequence[Any]) -> Any:
        """One that has ended, once there is one."""
        (job,), _ = self._ray.wait(jobs, num_returns=1)
        return job

    def outcome(self, job: Any) -> Outcome:
        """Of a job that has ended."""
        try:
            return self._ray.get(job)
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(type(error).__name__) from error

    def stop(self, jobs: Sequence[Any]) -> None:
        """End those that are still at work."""
        for job in jobs:
            self._ray.cancel(job, force=True)

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
