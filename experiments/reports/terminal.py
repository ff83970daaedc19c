"""What surrounds a command: streams that cannot spell everything, signals, pictures' settings."""

import codecs
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_SPELLED = {"±": "+/-", "−": "-", "–": "-", "‖": "||", "≥": ">=", "≤": "<=", "→": "->", "…": "...",
            "×": "x", "·": "*", "\u0302": "^", "√": "sqrt", "∞": "inf"}  # fmt: skip
_ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


class _SignalError(KeyboardInterrupt):
    """A signal that ends the program as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextmanager
def forgiving_streams() -> Generator[None]:
    """Spell out what stdout and stderr cannot encode, `±` as `+/-`, instead of failing."""
    codecs.register_error("spelled", _spell)
    changed = []
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.closed and stream.errors == "strict":
            changed.append(stream)
            stream.reconfigure(errors="spelled")
    try:
        yield
    finally:
        for stream in changed:
            if not stream.closed:
                with suppress(OSError):  # it is flushed first, and may be full
                    stream.reconfigure(errors="strict")


def _spell(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    odd = error.object[error.start : error.end]
    return "".join(_SPELLED.get(character, "?") for character in odd), error.end


class _NoTerminal(io.TextIOWrapper):
    """A stream that is no terminal, wherever it leads."""

    def isatty(self) -> bool:
        return False


def hide_terminal() -> None:
    """Show no progress bars in this process, where those of others would run into them."""
    stream = sys.stderr
    if isinstance(stream, io.TextIOWrapper):  # whose buffer `sys.__stderr__` keeps open
        options: dict[str, Any] = {"encoding": stream.encoding, "errors": stream.errors}
        sys.stderr = _NoTerminal(stream.buffer, line_buffering=True, **options)


@contextmanager
def signals_as_interrupts() -> Generator[None]:
    """End at SIGTERM and SIGHUP as at Ctrl-C, unless somebody else handles or ignores them."""
    before = {}
    for name in _ENDING:
        number = getattr(signal, name, None)
        with suppress(ValueError):  # not in the main thread
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise _SignalError(number)


def signal_of(interrupt: KeyboardInterrupt) -> int:
    """The number of the signal that made an interrupt."""
    return interrupt.number if isinstance(interrupt, _SignalError) else signal.SIGINT


@contextmanager
def own_settings() -> Generator[None]:
    """What a command finds and leaves: its own pictures and dtype, warnings of one line."""
    with own_pictures(), own_dtype(), plain_warnings():
        yield


@contextmanager
def own_pictures() -> Generator[None]:
    """Draw with matplotlib's own settings: those of the user may ask for LaTeX, or for anything."""
    if "matplotlib" not in sys.modules:  # a command that draws nothing
        yield
        return
    import matplotlib  # noqa: PLC0415 (slow to import)

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@contextmanager
def plain_warnings() -> Generator[None]:
    """A warning is one line on stderr, said once, without the place in the code."""
    said: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        if text not in said:
            said.add(text)
            print(f"evidence: {text}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show  # ty: ignore[invalid-assignment]  (the hook, to be replaced)
        yield


@contextmanager
def own_dtype() -> Generator[None]:
    """A command on a user's program may change torch's default dtype, for as long as it runs."""
    import torch  # noqa: PLC0415 (slow to import)

    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def forget_output() -> None:
    """Drop what stdout still holds if it cannot be written: Python would fail on it at its end."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        with suppress(OSError, ValueError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def told(error: Exception) -> str:
    """An error as one sentence; of one that nobody foresaw, with its kind and its place."""
    if isinstance(error, ValueError | OSError) and str(error):
        return str(error)
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(last.filename)}, line {last.lineno}"
    message = " ".join(str(error).split())
    return (
        f"{type(error).__name__} in {place}: {message[:300]} (EVIDENCE_DEBUG=1 shows the traceback)"
    )
