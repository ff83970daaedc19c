"""The parameters of a model/guide pair, in their modules or in a store of their own."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import pyro
import torch
from pyro.distributions.transforms import transform_to
from pyro.params.param_store import StateDict
from torch import Tensor, nn

from evidence.inference.programs.data import Program, unwrapped
from evidence.inference.programs.modules import modules_of


@contextmanager
def own_parameter_store(*, warm_start: bool = False) -> Generator[Callable[[], None]]:
    """A parameter store for one fit, merged into the one outside at its end, however it ends.

    A fit that is refused before it begins leaves nothing behind.

    Programs written as plain functions keep their parameters in Pyro's global store, by name: a
    second fit that reuses a name would silently go on from the first one's values and overwrite
    them. Parameters of modules stay in their modules.

    Args:
        warm_start: go on from the parameters of plain functions that are in the store already.

    Yields:
        A check to call once the programs have run: it raises ValueError if a name is taken.
    """
    store = pyro.get_param_store()
    outside = _global_state(store.get_state())
    taken = set() if warm_start else set(outside["params"])
    have_run = False

    def refuse_taken_names() -> None:
        nonlocal have_run
        have_run = True
        if shared := sorted(taken & set(_global_state(store.get_state())["params"])):
            raise ValueError(
                f"parameters {shared} are in Pyro's store already, from an earlier fit: rename "
                "them, pass warm_start=True to go on from them, or call pyro.clear_param_store()"
            )

    trained = outside
    try:
        with store.scope(outside if warm_start else None):
            try:
                yield refuse_taken_names
            finally:
                trained = _global_state(store.get_state()) if have_run else outside
    finally:
        new = {name: value for name, value in trained["params"].items() if name not in taken}
        constraints = {name: trained["constraints"][name] for name in new}
        store.set_state({"params": new, "constraints": constraints})


@contextmanager
def evaluation_store() -> Generator[Callable[[], None]]:
    """The parameters of plain functions, and none of a module's: each module uses its own.

    A PyroModule would else be given the values of the last one that bore its name.

    Yields:
        A check to call once the programs have run: it raises ValueError if they made parameters,
        which nobody has trained.
    """
    store = pyro.get_param_store()
    shared = _global_state(store.get_state())
    known = set(shared["params"])

    def refuse_new_names() -> None:
        if new := sorted(set(_global_state(store.get_state())["params"]) - known):
            raise ValueError(
                f"parameters {new} are not in Pyro's store: fit the pair first, or call the guide "
                "once to evaluate it untrained"
            )

    with store.scope(shared):
        yield refuse_new_names


def _global_state(state: StateDict) -> StateDict:
    """The parameters that live in the store alone: `pyro.param`, not the weights of a module."""
    params = {n: p for n, p in state["params"].items() if not isinstance(p, nn.Parameter)}
    return {"params": params, "constraints": {n: state["constraints"][n] for n in params}}


def named_parameters(model: Program, guide: Program) -> dict[str, Tensor]:
    """Every unconstrained leaf tensor of the pair, once, by a name that does not change.

    Call it after the programs have run once, inside `own_parameter_store`.
    """
    named: list[tuple[str, Tensor]] = [
        (f"{role}.{name}", parameter)
        for role, module in _modules(model, guide)
        for name, parameter in module.named_parameters()
    ]
    stored = pyro.get_param_store().get_state()["params"]
    named += [(f"param.{name}", parameter) for name, parameter in stored.items()]
    first = {id(parameter): name for name, parameter in reversed(named)}
    return {name: parameter for name, parameter in named if first[id(parameter)] == name}


def trainable_parameters(model: Program, guide: Program) -> dict[str, Tensor]:
    """The parameters to train: those that require gradients and whose value is not a constant."""
    constant = set(_constants(model, guide))
    named = named_parameters(model, guide)
    return {name: p for name, p in named.items() if p.requires_grad and name not in constant}


def fan_ins(model: Program, guide: Program) -> dict[str, int]:
    """The number of inputs of every layer of a network, by the name of its weight."""
    return {
        f"{path}.weight": part.weight[0].numel()
        for role, module in _modules(model, guide)
        for path, part in module.named_modules(prefix=role)
        if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)
    }


@torch.no_grad()
def _constants(model: Program, guide: Program) -> Iterator[str]:
    """Parameters that their constraint leaves one value, as the unit triangle of a 1 × 1 matrix."""
    for role, module in _modules(model, guide):
        for path, part in module.named_modules(prefix=role):
            for name, (constraint, _) in getattr(part, "_pyro_params", {}).items():
                free = part._parameters.get(f"{name}_unconstrained")
                if free is not None and free.numel() == 1:
                    to = transform_to(constraint)
                    if torch.equal(to(free), to(free + 1)):
                        yield f"{path}.{name}_unconstrained"


def tensors_of(model: Program, guide: Program) -> dict[str, Tensor]:
    """All state of the pair, parameters and buffers, by name."""
    state = {
        f"{role}.{name}": tensor
        for role, module in _modules(model, guide)
        for name, tensor in module.state_dict().items()
    }
    named = {n: p.detach() for n, p in named_parameters(model, guide).items()}
    return named | state | _held_buffers(model, guide)


def _modules(model: Program, guide: Program) -> Iterator[tuple[str, nn.Module]]:
    for role, program in (("model", model), ("guide", guide)):
        module = unwrapped(program)
        if isinstance(module, nn.Module):
            yield role, module


def _held_buffers(model: Program, guide: Program) -> dict[str, Tensor]:
    """Buffers, such as running statistics, of modules that a program holds and is not itself."""
    whole = [part for _, module in _modules(model, guide) for part in module.modules()]
    buffers: dict[str, Tensor] = {}
    for role, program in (("model", model), ("guide", guide)):
        for number, module in enumerate(modules_of(program)):
            if not any(module is part for part in whole):
                learned = dict(module.named_parameters(remove_duplicate=False))
                buffers |= {
                    f"{role}.{number}.{name}": tensor
                    for name, tensor in module.state_dict().items()
                    if name not in learned
                }
                whole += module.modules()
    return buffers
