"""Objects of the user's own: `FILE.py:NAME`, or the dotted path of one that can be imported."""

import hashlib
import importlib
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from evidence.models.networks import expect_choice


@dataclass
class OwnCode:
    """The user's files that one assembly runs, each of them once.

    Files, and what they import that lies beside them, are run anew for every assembly: a network on
    the top level of a file is then a fresh one, and files of one name in two folders do not meet.

    Args:
        sources: SHA-256 of every file that was run, by the name that the user gave it.
    """

    sources: dict[str, str] = field(default_factory=dict)
    _modules: dict[str, ModuleType] = field(default_factory=dict)

    def find(self, what: str, name: str) -> Any:
        """The object of this name.

        Args:
            what: it is to be, in words.
            name: `FILE.py:NAME` or a dotted path.

        Raises:
            ValueError: no such file, module or object; or its code fails.
        """
        place, _, attribute = name.rpartition(":" if ".py:" in name else ".")
        if place not in self._modules:
            self._modules[place] = self._run(what, name, place)
        module = self._modules[place]
        names = [n for n, value in vars(module).items() if callable(value) and n[0] != "_"]
        return getattr(module, expect_choice(f"{what} in {place}", attribute, names))

    def forget(self) -> None:
        """Run every file anew when it is next asked for."""
        self._modules.clear()

    def _run(self, what: str, name: str, place: str) -> ModuleType:
        path = Path(place).expanduser() if ".py:" in name else None
        if path is not None and not path.is_file():
            raise ValueError(f"unknown {what} {name!r}: there is no file {place}")
        try:
            module = _imported(place) if path is None else _executed(path)
        except ModuleNotFoundError as error:
            if path is not None or error.name is None or not place.startswith(error.name):
                raise ValueError(_failed(place, error)) from error
            raise ValueError(f"unknown {what} {name!r}: there is no module {place}") from None
        except (Exception, SystemExit) as error:  # whatever the code does
            raise ValueError(_failed(place, error)) from error
        path = path or Path(getattr(module, "__file__", None) or "")
        if path.is_file():
            self.sources[place] = hashlib.sha256(path.read_bytes()).hexdigest()
        return module


@contextmanager
def own_code() -> Generator[OwnCode]:
    """For one assembly; what was imported from beside the files is forgotten at its end."""
    before = set(sys.modules)
    code = OwnCode()
    try:
        yield code
    finally:
        files = [Path(place).expanduser() for place in code.sources if place.endswith(".py")]
        folders = {file.resolve().parent for file in files}
        for name in sys.modules.keys() - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).resolve().parent in folders:
                del sys.modules[name]


def _failed(place: str, error: BaseException) -> str:
    return f"{place} cannot be imported: {type(error).__name__}: {error}"


def _imported(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # a file in the current folder, as with `python -m`
    return importlib.import_module(name)


def _executed(path: Path) -> ModuleType:
    """A file, run as a module that can import what lies beside it, now and later on."""
    folder = str(path.resolve().parent)
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    module = ModuleType(f"{path.stem}_{digest}")
    module.__file__ = str(path)
    before, sys.modules[module.__name__] = list(sys.path), module
    sys.path.insert(0, folder)
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    finally:
        sys.path[:] = before if folder in before else [*before, folder]
    return module
