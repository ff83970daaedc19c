"""Run folders: the configuration, checkpoints, results and pictures of one run."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from evidence.experiments.config import Compare, Train, differences
from evidence.experiments.storage import checkpoints, results
from evidence.experiments.storage.files import (
    LOCK,
    expect_plain,
    is_leftover,
    move,
    remove,
    sweep,
    unfinished,
    write,
)
from evidence.experiments.storage.records import Row
from evidence.experiments.storage.schema import (
    MAX_CONFIG_BYTES,
    parse_yaml,
    read_bytes,
    signed,
    typed,
)

# What is made from the weights of a run.
OF_WEIGHTS = (
    *("results.json", "per_datum.csv", "samples", "posterior.nc", "gaps.png"),
    *("calibration.json", "calibration.png", "reference.json", "reference.png"),
    *("latent_codes.png", "training_curves.png", "reconstructions.png", "samples.png"),
    "manifold.png",
)


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
    def opened(self, config: Train | Compare, *, resume: bool) -> Generator[None]:
        """Make or re-enter the folder; a new one that fails before anything was saved is removed.

        Raises:
            ValueError: the folder holds another run, or this one and `resume` is false, or another
                process is at work in it.
        """
        self._expect_room_for(config, resume=resume)
        existed, is_new, is_ours = self.path.exists(), not self._config.exists(), False
        text = yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True)
        try:
            unfinished(self.path)  # a removal that was cut short
            self.path.mkdir(parents=True, exist_ok=True)
            with self.locked():
                self._expect_room_for(config, resume=resume)  # what another did in between
                is_ours = True
                if is_new:
                    write(self._config, text)
                yield
                write(self._config, text)  # of a run that went on, now that it did
        except Exception:
            if is_ours and is_new and not self._holds_results():
                with suppress(OSError):
                    remove(self._config if existed else self.path)
            raise

    @contextmanager
    def locked(self) -> Generator[None]:
        """Keep other processes out, also after a crash of theirs, and sweep what that left.

        A folder that cannot be written to is not locked: nothing can happen to it.

        Raises:
            ValueError: another process is at work in it, or there are links in it.
        """
        expect_plain(self.path)
        lock = FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise ValueError(
                f"{self.path} is in use by another process, which has locked it: wait for it, or "
                "choose another folder"
            ) from None
        except OSError:
            yield
            return
        try:
            with suppress(OSError):
                sweep(self.path)
                self.set_aside()
            yield
        finally:
            lock.release()

    def set_aside(self) -> None:
        """Move what was found of weights that are no longer the newest into `earlier/`, and say so.

        `.weights` tells which weights all that is in the folder was made from.
        """
        newest = checkpoints.newest(self.checkpoints)
        if newest is None:
            return
        mark, weights = self.path / ".weights", checkpoints.read_meta(newest)["weights_sha256"]
        is_marked = mark.exists()
        before = read_bytes(mark, 1000).decode("ascii", "replace").strip() if is_marked else weights
        found = [self.path / name for name in OF_WEIGHTS if (self.path / name).exists()]
        if found and before != weights:
            target = self.path / "earlier" / "".join(c for c in before[:12] if c.isalnum())
            for path in found:
                move(path, target)
            names = ", ".join(path.name for path in found)
            print(f"of earlier weights, and so moved to {target}: {names}")
        if before != weights or not is_marked:
            remove(self.path / "annealing")
            write(mark, f"{weights}\n")

    def _expect_room_for(self, config: Train | Compare, *, resume: bool) -> None:
        if not self.path.exists() or self._is_empty():
            return
        if not self._config.exists():
            raise ValueError(f"{self.path} is in use and no run folder: choose another --out")
        theirs = asdict(self.read_config())
        if differing := differences(type(config).__name__, asdict(config), theirs):
            raise ValueError(
                f"{self.path} holds another run ({'; '.join(differing)}): choose another --out"
            )
        if not resume and self._holds_results():
            raise ValueError(
                f"{self.path} holds this run already: pass --resume true to go on with it, or "
                "choose another --out"
            )

    def _is_empty(self) -> bool:
        """Whether there is nothing but what a process leaves that dies as it begins."""
        return self.path.is_dir() and all(
            entry.name == LOCK or is_leftover(entry) for entry in self.path.iterdir()
        )

    def _holds_results(self) -> bool:
        return self._results.exists() or any(self.path.rglob("epoch-*"))

    def read_config(self) -> Train | Compare:
        """The configuration of the run.

        Raises:
            ValueError: there is none, it cannot be read, or it is of no run of this suite.
        """
        expect_plain(self.path)
        try:
            values = parse_yaml(read_bytes(self._config, MAX_CONFIG_BYTES))
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} is no run folder: it has no {self._config.name}"
            ) from None
        except ValueError as error:
            raise ValueError(f"{self._config} cannot be read: {error}") from None
        is_comparison = isinstance(values, dict) and "guides" in values
        try:
            return typed(Compare if is_comparison else Train, values)
        except ValueError as error:
            what = "comparison" if is_comparison else "training run"
            raise ValueError(f"{self.path} is no {what}: {error}") from None

    def write_results(
        self, command: str, rows: Sequence[Row | dict[str, Any]], **more: Any
    ) -> None:
        """Replace `results.json`."""
        results.put(self._results, command, rows, **more)

    def read_results(self) -> results.Results | None:
        """The document last written, or None if there is none.

        Raises:
            ValueError: it is damaged, or not what was written.
        """
        return results.read(self._results)

    def write_document(self, name: str, document: dict[str, Any]) -> None:
        """Write a JSON document with a checksum into the folder."""
        write(self.path / name, signed(document))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file into the folder."""
        write(self.path / name, text)
