"""Finding models, guides and objectives by name, and building them from `Name(option=value)`."""

import importlib
import inspect
import math
import pkgutil
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from jsonargparse import ArgumentParser
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)

from evidence import guides, models
from evidence.experiments.config import RANGES
from evidence.experiments.own.code import OwnCode
from evidence.experiments.storage.spec import Spec
from evidence.guides import AbstractPosterior
from evidence.guides.model_guide import ModelGuide
from evidence.guides.two_level import TwoLevel
from evidence.inference import (
    FAB,
    IWAE,
    STL,
    BetaELBO,
    DReG,
    ForwardKL,
    ForwardKLOnDraws,
    FreeBits,
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)
from evidence.inference.objectives.interface import Objective
from evidence.models import AbstractModel
from evidence.models.choices import chosen, expect_options
from evidence.models.likelihoods import LIKELIHOODS
from evidence.models.networks import expect_choice
from evidence.models.priors import PRIORS

Kind = TypeVar("Kind")

# Pyro's objectives whose loss is one number of nats per datum, and ours.
OBJECTIVES: dict[str, type[Objective]] = {
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
        ForwardKLOnDraws,
        FAB,
        WakeSleep,
        BetaELBO,
        FreeBits,
    )
}

# Options of our models that name a part with options of its own, and what each part may be.
PARTS: dict[str, Mapping[str, Callable[..., Any]]] = {"likelihood": LIKELIHOODS, "prior": PRIORS}


def find_model(name: str) -> type[AbstractModel]:
    """The model class of this name. Raises ValueError, with the closest name, if there is none."""
    return all_models()[expect_choice("model", name, all_models())]


def find_guide(name: str, code: OwnCode | None = None) -> type[AbstractPosterior]:
    """The guide class of this name, the user's own ones by their path.

    Raises:
        ValueError: there is none; with the closest name.
    """
    if "." not in name:
        return all_guides()[expect_choice("guide", name, all_guides())]
    found = (code or OwnCode()).find("guide", name)
    if not (isinstance(found, type) and issubclass(found, AbstractPosterior)):
        raise ValueError(f"expected {name} to be a class derived from AbstractPosterior")
    return found


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

    Args:
        kind: the class.
        spec: its options.
        make: what constructs it, given its options.

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
        options = parser.parse_object(spec.plain_options()).as_dict()
    except Exception as error:  # jsonargparse raises whatever the value's type check raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"{kind.__name__}: {' '.join(lines[:2])}") from None
    _expect_in_range(spec.name, options)
    named = {} if spec.is_elsewhere else {n: options[n] for n in PARTS if n in options}
    full = options | {what: _in_full(what, text) for what, text in named.items()}
    try:
        return make(**options), Spec(spec.name, full)
    except ValueError:
        raise
    except Exception as error:  # of torch, of sizes that are none; or anything, of a user's class
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{kind.__name__} cannot be built with these options ({type(error).__name__}: {reason})"
        ) from error


def _in_full(what: str, text: str) -> Spec:
    """A part with every option written out."""
    return Spec(text.partition("(")[0], chosen(what, text, PARTS[what]).keywords)


def build_model(spec: Spec, *, data_dim: int) -> tuple[AbstractModel, Spec]:
    """The model of a spec for data of this size, and the spec in full."""
    kind = find_model(spec.name)
    return build(kind, spec, partial(kind, data_dim=data_dim))


def build_guide(
    spec: Spec,
    model: Callable[..., Any],
    data: Any,
    code: OwnCode | None = None,
) -> tuple[AbstractPosterior, Spec]:
    """The guide of a spec for a model, and the spec in full.

    The encoder mirrors the decoder of a model of this suite unless told otherwise.

    Args:
        spec: the guide, with a guide as its option `guide` if it goes around one.
        model: what it is to infer: any Pyro model.
        data: what the model is called with.
        code: where the user's own guides come from.
    """
    kind = find_guide(spec.name, code)
    if "guide" in inspect.signature(kind).parameters:
        return _build_around(kind, spec, model, data, code)
    mirrored, known = getattr(model, "encoder_options", {}), options_of(kind)
    mirrored = {name: value for name, value in mirrored.items() if name in known}
    unit = {name: option for name, option in spec.options.items() if name == "standardize"}
    others = {name: option for name, option in spec.options.items() if name not in unit}
    make = partial(kind.for_model, model, data, **unit)
    guide, full = build(kind, Spec(spec.name, mirrored | others), make)
    return guide, Spec(spec.name, unit | full.options)


def _build_around(
    kind: type[AbstractPosterior],
    spec: Spec,
    model: Callable[..., Any],
    data: Any,
    code: OwnCode | None,
) -> tuple[AbstractPosterior, Spec]:
    """A guide around another, which is its option `guide`."""
    if "guide" not in spec.options:
        raise ValueError(
            f"{spec.name} goes around another guide: write {spec.name}(guide=MeanField)"
        )
    inside = spec.options["guide"]
    guide, inside = build_guide(
        inside if isinstance(inside, Spec) else Spec.parse(inside), model, data, code
    )
    options = {name: value for name, value in spec.options.items() if name != "guide"}
    make = partial(kind.for_model, model, data, guide=guide)
    around, full = build(kind, Spec(spec.name, options), make)
    return around, Spec(spec.name, {"guide": inside, **full.options})


def objective_of(text: str) -> Objective | None:
    """The objective of this text; None for the plain one, which `fit` makes enumerate if needed.

    Raises:
        ValueError: as `build_objective`.
    """
    spec = Spec.parse(text)
    return None if spec == Spec("Trace_ELBO") else build_objective(spec)


def build_objective(spec: Spec) -> Objective:
    """The objective of a spec, such as `TraceMeanField_ELBO(num_particles=4)` or `DReG`.

    Raises:
        ValueError: an unknown objective, or an option that does not exist or has the wrong type.
    """
    kind = OBJECTIVES[expect_choice("objective", spec.name, OBJECTIVES)]
    parameters = inspect.signature(kind).parameters
    # Draws are an object; without them they are made by `smc`.
    defaults = {n: p.default for n, p in parameters.items() if n != "draws"}
    expect_options(spec.name, spec.options, defaults)
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


def part_listing(what: str) -> str:
    """The parts of a model that an option names, with their options."""
    specs = ", ".join(str(_in_full(what, name)) for name in PARTS[what])
    return textwrap.fill(f"{what}: one of {specs}", 100)


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


def _scan(package: ModuleType, base: type[Kind]) -> dict[str, type[Kind]]:
    """The concrete classes below `base` that the modules of the package define or import."""
    return {
        class_name: kind
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for class_name, kind in vars(importlib.import_module(module.name)).items()
        if isinstance(kind, type) and issubclass(kind, base) and not inspect.isabstract(kind)
    }
