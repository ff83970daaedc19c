"""Which launcher the options of a command ask for."""

from collections.abc import Generator
from contextlib import contextmanager

from evidence.experiments.config import Launching
from evidence.experiments.launching.base import AbstractLauncher, InProcess
from evidence.experiments.launching.local import LocalLauncher
from evidence.experiments.launching.ray import on_ray


@contextmanager
def launched(config: Launching) -> Generator[AbstractLauncher]:
    """The launcher of a command, for as long as it needs one.

    Raises:
        ValueError: it is not installed.
    """
    match config.launcher:
        case "none":
            yield InProcess()
        case "local":
            yield LocalLauncher(config.jobs)
        case "ray":
            with on_ray(config.jobs, config.ray_address) as launcher:
                yield launcher
