"""A user's own model on the user's own data, and the guides that serve any model."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import nn

from evidence.experiments.own.arguments import (
    Found,
    as_arguments,
    expect_numbers,
    in_types,
    matched,
)
from evidence.experiments.own.code import OwnCode
from evidence.experiments.own.files import Columns
from evidence.experiments.own.program import OwnProgram, default_dtype, parameters_of
from evidence.experiments.storage.spec import Spec
from evidence.inference.programs.data import Batch, takes
from evidence.inference.programs.enumeration import is_enumerated
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.parameters import evaluation_store
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import layout_of
from evidence.models.networks import expect_choice

_MANY = 1000  # parameters, of models with networks: float64 costs them time

# Of Pyro's, those that are a density of all latents and are fitted by gradients alone.
AUTOGUIDES: dict[str, type[autoguide.AutoGuide]] = {
    kind.__name__: kind
    for kind in (
        autoguide.AutoNormal,
        autoguide.AutoDiagonalNormal,
        autoguide.AutoMultivariateNormal,
        autoguide.AutoLowRankMultivariateNormal,
        autoguide.AutoIAFNormal,
        autoguide.AutoGaussian,
        autoguide.AutoStructured,
    )
}
# The others, and what to do instead.
_REFUSED = {
    "AutoDelta": "it is a point mass, which has no density: use AutoNormal",
    "AutoLaplaceApproximation": "it is a point while it is trained: use FullRank, which starts at "
    "the same approximation, at the mode where there is one, and is trained from there",
    "AutoGuideList": "it is put together in Python: name a function that does so, FILE.py:NAME, "
    "with a parameter `model`",
    "AutoNormalizingFlow": "its transforms are made in Python: name a function that makes it, "
    "FILE.py:NAME, with a parameter `model`; or use a flow such as NeuralSpline",
    "AutoDiscreteParallel": "discrete latents are summed out where the model is decorated with "
    "pyro.infer.config_enumerate: use AutoNormal for the others",
}
_PREFIX = "pyro.infer.autoguide."


def own_model_on(
    found: Found, spec: Spec, code: OwnCode, *, seed: int
) -> tuple[OwnProgram, Batch, list[str]]:
    """A user's model and the arguments that it takes, both in a dtype that it runs in.

    That is float64, for models of few parameters; float32 for those that do not run in it. Every
    dtype has the user's code run anew, as tensors on its top level are made in it. It becomes
    torch's default one.

    Returns:
        The model, its data, and the names of the columns that it has no parameter for.

    Raises:
        ValueError: the model cannot be made, or runs on no form of these data.
    """
    failure: Exception | None = None
    for dtype in (torch.float64, torch.float32):
        code.forget()
        with isolated_rng(seed), default_dtype(dtype):
            model = OwnProgram(own_object("model", spec, code), dtype)
        if dtype == torch.float64 and sum(p.numel() for p in model.parameters()) >= _MANY:
            continue
        parameters = parameters_of(model.program)
        values, unused = matched(found, parameters, model=spec.name)
        expect_numbers(values)
        typed = not isinstance(found, Columns) or found.typed
        for arguments in in_types(values, dtype, typed=typed):
            x = as_arguments(arguments, parameters)
            try:
                with default_dtype(dtype):
                    _run_once(model, x, seed)
            except Exception as error:  # whatever the user's code does
                failure = failure or error
                continue
            torch.set_default_dtype(dtype)  # for the rest of the command, which ends with its own
            return model, x, unused
    raise ValueError(_cannot_run(spec.name, found, failure))


def _cannot_run(model: str, found: Found, failure: Exception | None) -> str:
    named = found.arrays if isinstance(found, Columns) else dict(enumerate(found, 1))
    kinds = ", ".join(
        f"{name} {getattr(value, 'dtype', type(value).__name__)} "
        f"{list(getattr(value, 'shape', []))}"
        for name, value in named.items()
    )
    reason = " ".join(str(failure).split("Trace Shapes")[0].split())[:300]
    return (
        f"{model} does not run on these data, whatever type their numbers are given ({kinds}): "
        f"{type(failure).__name__}: {reason}"
    )


def _run_once(program: Callable[..., Any], x: Batch, seed: int) -> None:
    """Run and score a program once; parameters that it makes lazily are made now."""
    with (
        isolated_rng(seed, x.device),
        evaluation_store(),
        pyro.validation_enabled(False),
        warnings.catch_warnings(),
        torch.no_grad(),
    ):
        warnings.simplefilter("ignore")
        poutine.trace(takes(program, x)).get_trace(x).compute_log_prob()


def own_object(what: str, spec: Spec, code: OwnCode, **given: Any) -> Callable[..., Any]:
    """What a spec names: a Pyro program as it is; of a class, or a call in brackets, what it makes.

    Args:
        what: it is to be, in words.
        spec: its name, and options of the call.
        code: where it comes from.
        given: what a constructor may take beside its options, by parameter.

    Raises:
        ValueError: it cannot be made, or is nothing that can be called with data.
    """
    thing = code.find(what, spec.name)
    if isinstance(thing, type) or (spec.is_called and not isinstance(thing, nn.Module)):
        thing = _called(thing, spec, given)
    elif spec.is_called:
        raise ValueError(f"{spec.name} is made already: leave the brackets out")
    if not callable(thing):
        raise ValueError(
            f"{spec} is a {type(thing).__name__}: expected a {what} that is called with data"
        )
    return thing


def _called(make: Callable[..., Any], spec: Spec, given: dict[str, Any]) -> Any:
    parameters = inspect.signature(make).parameters
    wanted = {name: value for name, value in given.items() if name in parameters}
    try:
        inspect.signature(make).bind(**wanted, **spec.options)
        return make(**wanted, **spec.options)
    except Exception as error:  # whatever the user's code does
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{spec} cannot be made: {type(error).__name__}: {reason}") from error


def names_autoguide(name: str) -> bool:
    """Whether this is the name of one of Pyro's autoguides, short or in full."""
    return name in AUTOGUIDES or name in _REFUSED or name.startswith(_PREFIX)


def is_autoguide(guide: nn.Module) -> bool:
    """Whether a guide is one of Pyro's, whose parameters are those of the data it was made for."""
    return isinstance(guide, OwnProgram) and isinstance(guide.program, autoguide.AutoGuide)


def own_guide(
    spec: Spec, model: nn.Module, x: Batch, code: OwnCode, *, seed: int
) -> tuple[nn.Module, Spec]:
    """A guide of Pyro's or of the user's, its parameters made, and its spec in full.

    Raises:
        ValueError: there is no such guide, or it cannot be made for these data.
    """
    with isolated_rng(seed):
        if names_autoguide(spec.name):
            short = spec.name.removeprefix(_PREFIX)
            if short in _REFUSED:
                raise ValueError(f"{short} is not made here, as {_REFUSED[short]}")
            kind = AUTOGUIDES[expect_choice("autoguide", short, AUTOGUIDES)]
            spec = Spec(f"{_PREFIX}{short}", spec.options)
            program = _autoguide(kind, spec, model)
        else:
            program = own_object("guide", spec, code, model=model)
        guide = OwnProgram(program, torch.get_default_dtype())
    try:
        _run_once(guide, x, seed)
    except Exception as error:  # of the model, or of the user's code
        reason = " ".join(str(error).split("Trace Shapes")[0].split())[:300]
        raise ValueError(f"{spec} does not run on these data: {reason}") from error
    return guide, spec


def _autoguide(
    kind: type[autoguide.AutoGuide], spec: Spec, model: nn.Module
) -> autoguide.AutoGuide:
    options = dict(spec.options)
    known = inspect.signature(kind).parameters
    for option in options:
        expect_choice(f"option of {kind.__name__}", option, known.keys() - {"model"})
    if "init_loc_fn" in options:
        starts = {n: f for n, f in vars(autoguide).items() if n.startswith("init_to_")}
        name = expect_choice("init_loc_fn", options["init_loc_fn"], starts)
        options["init_loc_fn"] = starts[name]
    try:
        return kind(poutine.block(model, hide_fn=is_enumerated), **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{spec} cannot be made: {error}") from None


def shares_latents(model: nn.Module, x: Batch) -> bool:
    """Whether some latent of the model is not in a plate over the data.

    Raises:
        ValueError: the model does not run on the data.
    """
    program = takes(model, x)
    prior = poutine.block(program, hide_fn=lambda site: site.get("is_observed", False))
    with evaluation_mode(program), torch.no_grad():
        return layout_of(program, prior, x, require_density=False).is_joint


def has_joint_weights(model: nn.Module, guide: nn.Module, x: Batch) -> bool:
    """Whether a draw of the pair has one weight for the data set, and not one per datum.

    Raises:
        ValueError: the pair does not fit.
    """
    pair = takes(model, x), takes(guide, x)
    with evaluation_mode(*pair), torch.no_grad():
        return layout_of(*pair, x, require_density=False).is_joint
