"""Finding models, guides and objectives by name, and building them from `Name(option=value)`."""

import ast
import importlib
import inspect
import math
import pkgutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from evidence import guides, models
from evidence.experiments.config import RANGES
from evidence.guides import AbstractPosterior
from evidence.guides.model_guide import ModelGuide
from evidence.guides.two_level import TwoLevel
from evidence.inference import (
    IWAE,
    STL,
    BetaELBO,
    DReG,
    ForwardKL,
    FreeBits,
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)
from evidence.models import AbstractModel
from evidence.models.networks import expect_choice

# Pyro's objectives whose loss is one number of nats per datum, and ours.
OBJECTIVES: dict[str, type[ELBO]] = {
    kind.__name__: kind
    for kind in (
        Trace_ELBO,
        TraceMeanField_ELBO,
        TraceGraph_ELBO,
        TraceEnum_ELBO,
        RenyiELBO,
        IWAE,
        DReG,
        STL,
        Renyi,
        ReweightedWakeSleep,
        ForwardKL,
        WakeSleep,
        BetaELBO,
        FreeBits,
    )
}


@dataclass(frozen=True)
class Spec:
    """A class by name with some of its options, as written on the command line.

    `VAE`, `Planar(num_flows=16)`, `my_guides.MyGuide(hidden_dims=[200, 200])`, and guides around
    guides: `Refined(guide=Planar(num_flows=4), num_steps=5)`.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Spec":
        """Read a name or a call with keyword arguments that are literals or bare words.

        Raises:
            ValueError: the text is anything else.
        """
        try:
            call = ast.parse(text.strip(), mode="eval").body
            name = call.func if isinstance(call, ast.Call) else call
            keywords = call.keywords if isinstance(call, ast.Call) else []
            if isinstance(call, ast.Call) and call.args:
                raise ValueError("options go by keyword")
            if not isinstance(name, ast.Name | ast.Attribute):
                raise ValueError("no name")
            if any(keyword.arg is None for keyword in keywords):
                raise ValueError("options go by name")
            options = {keyword.arg: _value(keyword.value) for keyword in keywords}
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"expected Name or Name(option=value, ...), got {text[:100]!r}, "
                "for example Planar(num_flows=16)"
            ) from None
        return cls(ast.unparse(name), options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        words = {k: v if isinstance(v, Spec) else repr(v) for k, v in self.options.items()}
        return f"{self.name}({', '.join(f'{k}={v}' for k, v in words.items())})"

    def plain_options(self) -> dict[str, Any]:
        """The options as JSON has them: a spec among them becomes its text."""
        return {k: str(v) if isinstance(v, Spec) else v for k, v in self.options.items()}


def _value(node: ast.expr) -> Any:
    match node:
        case ast.BinOp(op=ast.Sub()):  # a name with a hyphen, such as discretized-logistic
            return f"{_value(node.left)}-{_value(node.right)}"
        case ast.Call():
            return Spec.parse(ast.unparse(node))
        case ast.Name() | ast.Attribute():
            return ast.unparse(node)
    return ast.literal_eval(node)


def find_model(name: str) -> type[AbstractModel]:
    """The model class of this name. Raises ValueError, with the closest name, if there is none."""
    return _find("model", name, all_models(), AbstractModel)


def find_guide(name: str) -> type[AbstractPosterior]:
    """The guide class of this name. Raises ValueError, with the closest name, if there is none."""
    return _find("guide", name, all_guides(), AbstractPosterior)


def all_models() -> dict[str, type[AbstractModel]]:
    """Every model class in the package `models`, by name."""
    return _scan(models, AbstractModel)


def all_guides() -> dict[str, type[AbstractPosterior]]:
    """Every guide class in the package `guides`, by name, but the one that is applied by itself."""
    found = _scan(guides, AbstractPosterior)
    return {name: kind for name, kind in found.items() if kind not in (ModelGuide, TwoLevel)}


def build(kind: type, spec: Spec, make: Callable[..., Any]) -> tuple[Any, Spec]:
    """Let `make` construct a `kind` with the options of `spec`; what it is given is no option.

    Options are checked against the constructor's type hints.

    Returns:
        The object, and the spec with every option written out.

    Raises:
        ValueError: an option that does not exist or has the wrong type.
    """
    known = options_of(kind)
    for option in spec.options:
        expect_choice(f"option of {kind.__name__}", option, known)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=_given(kind))
    try:
        options = parser.parse_object(spec.options).as_dict()
    except Exception as error:  # jsonargparse raises whatever the value's type check raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{kind.__name__}: {' '.join(lines[:2])}") from None
    _expect_in_range(spec.name, options)
    try:
        return make(**options), Spec(spec.name, options)
    except ValueError:
        raise
    except Exception as error:  # of torch, of sizes that are none; or anything, of a user's class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{kind.__name__} cannot be built with these options ({type(error).__name__}: {reason})"
        ) from error


def build_model(spec: Spec, *, data_dim: int) -> tuple[AbstractModel, Spec]:
    """The model of a spec for data of this size, and the spec in full."""
    kind = find_model(spec.name)
    return build(kind, spec, partial(kind, data_dim=data_dim))


def build_guide(spec: Spec, model: Callable[..., Any], data: Any) -> tuple[AbstractPosterior, Spec]:
    """The guide of a spec for a model, and the spec in full.

    The encoder mirrors the decoder of a model of this suite unless told otherwise.

    Args:
        spec: the guide, with a guide as its option `guide` if it goes around one.
        model: what it is to infer: any Pyro model.
        data: what the model is called with.
    """
    kind = find_guide(spec.name)
    if "guide" in inspect.signature(kind).parameters:
        return _build_around(kind, spec, model, data)
    mirrored, known = getattr(model, "encoder_options", {}), options_of(kind)
    options = {name: value for name, value in mirrored.items() if name in known} | spec.options
    return build(kind, Spec(spec.name, options), make=partial(kind.for_model, model, data))


def _build_around(
    kind: type[AbstractPosterior], spec: Spec, model: Callable[..., Any], data: Any
) -> tuple[AbstractPosterior, Spec]:
    """A guide around another, which is its option `guide`."""
    if "guide" not in spec.options:
        raise ValueError(
            f"{spec.name} goes around another guide: write {spec.name}(guide=MeanField)"
        )
    inside = spec.options["guide"]
    guide, inside = build_guide(
        inside if isinstance(inside, Spec) else Spec.parse(inside), model, data
    )
    options = {name: value for name, value in spec.options.items() if name != "guide"}
    make = partial(kind.for_model, model, data, guide=guide)
    around, full = build(kind, Spec(spec.name, options), make=make)
    return around, Spec(spec.name, {"guide": inside, **full.options})


def build_elbo(spec: Spec) -> ELBO:
    """The objective of a spec, such as `TraceMeanField_ELBO(num_particles=4)` or `DReG`.

    Raises:
        ValueError: an unknown objective, or an option that does not exist or has the wrong type.
    """
    kind = OBJECTIVES[expect_choice("objective", spec.name, OBJECTIVES)]
    defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    for option, value in spec.options.items():
        expect_choice(f"option of {spec.name}", option, defaults)
        expected = type(defaults[option])
        if not isinstance(value, expected) and not (expected is float and type(value) is int):
            raise ValueError(
                f"{spec.name}: expected {option} to be {expected.__name__}, got {value!r}"
            )
    _expect_in_range(spec.name, spec.options)
    return kind(**spec.options)


def _expect_in_range(name: str, options: Mapping[str, Any]) -> None:
    """Check the options that the command line has too, such as `num_particles`."""
    for option, value in options.items():
        least, most = RANGES.get(option, (-math.inf, math.inf))
        if isinstance(value, int | float) and not least <= value <= most:
            raise ValueError(f"{name}: expected {option} between {least} and {most:g}, got {value}")


def options_of(kind: type) -> dict[str, Any]:
    """The options of a constructor and their defaults, those it passes on to its base included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=_given(kind))
    return parser.get_defaults().as_dict()


def _given(kind: type) -> set[str]:
    """What a constructor is given: by the data, by the model, or the guide it goes around.

    A size with a default is an option: a model's `latent_dim`, but not a guide's.
    """
    names = {"latent_dim", "data_dim", "latents", "guide", "model", "x"}
    parameters = inspect.signature(kind).parameters
    return {name for name in names & parameters.keys() if not _has_default(parameters[name])}


def _has_default(parameter: inspect.Parameter) -> bool:
    return parameter.default is not parameter.empty


def listing(kinds: Mapping[str, type]) -> str:
    """Classes one below the other: what it is, how it is written with its defaults, its source."""
    defaults = Counter((n, repr(v)) for kind in kinds.values() for n, v in options_of(kind).items())
    shared = {option for option, count in defaults.items() if count > len(kinds) / 2}
    entries = [_entry(kind, shared) for _, kind in sorted(kinds.items())]
    common = ", ".join(
        f"{name}={default}" for name, default in defaults if (name, default) in shared
    )
    return "\n\n".join([*entries, f"Most take as well: {common}"] if common else entries)


def _entry(kind: type, shared: set[tuple[str, str]]) -> str:
    """A class in three lines or so."""
    paragraphs = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    summary = " ".join(paragraphs[0].split())
    sources = [" ".join(p.split()) for p in paragraphs if p.startswith("Reference:")]
    options = {n: v for n, v in options_of(kind).items() if (n, repr(v)) not in shared}
    if "guide" in inspect.signature(kind).parameters:
        options = {"guide": Spec("MeanField"), **options}
    lines = [summary, str(Spec(kind.__name__, options)), *sources]
    return "\n".join(
        [kind.__name__, *(textwrap.indent(textwrap.fill(t, 96), "    ") for t in lines)]
    )


def _scan(package: ModuleType, base: type) -> dict[str, type]:
    """The concrete classes below `base` that the modules of the package define or import."""
    return {
        class_name: kind
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for class_name, kind in vars(importlib.import_module(module.name)).items()
        if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind)
    }


def _find(what: str, name: str, found: Mapping[str, type], base: type) -> type:
    if "." in name:
        return _import(what, name, base)
    return found[expect_choice(what, name, found)]


def _import(what: str, path: str, base: type) -> type:
    module_name, _, class_name = path.rpartition(".")
    if "" not in sys.path:
        sys.path.insert(0, "")  # a file in the current folder, as with `python -m`
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise
        raise ValueError(f"unknown {what} {path!r}: there is no module {module_name}") from None
    except Exception as error:  # whatever the module does
        raise ValueError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    kinds = {n: k for n, k in vars(module).items() if isinstance(k, type) and issubclass(k, base)}
    return kinds[expect_choice(f"{what} in {module_name}", class_name, kinds)]
