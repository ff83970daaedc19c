"""Run folders: the configuration, checkpoints, results and pictures of one run."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from experiments.atomic import replaced
from experiments.config import Compare, Train, differences

RESULTS_VERSION = 1


class RunFolder:
    """A folder with `config.yaml`, `results.json`, `checkpoints/` and pictures.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self._config = self.path / "config.yaml"
        self._results = self.path / "results.json"

    @contextmanager
    def opened(self, config: Train | Compare, *, resume: bool) -> Iterator[None]:
        """Make or re-enter the folder; a new one that fails before anything was saved is removed.

        Raises:
            ValueError: the folder holds another run, or this one and `resume` is false, or another
                process is at work in it.
        """
        existed = self.path.exists()
        self._expect_room_for(config, resume=resume)
        self.path.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(asdict(config), sort_keys=False)
        with self._locked():
            if not self._config.exists():
                self._write(self._config, text)
            try:
                yield
            except Exception:
                if not existed and not self._holds_results():
                    shutil.rmtree(self.path)
                raise
            self._write(self._config, text)  # of a run that went on, now that it did

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other processes out, also after a crash of theirs."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self.path} is in use by another process: wait for it, or choose an --out"
                ) from None
            yield

    def _expect_room_for(self, config: Train | Compare, *, resume: bool) -> None:
        if not self.path.exists() or (self.path.is_dir() and not any(self.path.iterdir())):
            return
        if not self._config.exists():
            raise ValueError(f"{self.path} is in use and no run folder: choose another --out")
        if differing := differences(type(config).__name__, asdict(config), self.read_config()):
            raise ValueError(
                f"{self.path} holds another run ({'; '.join(differing)}): choose another --out"
            )
        if not resume:
            raise ValueError(
                f"{self.path} holds this run already: pass --resume true to go on with it, or "
                "choose another --out"
            )

    def _holds_results(self) -> bool:
        return self._results.exists() or any(self.path.rglob("epoch-*"))

    def read_config(self) -> dict[str, Any]:
        """The configuration of the run.

        Raises:
            ValueError: there is none, or it cannot be read.
        """
        try:
            config = yaml.safe_load(self._config.read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is no run folder: it has no {self._config.name}"
            ) from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            config = None
        if not isinstance(config, dict):
            raise ValueError(f"{self._config} cannot be read: expected YAML written by a run")
        return config

    def write_results(self, command: str, rows: list[dict[str, Any]], **more: Any) -> None:
        """Replace `results.json`."""
        document = {"version": RESULTS_VERSION, "command": command, "rows": rows, **more}
        self._write(self._results, json.dumps(document, indent=1, allow_nan=False) + "\n")

    def read_results(self) -> dict[str, Any] | None:
        """The document last written, or None."""
        try:
            return json.loads(self._results.read_text())
        except (OSError, ValueError):
            return None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder."""
        self._write(self.path / name, text)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        """Write in full or not at all."""
        with replaced(path) as unfinished:
            unfinished.write_text(text)
