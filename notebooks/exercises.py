"""Blanks in place of solutions, and the formats of the graders.

A source marks what students write themselves, in code and in text, with the lines

    ### BEGIN SOLUTION
    # Hint: what a student is told instead.
    ### END SOLUTION

and the cell that checks it by `points=N` in its header: `# %% points=2`. The hint may be left out.
A text is worth one point, or `# %% [markdown] points=10`, which are given by hand.
As a source is text, the notebooks that are made of it have no outputs.
"""

import copy
import re
from collections.abc import Callable, Iterator

import nbformat
from nbformat import NotebookNode

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
_BLOCK = re.compile(
    rf"^(?P<indent>[ ]*){BEGIN}\n(?P<inside>.*?)^[ ]*{END}[ ]*$", re.DOTALL | re.MULTILINE
)
_HINT = re.compile(r"\A(?:[ ]*# (?:Hint: )?.*\n)+")


_GITHUB = re.compile(r"git\+https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?(?:@.*)?$")
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_ASK = """\
try:
    import evidence
except ModuleNotFoundError:
    raise SystemExit("the suite is missing: pip install its wheel or repository") from None"""
_INSTALL = """\
try:
    import evidence
except ModuleNotFoundError:  # on Colab, say
    import subprocess
    import sys

    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, {spec}], check=True)"""


class MarkError(ValueError):
    """Marks that do not pair up; the message is one line."""


def with_first_cell(notebook: NotebookNode, name: str, install: str | None) -> NotebookNode:
    """A copy that begins with what installs the suite where it is missing, such as on Colab.

    Args:
        notebook: the notebook.
        name: of its file.
        install: what pip is to install; None for a line that asks for it. Of a repository on
            GitHub, badges open the students' notebook on its branch "course".
    """
    notebook = copy.deepcopy(notebook)
    source = _ASK if install is None else _INSTALL.format(spec=_quoted(install))
    notebook.cells.insert(0, nbformat.v4.new_code_cell(source))
    if found := _GITHUB.match(install or ""):
        links = {
            "Open in Colab": f"https://colab.research.google.com/github/{found[1]}/blob/course/students/",
            "Open in Binder": f"https://mybinder.org/v2/gh/{found[1]}/course?labpath=students/",
        }
        badges = " · ".join(f"[{text}]({url}{name}.ipynb)" for text, url in links.items())
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(badges))
    return notebook


def has_solution(cell: NotebookNode) -> bool:
    """Whether there is something for students to write in a cell."""
    return BEGIN in cell.source


def points_of(cell: NotebookNode) -> int:
    """What a check is worth; 0 if a cell is none."""
    return int(cell.metadata.get("points", 0)) if cell.cell_type == "code" else 0


def student_version(notebook: NotebookNode) -> NotebookNode:
    """A copy without solutions, whose blanks raise `NotImplementedError`.

    Raises:
        MarkError: a solution that begins does not end, or the reverse.
    """
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        expect_pairs(cell)
        cell.source = _replaced(cell, _code_blank, _text_blank)
        cell.metadata.pop("points", None)
    return notebook


def solution_version(notebook: NotebookNode) -> NotebookNode:
    """A copy without the marks."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        expect_pairs(cell)
        cell.source = _replaced(cell, _code_solution, _text_solution)
        cell.metadata.pop("points", None)
    return notebook


def nbgrader_version(notebook: NotebookNode, name: str) -> NotebookNode:
    """A source for `nbgrader generate_assignment`: what is graded, for how many points."""
    notebook = copy.deepcopy(notebook)
    for number, cell in enumerate(notebook.cells):
        expect_pairs(cell)
        points, is_text = points_of(cell), cell.cell_type == "markdown"
        worth = int(cell.metadata.pop("points", 1))
        if not points and not has_solution(cell):
            continue
        graded = points > 0 or is_text
        cell.metadata["nbgrader"] = {
            "schema_version": 3,
            "grade_id": f"{name}-{number:03d}",
            "grade": graded,
            "solution": has_solution(cell),
            "locked": not has_solution(cell),
            "task": False,
        } | ({"points": worth} if graded else {})
        if has_solution(cell):
            cell.source = _replaced(cell, _code_marked, _text_marked)
    return notebook


def otter_version(notebook: NotebookNode, name: str, executed: NotebookNode) -> NotebookNode:
    """A source for `otter assign`: each solution, and the cells up to its check, are a question.

    Otter compares what a check prints with what it printed when the solution was executed. The
    check stands there for students as well, so that they see its message and need no Otter.
    """
    notebook = copy.deepcopy(notebook)
    for cell, run in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type == "markdown":  # Otter would leave the answers there
            cell.source = _replaced(cell, _code_for_otter, _text_blank)
        if points_of(cell):
            cell.outputs = [output for output in run.outputs if output.output_type == "stream"]
    cells = [_raw("# ASSIGNMENT CONFIG", f"name: {name}", "export_cell: false", "init_cell: false")]
    for group in _questions(notebook.cells):
        cells += _question(group) if points_of(group[-1]) else group
    for cell in cells:
        cell.metadata.pop("points", None)
    notebook.cells = cells
    notebook.metadata.setdefault("kernelspec", _KERNEL)  # without it Otter does not know Python
    return notebook


def expect_pairs(cell: NotebookNode) -> None:
    """Check that solutions that begin also end.

    Raises:
        MarkError: some do not.
    """
    marks = [line.strip() for line in cell.source.splitlines() if line.strip() in (BEGIN, END)]
    if marks != [BEGIN, END] * (len(marks) // 2):
        first = next(line for line in cell.source.splitlines() if line.strip())
        raise MarkError(f"expected {BEGIN} and {END} in turn, in the cell that begins {first!r}")


def _replaced(
    cell: NotebookNode, code: Callable[[str, str], str], text: Callable[[str], str]
) -> str:
    if cell.cell_type == "code":
        return _BLOCK.sub(lambda m: code(m["indent"], m["inside"]), cell.source)
    return _BLOCK.sub(lambda m: text(m["inside"]), cell.source)


def _hint(inside: str) -> tuple[str, str]:
    """What a block tells students, in one line, and the solution."""
    found = _HINT.match(inside)
    if not found or not found[0].lstrip().startswith("# Hint: "):
        return "", inside
    lines = [line.strip().removeprefix("# ") for line in found[0].splitlines()]
    return " ".join(lines).removeprefix("Hint: "), inside[found.end() :]


def _code_blank(indent: str, inside: str) -> str:
    hint = _hint(inside)[0] or "your code here"
    return f"{indent}# YOUR CODE HERE\n{indent}raise NotImplementedError({_quoted(hint)})"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text_blank(inside: str) -> str:
    return "*Your answer here.*"


def _code_solution(indent: str, inside: str) -> str:
    return _hint(inside)[1].rstrip("\n")


def _text_solution(inside: str) -> str:
    return "**Answer.** " + inside.strip()


def _code_marked(indent: str, inside: str) -> str:
    """For nbgrader, which puts a stub of its own there: the hint stays above it."""
    hint, solution = _hint(inside)
    comment = f"{indent}# Hint: {hint}\n" if hint else ""
    return f"{comment}{indent}{BEGIN}\n{solution}{indent}{END}"


def _text_marked(inside: str) -> str:
    return f"{BEGIN}\n{inside}{END}"


def _code_for_otter(indent: str, inside: str) -> str:
    hint, solution = _hint(inside)
    blank = f"raise NotImplementedError({_quoted(hint or 'your code here')})"
    return (
        f'{indent}""" # BEGIN PROMPT\n{indent}{blank}\n{indent}""" # END PROMPT\n'
        f"{indent}# BEGIN SOLUTION\n{solution}{indent}# END SOLUTION"
    )


def _questions(cells: list[NotebookNode]) -> Iterator[list[NotebookNode]]:
    """Cells in groups: from a solution to its check, and all others one by one."""
    group: list[NotebookNode] = []
    for cell in cells:
        if has_solution(cell) and cell.cell_type == "code":
            yield from ([one] for one in group)
            group = [cell]
        elif points_of(cell):
            yield [*group, cell]
            group = []
        elif group:
            group.append(cell)
        else:
            yield [cell]
    yield from ([one] for one in group)


def _question(group: list[NotebookNode]) -> list[NotebookNode]:
    *solution, check = group
    name = re.sub(r"\W+", "_", check.source.split("(")[0].split(".")[-1]).strip("_")
    for cell in solution:
        cell.source = _replaced(cell, _code_for_otter, _text_blank)
    config = f"name: {name}", f"points: {points_of(check)}", "check_cell: false"
    return [
        _raw("# BEGIN QUESTION", *config),
        _raw("# BEGIN SOLUTION"),
        *solution,
        _raw("# END SOLUTION"),
        _raw("# BEGIN TESTS"),
        check,
        _raw("# END TESTS"),
        _raw("# END QUESTION"),
        nbformat.v4.new_code_cell(check.source),
    ]


def _raw(*lines: str) -> NotebookNode:
    return nbformat.v4.new_raw_cell("\n".join(lines))
