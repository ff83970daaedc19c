"""The command line `evidence`. Heavy imports wait until a command runs."""

import difflib
import importlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import NoReturn

from jsonargparse import ActionConfigFile, ArgumentParser

from experiments.config import (
    Calibrate,
    Check,
    Compare,
    Evaluate,
    Export,
    Gaps,
    Guides,
    Models,
    Reference,
    Sample,
    Train,
)
from experiments.versions import version_of
from experiments.words import at_home, prepared, understandable

COMMANDS: dict[str, type] = {
    "train": Train,
    "evaluate": Evaluate,
    "compare": Compare,
    "gaps": Gaps,
    "calibrate": Calibrate,
    "reference": Reference,
    "export": Export,
    "sample": Sample,
    "check": Check,
    "guides": Guides,
    "models": Models,
}

_LIST_HELP = {
    "guides": 'guides with their options, such as MeanField FullRank "Planar(num_flows=16)".',
    "runs": "run folders.",
    "rows": "rows of the evaluation data, such as 0 1 2.",
}
_LIST_TYPES = {"rows": int}
_POSITIONAL_LISTS = {"runs"}

_GOING_ON = {
    "train": "--resume true goes on from the newest checkpoint",
    "compare": "the same command goes on from the newest checkpoint",
    "evaluate": "annealing goes on from its last snapshot when the same command is given again",
    "calibrate": "nothing was written; the same command starts anew",
    "reference": "nothing was written; the same command starts anew",
    "export": "nothing was written; the same command starts anew",
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


def _command_parser(options: type) -> Parser:
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
        0 when done. Exits with 2 on bad input, one line on stderr, and with 130 when interrupted.
    """
    # OpenMP's threads wait by spinning, and a second busy process on the machine then slows
    # training down sixtyfold; asleep they cost little. Read once, when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = prepared(sys.argv[1:] if argv is None else argv, COMMANDS)
    arguments = build_parser().parse_args(words)
    name = arguments.command
    options = {k: v for k, v in at_home(arguments[name].as_dict()).items() if k != "config"}
    try:
        # The module of a command bears its name, and holds the function of that name.
        command = getattr(importlib.import_module(f"experiments.{name}"), name)
        command(COMMANDS[name](**options))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        if os.environ.get("EVIDENCE_DEBUG"):
            raise
        fail(_one_line(str(error)))
    except KeyboardInterrupt:
        going_on = _GOING_ON.get(name, "nothing was changed")
        print(f"evidence: interrupted; {going_on}", file=sys.stderr)
        sys.exit(130)
    return 0


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"evidence: {message}", file=sys.stderr)
    sys.exit(2)


def _one_line(message: str) -> str:
    """The part of a message that speaks to the user; Pyro appends a table of shapes."""
    return " ".join(re.split(r"\n\s*Trace Shapes", message, maxsplit=1)[0].split())
