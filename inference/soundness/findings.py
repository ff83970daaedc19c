"""What a check of a pair found: one line that names the site, what is wrong, and the mend."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a pair.

    Args:
        check: which check found it, e.g. "support"; see `preflight.check`.
        site: the site or parameter, where there is one.
        problem: what is wrong.
        mend: what to do.
    """

    check: str
    site: str | None
    problem: str
    mend: str

    def __str__(self) -> str:
        where = f" {self.site!r}" if self.site else ""
        return f"{self.check}{where}: {self.problem}: {self.mend}"


def from_error(check: str, error: Exception, prefix: str = "") -> Finding:
    """A finding out of an exception; our own end in ": " and the mend."""
    lines = str(error).splitlines() or [""]
    named = re.search(r"site '([^']+)'", lines[0])
    problem, _, mend = lines[0].rpartition(": ")
    if not isinstance(error, ValueError) or not problem:
        problem = f"{type(error).__name__}: {lines[0]}".removesuffix(": ")
        mend = "run the model and the guide on this batch by hand to see where"
    problem = f"{prefix}: {problem}" if prefix else problem
    return Finding(check, named.group(1) if named else None, problem, mend)


def guarded(check: str, probe: Callable[[], Iterable[Finding] | None]) -> Iterator[Finding]:
    """What a probe finds; an exception that it raises is a finding too."""
    try:
        yield from probe() or ()
    except Exception as error:  # a broken pair may raise anything
        yield from_error(check, error)
