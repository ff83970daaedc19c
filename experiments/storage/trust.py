"""What a run folder may make this program do: nothing but what the user names.

A folder can come from anyone. Its `config.yaml` names classes and paths; of these only the suite's
own classes are used, unless the user vouches for the folder with `--trust true`.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from evidence.experiments.config import FROM_FILES, Train, default_root, is_data_code, is_data_file
from evidence.experiments.storage.spec import foreign_names

_PATHS = ("--config", "--out", "--data_root", "--frozen_model")


def expect_trusted(config: Train, folder: Path, *, trust: bool) -> None:
    """Check that a run asks for no class that the user has not vouched for.

    Raises:
        ValueError: it does.
    """
    specs = (config.model, config.guide, config.objective)
    foreign = sorted(name for spec in specs for name in foreign_names(spec))
    foreign += [config.data] if is_data_code(config.data) else []
    if foreign and not trust:
        raise ValueError(
            f"{folder} asks for {foreign[0]}, which is no class of this suite: importing it runs "
            "its code. If you know what is in it, pass --trust true"
        )


def expect_named(specs: Iterable[str], words: Sequence[str]) -> None:
    """Check that classes from elsewhere stand on the command line, not in a file of options alone.

    Args:
        specs: models and guides that a command will build.
        words: the command line.

    Raises:
        ValueError: one is in the file of options alone.
    """
    typed = {name for word in named_words(words) for name in foreign_names(word)}
    if foreign := sorted({name for spec in specs for name in foreign_names(spec)} - typed):
        raise ValueError(
            f"the file of options asks for {foreign[0]}, which is no class of this suite: "
            "importing it runs its code. If you know what is in it, name it on the command line"
        )


def named_words(words: Sequence[str]) -> Iterator[str]:
    """The words that may name a class, `--flag=word` taken apart; paths may not."""
    flag = ""
    for word in words:
        before, flag = flag, word if word.startswith("--") else ""
        if before not in _PATHS and word.partition("=")[0] not in _PATHS:
            yield word.partition("=")[2] if flag else word


def trusted_root(config: Train, named: str | None, *, trust: bool) -> str | None:
    """The folder of the data: the one that the user names, or the run's own if it is trusted.

    Raises:
        ValueError: the run's is neither the default nor trusted, and its data are read from files,
            or from a file of its own.
    """
    if is_data_file(config.data) and not trust:
        raise ValueError(
            f"the run's data are in {config.data}: a run folder cannot choose what is read, so "
            "pass --trust true"
        )
    recorded = config.data_root
    if named is not None or recorded is None or config.data not in FROM_FILES:
        return named
    if not trust and os.path.abspath(recorded) != os.path.abspath(default_root()):
        raise ValueError(
            f"the run's data were in {recorded}: a run folder cannot choose what is read, so pass "
            f"--data_root {recorded} or --trust true"
        )
    return recorded
