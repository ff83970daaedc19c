"""`Name(option=value)`: how classes, functions and their options are written, and what is foreign.

A name is one of the suite, a dotted path, or `FILE.py:NAME` for an object in a user's own file.
"""

import ast
import re
from dataclasses import dataclass, field
from typing import Any

_FILE = re.compile(r"[^\s()\[\]{},='\"]+\.py:\w+")
_DOTTED = re.compile(r"[\w.]+\.[\w.]+")
_AUTOGUIDE = re.compile(r"pyro\.infer\.autoguide\.\w+")


@dataclass(frozen=True)
class Spec:
    """A class or function by name with some of its options, as written on the command line.

    `VAE`, `Planar(num_flows=16)`, `my_guides.MyGuide(hidden_dims=[200, 200])`, `pines.py:density`,
    and guides around guides: `Refined(guide=Planar(num_flows=4), num_steps=5)`.

    Args:
        name: of the object.
        options: by keyword.
        is_called: whether there are brackets, which make a call of a function.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    is_called: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Read a name or a call with keyword arguments that are literals or bare words.

        Raises:
            ValueError: the text is anything else.
        """
        try:
            call = _tree(text)
            name = call.func if isinstance(call, ast.Call) else call
            keywords = call.keywords if isinstance(call, ast.Call) else []
            if isinstance(call, ast.Call) and call.args:
                raise ValueError("options go by keyword")
            if not isinstance(name, ast.Name | ast.Attribute):
                raise ValueError("no name")
            if any(keyword.arg is None for keyword in keywords):
                raise ValueError("options go by name")
            options = {word.arg: _value(word.value) for word in keywords if word.arg is not None}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"expected Name or Name(option=value, ...), got {text[:100]!r}, "
                "for example Planar(num_flows=16)"
            ) from None
        return cls(ast.unparse(name), options, isinstance(call, ast.Call))

    def __str__(self) -> str:
        if not self.options:
            return f"{self.name}()" if self.is_called and self.is_elsewhere else self.name
        words = {k: v if isinstance(v, Spec) else repr(v) for k, v in self.options.items()}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in words.items())})"

    @property
    def is_elsewhere(self) -> bool:
        """Whether the name is not one of the suite's own."""
        return "." in self.name

    def plain_options(self) -> dict[str, Any]:
        """The options as JSON has them: a spec among them becomes its text."""
        return {k: str(v) if isinstance(v, Spec) else v for k, v in self.options.items()}


def foreign_names(spec: str) -> set[str]:
    """The dotted names and `FILE.py:NAME`s in a spec, wherever they are: what would be run.

    Pyro's autoguides, which are installed with the suite, are none.
    """
    try:
        nodes = list(ast.walk(_tree(spec)))
        names = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
        names |= {node.id for node in nodes if isinstance(node, ast.Name) and ".py:" in node.id}
    except (SyntaxError, ValueError):
        return set()  # no name at all, which whoever builds it will say
    except (RecursionError, MemoryError):
        return {spec[:60]}
    words = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    names |= {name for word in words for name in _FILE.findall(word) + _DOTTED.findall(word)}
    names = {name for name in names if not any(other.startswith(f"{name}.") for other in names)}
    return {name for name in names if not _AUTOGUIDE.fullmatch(name)}


def _tree(text: str) -> ast.expr:
    """The expression, in which `FILE.py:NAME` is the name that it stands for."""
    files: dict[str, str] = {}

    def hidden(path: str) -> str:
        return files.setdefault(path, f"_file{len(files)}_") and files[path]

    text = text.strip()
    path, colon, rest = text.partition(".py:")
    if colon and "(" not in path:  # a path of any characters
        name = re.split(r"\W", rest, maxsplit=1)[0]
        text = hidden(f"{path}{colon}{name}") + rest.removeprefix(name)
    text = _FILE.sub(lambda found: hidden(found[0]), text)
    tree = ast.parse(text, mode="eval").body
    paths = {word: path for path, word in files.items()}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = paths.get(node.id, node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            for word, path in paths.items():
                node.value = node.value.replace(word, path)
    return tree


def _value(node: ast.expr) -> Any:
    match node:
        case ast.BinOp(op=ast.Sub()):  # a name with a hyphen, such as discretized-logistic
            return f"{_value(node.left)}-{_value(node.right)}"
        case ast.Call():
            return Spec.parse(ast.unparse(node))
        case ast.Name() | ast.Attribute():
            return ast.unparse(node)
    return ast.literal_eval(node)
