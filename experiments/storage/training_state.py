"""What a checkpoint of a training must hold, told from the pair that is to take it up."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evidence.experiments.storage.schema import expect_type, typed
from evidence.inference.training.history import EpochRecord

_UNCHECKED = ("rng.", "param.", "optimizer.param.", "averages.")
_OPTIMIZER = "optimizer."
_LAST = "last."
# What torch's optimizers keep.
_NUMBERS = ("step", "mu_product", "eta", "mu")
_LIKE_PARAMETERS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "sum",
                    "square_avg", "acc_delta", "grad_avg", "prev", "step_size", "ax")  # fmt: skip


def training_state(
    tensors: Mapping[str, Tensor], model: nn.Module, guide: nn.Module
) -> dict[str, Tensor]:
    """What each tensor of a checkpoint should be like, by name.

    Weights and buffers are the pair's; where the best are kept, the last are beside them. What an
    optimizer is known to keep has the parameter's shape and type or, of a count, is one number, and
    is kept of all; the rest, and the random state, are checked by those that restore them.
    """
    expected = weights(model, guide)
    parameters = {n: t for n, t in expected.items() if isinstance(t, nn.Parameter)}
    if any(name.startswith(_LAST) for name in tensors):
        expected |= {f"{_LAST}{name}": tensor for name, tensor in expected.items()}
    expected |= {n: tensor for n, tensor in tensors.items() if n.startswith(_UNCHECKED)}
    moments: dict[str, set[str]] = {}
    for name in within(_OPTIMIZER, tensors):
        parameter, _, moment = name.rpartition("/")
        moments.setdefault(parameter, set()).add(moment)
    kept = set().union(*moments.values())
    for name in moments.keys() & parameters.keys():
        for moment in kept:  # of every parameter, what is kept of any
            key = f"{_OPTIMIZER}{name}/{moment}"
            if moment in _NUMBERS:
                expected[key] = torch.zeros((), dtype=_real(tensors.get(key)))
            elif moment in _LIKE_PARAMETERS or key not in tensors:
                expected[key] = parameters[name]
            else:
                expected[key] = tensors[key]
    return expected


def _real(tensor: Tensor | None) -> torch.dtype:
    """The dtype of a count: some optimizers keep it in torch's default one, others in float32."""
    return torch.float64 if tensor is not None and tensor.dtype == torch.float64 else torch.float32


def weights(model: nn.Module, guide: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a pair, by the names that a checkpoint has for them."""
    pair = (("model", model), ("guide", guide))
    return {
        f"{role}.{name}": tensor
        for role, module in pair
        for name, tensor in module.state_dict(keep_vars=True).items()
    }


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
