"""Build and execute the notebooks: `python notebooks/build.py [NAME ...]`.

Each `notebooks/[0-9]*.py` becomes an executed `.ipynb` beside it, with the solutions. NAMEs such as
`02_vae` build only some. A cell that fails or takes more than `CELL_SECONDS` ends the build with
one line on stderr. These are seconds of the kernel's CPU, not of the clock: other work on the
machine costs none.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

if __name__ == "__main__":  # started as a script: its folder is on the path, the checkout is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from notebooks import execution
from notebooks.execution import BuildError, describe
from notebooks.exercises import MarkError, solution_version


def find_sources(names: Sequence[str]) -> list[Path]:
    """The sources of the notebooks named, with or without folder and suffix; all if none is.

    Raises:
        BuildError: there is no such notebook.
    """
    known = {source.stem: source for source in sorted(execution.FOLDER.glob("[0-9]*.py"))}
    for name in names:
        if Path(name).stem not in known:
            raise BuildError(f"no notebook {name!r}: expected one of {', '.join(known)}")
    return [known[Path(name).stem] for name in names] if names else list(known.values())


def read(source: Path) -> NotebookNode:
    """The notebook of a source, with solutions in place of their marks.

    Raises:
        BuildError: marks that do not pair up.
    """
    try:
        return solution_version(jupytext.read(source))
    except MarkError as error:
        raise BuildError(f"{source.name}: {error}") from None


def build(source: Path) -> str:
    """Convert, execute and write one notebook.

    Returns:
        A line on the CPU time it took.

    Raises:
        BuildError: names the notebook and the cell that failed.
    """
    notebook = read(source)
    seconds = execution.execute(notebook, source.name)
    nbformat.write(notebook, source.with_suffix(".ipynb"))
    longest, number = max((s, number) for number, s in seconds.items())
    return (
        f"{source.stem}: {sum(seconds.values()):.0f} s of CPU time, of which {longest:.0f} s in "
        f"{describe(notebook, number)}"
    )


def main(names: Sequence[str]) -> int:
    """Build the notebooks named, or all; 0 if all were built, 1 if one failed."""
    try:
        for source in find_sources(names):
            print(build(source), flush=True)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
