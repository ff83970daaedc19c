"""Peers that do one thing, in turn and round after round: medians of seconds of CPU.

Every peer has one thread. What counts is the CPU time of the whole process, so that neither other
work on the machine nor threads that a peer starts all the same make a difference; only ratios of
one run mean anything.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate


@dataclass(frozen=True)
class Turn:
    """What a peer did in its turn: so many units of work, and the loss that it ended with."""

    units: int
    loss: float


@dataclass(frozen=True)
class Result:
    """A peer in one case: units per second of CPU, over the rounds."""

    case: str
    unit: str
    peer: str
    median: float
    lowest: float
    highest: float
    loss: float
    seconds_to_start: float


def alternate(
    case: str, unit: str, peers: dict[str, Callable[[], Callable[[], Turn]]], rounds: int
) -> list[Result]:
    """Make every peer, warm it up, and let all take turns.

    Args:
        case: what is done.
        unit: of the work.
        peers: makes of each peer what takes a turn.
        rounds: that are timed.
    """
    turns, starts = {}, {}
    for name, make in peers.items():
        started = time.process_time()
        turns[name] = make()
        turns[name]()
        starts[name] = time.process_time() - started
    speeds: dict[str, list[float]] = {name: [] for name in peers}
    losses: dict[str, float] = {}
    for _ in range(rounds):
        for name, turn in turns.items():
            started = time.process_time()
            done = turn()
            speeds[name].append(done.units / (time.process_time() - started))
            losses[name] = done.loss
    return [
        Result(
            case,
            unit,
            name,
            statistics.median(found),
            min(found),
            max(found),
            losses[name],
            starts[name],
        )
        for name, found in speeds.items()
    ]


def table(results: list[Result]) -> str:
    """Markdown, a row per peer, with its speed beside that of this suite without compiling."""
    base = {r.case: r.median for r in results if r.peer == "evidence, eager"}
    rows = [
        (
            result.case,
            result.peer,
            f"{result.median:,.0f} ({result.lowest:,.0f}–{result.highest:,.0f})",
            f"{result.median / base[result.case]:.2f}",
            f"{result.loss:.2f}",
            f"{result.seconds_to_start:.0f}",
        )
        for result in results
    ]
    headers = ("case", "peer", "per second of CPU", "× eager", "loss", "s to start")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def write(results: list[Result], path: Path) -> None:
    """The results as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
