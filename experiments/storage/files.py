"""The one way to change files: in full or not at all, and never through a link.

What is under way bears a name that begins with `.unfinished.`; `sweep` removes what a crash left.
"""

import glob
import os
import re
import shutil
import stat
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"

_UNFINISHED = ".unfinished."
_LEFTOVER = re.compile(r"\.(unfinished|\d+)(\.|$)")


def write(path: Path, content: str | bytes) -> None:
    """Write a file in full or not at all; a link of that name is replaced, not followed."""
    partial = unfinished(path)
    try:
        put(partial, content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def put(path: Path, content: bytes) -> None:
    """Write a file that is not there yet, to the disk; a crash may leave a part of it."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def replaced(path: Path) -> Generator[Path]:
    """A path beside `path` to write to; the file takes its place if nothing went wrong."""
    partial = unfinished(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Generator[Path]:
    """An empty folder beside `path` to `put` files into; it takes this name if all went well."""
    partial = unfinished(path)
    partial.mkdir()
    try:
        yield partial
        _sync(partial)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there: by name first, so that no half of it is left."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        doomed = unfinished(path)
        path.rename(doomed)
        shutil.rmtree(doomed)


def move(path: Path, folder: Path) -> None:
    """Move a file or folder into another folder, in place of what bears its name there."""
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / path.name)
    path.rename(folder / path.name)


def sweep(folder: Path) -> None:
    """Remove what processes that died left unfinished, here and in the folders below.

    Folders with a lock of their own are left to those who hold it.
    """
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if is_leftover(entry):
            _erase(entry)
        elif entry.is_dir() and not entry.is_symlink() and not (entry / LOCK).exists():
            sweep(entry)


def is_leftover(path: Path) -> bool:
    """Whether a file or folder of this name was never finished, or not removed to its end."""
    return _LEFTOVER.match(path.name) is not None


def expect_plain(folder: Path) -> None:
    """Check that a folder holds regular files and folders alone; it may be a link itself.

    Raises:
        ValueError: there is a symbolic link, a pipe or a device, or a lock that is another file.
    """
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(root, name)
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
                raise ValueError(
                    f"{path} is {kind}: expected files and folders alone, so that nothing "
                    "elsewhere is read or overwritten; remove it, or put a copy in its place"
                )
            if name == LOCK and (not stat.S_ISREG(mode) or path.lstat().st_nlink > 1):
                raise ValueError(f"{path} is no lock of this program: remove it")


def unfinished(path: Path) -> Path:
    """The name of what will be `path`, with nothing there, nor what a process that died left."""
    for left in path.parent.glob(f"{_UNFINISHED}*.{glob.escape(path.name)}"):
        if _is_dead(left.name.split(".")[2]):
            _erase(left)
    partial = path.with_name(f"{_UNFINISHED}{os.getpid()}.{path.name}")
    _erase(partial)
    return partial


def _is_dead(process: str) -> bool:
    """Whether no process has this number; not known on Windows."""
    if os.name == "nt" or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _erase(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where folders can be opened."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
