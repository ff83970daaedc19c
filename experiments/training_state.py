"""What a checkpoint of a training must hold, told from the pair that is to take it up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from experiments.schema import expect_type, typed
from inference.history import EpochRecord
from inference.parameters import named_parameters, tensors_of

_RNG = "rng."
_OPTIMIZER = "optimizer."
_NUMBERS = ("step", "mu_product", "eta", "mu")  # what torch's optimizers keep as one number


def training_state(
    tensors: Mapping[str, Tensor], model: nn.Module, guide: nn.Module
) -> dict[str, Tensor]:
    """What each tensor of a checkpoint should be like, by name.

    Weights and buffers are the pair's. An optimizer may keep what it likes of its parameters, the
    same of each, in the parameter's shape and type or, of a count, as one number. The random state
    has a check of its own.
    """
    parameters = named_parameters(model, guide)
    expected = dict(tensors_of(model, guide))
    expected |= {name: tensor for name, tensor in tensors.items() if name.startswith(_RNG)}
    moments: dict[str, set[str]] = {}
    for name in within(_OPTIMIZER, tensors):
        parameter, _, moment = name.rpartition("/")
        moments.setdefault(parameter, set()).add(moment)
    kept = set().union(*moments.values())
    for name in moments.keys() & parameters.keys():
        for moment in kept:  # of every parameter, what is kept of any
            like = torch.zeros(()) if moment in _NUMBERS else parameters[name]
            expected[f"{_OPTIMIZER}{name}/{moment}"] = like
    return expected


def within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that beginning."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@dataclass(frozen=True)
class _Sums:
    loss_sum: float
    seconds: float


def expect_history(position: dict[str, Any]) -> None:
    """Check the position of a training: its sums, and one record per epoch that is done.

    Raises:
        ValueError: something in it is missing or of another type.
    """
    typed(_Sums, {name: position.get(name) for name in ("loss_sum", "seconds")})
    epoch = expect_type("epoch", position.get("epoch"), int)
    records = expect_type("history", position.get("history"), list[dict[str, Any]])
    if len(records) != epoch:
        raise ValueError(f"expected a history of {epoch} epochs, got {len(records)}")
    for record in records:
        typed(EpochRecord, record, complete=True)
