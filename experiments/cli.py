"""The command line `evidence`. Heavy imports wait until a command runs."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from typing import Any, NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser

from evidence.experiments.config import (
    Bench,
    Calibrate,
    Check,
    Compare,
    Evaluate,
    Export,
    Gaps,
    Guides,
    Marginal,
    Models,
    Reference,
    Sample,
    Train,
)
from evidence.experiments.reports import terminal
from evidence.experiments.setup.option_files import expect_own_words, expect_plain_options
from evidence.experiments.setup.words import at_home, prepared, understandable
from evidence.experiments.storage.versions import version_of

COMMANDS: dict[str, type[Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "gaps": Gaps,
    "calibrate": Calibrate,
    "reference": Reference,
    "export": Export,
    "sample": Sample,
    "check": Check,
    "marginal": Marginal,
    "bench": Bench,
    "guides": Guides,
    "models": Models,
}

_LIST_HELP = {
    "guides": 'guides with their options, such as MeanField FullRank "Planar(num_flows=16)".',
    "runs": "run folders.",
    "rows": "rows of the evaluation data, such as 0 1 2.",
    "models": "models of the same data, such as pines.py:density pines.py:adjusted.",
    "prior_scale": "priors to stretch, and by which factors, such as tau=0.5,1,2.",
    "problems": "problems whose evidence is known [default: all].",
    "estimators": "auto, smc, bridge, ais, nested, or your own, such as my.py:estimator "
    "[default: the first four].",
}
_LIST_TYPES = {"rows": int}
_POSITIONAL_LISTS = {"runs"}

_GOING_ON = {
    "train": "--resume true goes on from the newest checkpoint",
    "compare": "the same command goes on from the newest checkpoint",
    "evaluate": "annealing goes on from its last snapshot when the same command is given again; "
    "all else starts anew",
    "calibrate": "nothing was written; the same command starts anew",
    "reference": "nothing was written; the same command starts anew",
    "export": "nothing was written; the same command starts anew",
    "marginal": "nothing was written; the same command starts anew",
    "bench": "the same command goes on with the trials that are left",
}


class Parser(ArgumentParser):
    """A parser that answers bad options with one line and the closest option there is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong in one line and exit with 2."""
        text = understandable(_one_line(message), COMMANDS)
        fail(text + self._suggestion(text))

    def _suggestion(self, message: str) -> str:
        if "nrecognized" not in message:
            return ""
        unknown = re.findall(r"--[\w.-]+", message)
        known = [flag for action in self._actions for flag in action.option_strings]
        written = f"--{unknown[0].lstrip('-').replace('-', '_')}" if unknown else ""
        close = difflib.get_close_matches(written, known, n=1)
        command = self.prog.replace(" [options]", "")
        return f" (did you mean {close[0]}?)" if close else f": see `{command} --help`"


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="evidence",
        description="Swap the guide, keep the model, and report the evidence with error bars.",
        version=version_of("evidence"),
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command")
    for name, options in COMMANDS.items():
        commands.add_subcommand(name, _command_parser(options), help=_summary(options))
    return parser


def _command_parser(options: type[Any]) -> Parser:
    command = Parser(description=_summary(options), allow_abbrev=False)
    command.add_argument("--config", action=ActionConfigFile, help="YAML file of options.")
    lists = {f.name: f.default_factory for f in fields(options) if f.default_factory is not MISSING}
    for name, default in lists.items():  # `--guides A B C`, where a list type would want [A, B, C]
        if name in _POSITIONAL_LISTS:
            arguments = command.add_argument(name, nargs="+", type=str)
        else:
            kind = _LIST_TYPES.get(name, str)
            arguments = command.add_argument(f"--{name}", nargs="+", type=kind, default=default())
        arguments.help = _LIST_HELP[name]
    command.add_class_arguments(options, as_positional=True, skip=set(lists))
    return command


def _summary(options: type) -> str:
    return (options.__doc__ or "").strip().splitlines()[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 when done. Exits with 2 on bad input, one line on stderr, and with 128 + the number of the
        signal when interrupted: 130 by Ctrl-C, 143 by SIGTERM.
    """
    # OpenMP's threads wait by spinning, and a second busy process on the machine then slows
    # training down sixtyfold; asleep they cost little. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = list(sys.argv[1:] if argv is None else argv)
    name = ""
    with terminal.forgiving_streams(), terminal.signals_as_interrupts():
        try:
            words = prepared(words, COMMANDS)
            expect_plain_options(words)
            arguments = build_parser().parse_args(words)
            name = arguments.command
            given = at_home(arguments[name].as_dict())
            options = {k: v for k, v in given.items() if k != "config"}
            expect_own_words(options, words)
            _run(name, COMMANDS[name](**options))
        except BrokenPipeError:  # the reader, such as `head`, had enough
            terminal.forget_output()
        except KeyboardInterrupt as interrupt:
            going_on = _GOING_ON.get(name, "nothing was changed")
            print(f"evidence: interrupted; {going_on}", file=sys.stderr)
            sys.exit(128 + terminal.signal_of(interrupt))
        except Exception as error:
            if os.environ.get("EVIDENCE_DEBUG"):
                raise
            terminal.forget_output()
            fail(_one_line(terminal.told(error)))
    return 0


def _run(name: str, options: Any) -> None:
    # The module of a command bears its name, and holds the function of that name.
    command = getattr(importlib.import_module(f"evidence.experiments.commands.{name}"), name)
    with terminal.own_settings():
        command(options)
    if sys.stdout is not None:
        sys.stdout.flush()


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    with suppress(OSError, ValueError):  # nobody may be listening
        print(f"evidence: {message}", file=sys.stderr)
    sys.exit(2)


def _one_line(message: str) -> str:
    """The part of a message that speaks to the user; Pyro appends a table of shapes."""
    return " ".join(re.split(r"\n\s*Trace Shapes", message, maxsplit=1)[0].split())
