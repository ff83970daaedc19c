"""Finding models, guides and objectives by name, and building them from `Name(option=value)`."""

import ast
import importlib
import inspect
import pkgutil
import sys
from dataclasses import dataclass, field
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

import guides
import models
from guides import AbstractGuide
from models import AbstractModel
from models.networks import expect_choice

# Pyro's objectives whose loss is one number of nats per datum.
OBJECTIVES: dict[str, type[ELBO]] = {
    kind.__name__: kind
    for kind in (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, RenyiELBO)
}


@dataclass(frozen=True)
class Spec:
    """A class by name with some of its options, as written on the command line.

    `VAE`, `Planar(num_flows=16)`, `my_guides.MyGuide(hidden_dims=[200, 200])`.
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
            options = {keyword.arg: _value(keyword.value) for keyword in keywords if keyword.arg}
        except (SyntaxError, ValueError):
            raise ValueError(
                f"expected Name or Name(option=value, ...), got {text!r}, "
                "for example Planar(num_flows=16)"
            ) from None
        return cls(ast.unparse(name), options)

    def __str__(self) -> str:
        if not self.options:
            return self.name
        return f"{self.name}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"


def _value(node: ast.expr) -> Any:
    return node.id if isinstance(node, ast.Name) else ast.literal_eval(node)


def find_model(name: str) -> type[AbstractModel]:
    """The model class of this name. Raises ValueError, with the closest name, if there is none."""
    return _find("model", name, models, AbstractModel)


def find_guide(name: str) -> type[AbstractGuide]:
    """The guide class of this name. Raises ValueError, with the closest name, if there is none."""
    return _find("guide", name, guides, AbstractGuide)


def build(kind: type, spec: Spec, **sizes: Any) -> tuple[Any, Spec]:
    """Construct `kind` with the options of `spec`; `sizes` are given by the data and the model.

    Options are checked against the constructor's type hints.

    Returns:
        The object, and the spec with every option written out.

    Raises:
        ValueError: an option that does not exist or has the wrong type.
    """
    known = set(inspect.signature(kind).parameters) - sizes.keys()
    for option in spec.options:
        expect_choice(f"option of {kind.__name__}", option, known)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, skip=set(sizes))
    try:
        options = parser.parse_object(spec.options).as_dict()
    except Exception as error:  # jsonargparse raises whatever the value's type check raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{kind.__name__}: {' '.join(lines[:2])}") from None
    return kind(**sizes, **options), Spec(spec.name, options)


def build_model(spec: Spec, *, data_dim: int) -> tuple[AbstractModel, Spec]:
    """The model of a spec for data of this size, and the spec in full."""
    return build(find_model(spec.name), spec, data_dim=data_dim)


def build_guide(spec: Spec, model: AbstractModel) -> tuple[AbstractGuide, Spec]:
    """The guide of a spec for a model, and the spec in full.

    Its encoder mirrors the model's decoder unless told otherwise.
    """
    kind = find_guide(spec.name)
    mirrored = {"hidden_dims": list(reversed(model.hidden_dims)), "activation": model.activation}
    mirrored = {name: value for name, value in mirrored.items() if _takes(kind, name)}
    return build(
        kind,
        Spec(spec.name, mirrored | spec.options),
        latent_dim=model.latent_dim,
        data_dim=model.data_dim,
    )


def build_elbo(spec: Spec) -> ELBO:
    """The Pyro objective of a spec, such as `TraceMeanField_ELBO(num_particles=4)`.

    Raises:
        ValueError: an unknown objective, or an option that does not exist or has the wrong type.
    """
    kind = OBJECTIVES[expect_choice("objective", spec.name, OBJECTIVES)]
    defaults = {n: p.default for n, p in inspect.signature(kind).parameters.items()}
    for option, value in spec.options.items():
        expect_choice(f"option of {spec.name}", option, defaults)
        if not isinstance(value, type(defaults[option])):
            expected = type(defaults[option]).__name__
            raise ValueError(f"{spec.name}: expected {option} to be {expected}, got {value!r}")
    return kind(**spec.options)


def _takes(kind: type, option: str) -> bool:
    return option in inspect.signature(kind).parameters


def _find(what: str, name: str, package: ModuleType, base: type) -> type:
    if "." in name:
        return _import(what, name, base)
    found = {
        class_name: kind
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for class_name, kind in vars(importlib.import_module(module.name)).items()
        if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind)
    }
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
    except (SyntaxError, ImportError, NameError) as error:
        raise ValueError(f"{module_name} cannot be imported: {error}") from None
    kinds = {n: k for n, k in vars(module).items() if isinstance(k, type) and issubclass(k, base)}
    return kinds[expect_choice(f"{what} in {module_name}", class_name, kinds)]
