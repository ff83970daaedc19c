"""Small tasks for launchers, in a module that a process imports at once."""

import os
import signal
from pathlib import Path

import torch


def succeed(value):
    return value, torch.get_num_threads()


def fail(value):
    raise KeyError(value)


def die(folder):
    """Leave a trace, and die."""
    Path(folder, str(len(list(Path(folder).iterdir())))).touch()
    os.kill(os.getpid(), signal.SIGKILL)
