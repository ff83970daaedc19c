"""The neural networks that models and guides share, and how Pyro finds their parameters."""

import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}

_instance_numbers = itertools.count()


class RegisteredModule(nn.Module):
    """A module whose parameters Pyro finds, under a name that no other instance bears.

    Pyro keeps parameters in one global store by name, and a second module of the same name is
    silently given the first one's values. A number per instance rules that out.
    """

    def __init__(self) -> None:
        super().__init__()
        self._instance_number = next(_instance_numbers)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # a deep copy is an instance of its own
        self._instance_number = next(_instance_numbers)

    def register(self) -> None:
        """Announce every trainable parameter to Pyro; call it first in `forward`.

        Outside training there is nothing to announce, and the store must not keep a module alive
        just because it was evaluated.
        """
        if not torch.is_grad_enabled():
            return
        prefix = f"{type(self).__name__}-{self._instance_number}"
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                pyro.param(f"{prefix}.{name}", parameter)


def mlp(
    in_dim: int, hidden_dims: Sequence[int], out_dim: int, *, activation: str = "elu"
) -> nn.Sequential:
    """Fully connected network `[..., in_dim] -> [..., out_dim]`, linear if `hidden_dims` is empty.

    Weights are drawn by Glorot and Bengio (2010), eq. 16 ("Xavier uniform"); biases are zero.

    Raises:
        ValueError: an activation that is not in `ACTIVATIONS`, or a size below one.
    """
    nonlinearity = ACTIVATIONS[expect_choice("activation", activation, ACTIVATIONS)]
    sizes = [in_dim, *hidden_dims, out_dim]
    if min(sizes) < 1:
        raise ValueError(f"expected layer sizes of at least 1, got {sizes}")
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [_xavier_linear(fan_in, fan_out), nonlinearity()]
    return nn.Sequential(*layers[:-1])


def _xavier_linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def expect_choice(what: str, got: str, choices: Iterable[str]) -> str:
    """Return `got` if it is one of `choices`.

    Raises:
        ValueError: names what was expected and the choice that is spelled most like `got`.
    """
    known = sorted(choices)
    if got in known:
        return got
    close = difflib.get_close_matches(str(got), known, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise ValueError(f"unknown {what} {got!r}{hint}: expected one of {', '.join(known)}")


def expect_vectors(name: str, x: Tensor, dim: int, shape: str = "(B, {dim})") -> None:
    """Check that the last dimension of `x` is `dim`.

    Raises:
        ValueError: with the expected and the given shape.
    """
    if x.ndim < 1 or x.shape[-1] != dim:
        expected = shape.format(dim=dim)
        raise ValueError(f"expected {name} of shape {expected}, got {tuple(x.shape)}")
