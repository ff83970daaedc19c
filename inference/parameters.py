"""The parameters of a model/guide pair, in their modules or in a store of their own."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
from torch import Tensor, nn


@contextmanager
def own_parameter_store() -> Iterator[Callable[[], None]]:
    """An empty parameter store for one fit, merged into the one outside at the end.

    Programs written as plain functions keep their parameters in Pyro's global store, by name: a
    second fit that reuses a name would silently go on from the first one's values and overwrite
    them. Parameters of modules stay in their modules.

    Yields:
        A check to call once the programs have run: it raises ValueError if a name is taken.
    """
    store = pyro.get_param_store()
    taken = set(store.keys())

    def refuse_taken_names() -> None:
        if shared := sorted(taken & set(_global_parameters(store.get_state()))):
            raise ValueError(
                f"parameters {shared} are in Pyro's store already, from an earlier fit that would "
                "be overwritten: rename them, or call pyro.clear_param_store() to start afresh"
            )

    inner: dict[str, Any] = {"params": {}, "constraints": {}}
    try:
        with store.scope(inner):
            yield refuse_taken_names
    finally:
        trained = {n: p for n, p in _global_parameters(inner).items() if n not in taken}
        constraints = {name: inner["constraints"][name] for name in trained}
        store.set_state({"params": trained, "constraints": constraints})


@contextmanager
def evaluation_store() -> Iterator[None]:
    """The parameters of plain functions, and none of a module's: each module uses its own.

    A PyroModule would else be given the values of the last one that bore its name.
    """
    store = pyro.get_param_store()
    outside = store.get_state()
    shared = _global_parameters(outside)
    constraints = {name: outside["constraints"][name] for name in shared}
    with store.scope({"params": shared, "constraints": constraints}):
        yield


def _global_parameters(state: dict[str, Any]) -> dict[str, Tensor]:
    """The parameters that live in the store alone: `pyro.param`, not the weights of a module."""
    return {n: p for n, p in state["params"].items() if not isinstance(p, nn.Parameter)}


def trainable_parameters(model: object, guide: object) -> dict[str, Tensor]:
    """Every unconstrained leaf tensor to train, by a name that is the same in every process.

    Call it after the programs have run once, inside `own_parameter_store`.

    Raises:
        ValueError: there is nothing to train.
    """
    named = {
        f"{role}.{name}": parameter
        for role, program in (("model", model), ("guide", guide))
        if isinstance(program, nn.Module)
        for name, parameter in program.named_parameters()
    }
    stored = pyro.get_param_store().get_state()["params"]
    seen = {id(parameter) for parameter in named.values()}
    named |= {f"param.{name}": p for name, p in stored.items() if id(p) not in seen}
    trainable = {name: p for name, p in named.items() if p.requires_grad}
    if not trainable:
        raise ValueError("model and guide have no trainable parameters: there is nothing to fit")
    return trainable


def tensors_of(model: object, guide: object) -> dict[str, Tensor]:
    """All state of the pair, parameters, buffers and the store's entries, by name."""
    state = {
        f"{role}.{name}": tensor
        for role, program in (("model", model), ("guide", guide))
        if isinstance(program, nn.Module)
        for name, tensor in program.state_dict().items()
    }
    stored = _global_parameters(pyro.get_param_store().get_state())
    return state | {f"param.{name}": tensor.detach() for name, tensor in stored.items()}
