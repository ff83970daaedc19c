"""The neural networks that models and guides share, and how Pyro finds their parameters."""

import difflib
import itertools
import math
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


def encoder_network(
    data_dim: int,
    hidden_dims: Sequence[int],
    out_dim: int,
    *,
    activation: str = "elu",
    channels: Sequence[int] = (),
) -> nn.Sequential:
    """Network `[..., data_dim] -> [..., out_dim]` from x to z; its last layer is linear.

    With `channels`, x is a square image: convolutions of 3 × 3 pixels and stride 2 come before the
    layers of `mlp`, and each halves the side, rounded up (28 → 14 → 7).

    Args:
        data_dim: D, the number of pixels.
        hidden_dims: sizes of the fully connected hidden layers, from x to z.
        out_dim: number of outputs.
        activation: nonlinearity between the layers.
        channels: channels of the convolutions, from x to z; none means `mlp` alone.

    Raises:
        ValueError: as `mlp`, and with channels a `data_dim` that is no square.
    """
    if not channels:
        return mlp(data_dim, hidden_dims, out_dim, activation=activation)
    sides = _halved_sides(data_dim, channels)
    convolutions = _Convolutions([1, *channels], sides, activation, transposed=False)
    fully = mlp(convolutions.out_dim, hidden_dims, out_dim, activation=activation)
    return nn.Sequential(convolutions, *fully)


def decoder_network(
    latent_dim: int,
    hidden_dims: Sequence[int],
    data_dim: int,
    *,
    activation: str = "elu",
    channels: Sequence[int] = (),
    outputs_per_pixel: int = 1,
) -> nn.Sequential:
    """Network `[..., latent_dim] -> [..., outputs_per_pixel · data_dim]`, from z to x.

    The outputs are as many blocks of D numbers as there are outputs per pixel. The mirror image of
    `encoder_network` with `hidden_dims` and `channels` the other way round.

    Args:
        latent_dim: Z, the number of latent variables.
        hidden_dims: sizes of the fully connected hidden layers, from z to x.
        data_dim: D, the number of pixels.
        activation: nonlinearity between the layers.
        channels: channels that each transposed convolution takes, from z to x; none means `mlp`.
        outputs_per_pixel: number of parameters of one pixel's distribution.

    Raises:
        ValueError: as `encoder_network`.
    """
    if not channels:
        return mlp(latent_dim, hidden_dims, outputs_per_pixel * data_dim, activation=activation)
    sides = _halved_sides(data_dim, channels)[::-1]
    inner = mlp(latent_dim, hidden_dims, channels[0] * sides[0] ** 2, activation=activation)
    convolutions = _Convolutions([*channels, outputs_per_pixel], sides, activation, transposed=True)
    return nn.Sequential(*inner, ACTIVATIONS[activation](), convolutions)


def mirrored(
    hidden_dims: Sequence[int] = (), activation: str = "elu", channels: Sequence[int] = ()
) -> dict[str, Any]:
    """Options of `encoder_network` that mirror those of a decoder."""
    return {
        "hidden_dims": list(reversed(hidden_dims)),
        "activation": activation,
        "channels": list(reversed(channels)),
    }


class _Convolutions(nn.Module):
    """Convolutions of 3 × 3 pixels and stride 2, each followed by a nonlinearity.

    Transposed ones let the image grow, and end without a nonlinearity.

    Args:
        channels: channels of the images from first to last.
        sides: sides of the square images from first to last.
        activation: nonlinearity between the convolutions.
        transposed: whether the image grows.
    """

    def __init__(
        self, channels: Sequence[int], sides: Sequence[int], activation: str, *, transposed: bool
    ) -> None:
        super().__init__()
        self.shape = (channels[0], sides[0], sides[0])
        self.out_dim = channels[-1] * sides[-1] ** 2
        nonlinearity = ACTIVATIONS[expect_choice("activation", activation, ACTIVATIONS)]
        layers: list[nn.Module] = []
        steps = zip(itertools.pairwise(channels), itertools.pairwise(sides), strict=True)
        for (fan_in, fan_out), (side, next_side) in steps:
            # A side of n pixels grows to 2n − 1, or to 2n with one more.
            more = {"output_padding": next_side - (2 * side - 1)} if transposed else {}
            layers += [_xavier_convolution(fan_in, fan_out, transposed, **more), nonlinearity()]
        self.layers = nn.Sequential(*(layers[:-1] if transposed else layers))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[..., C · side²]` to images `[..., C′ · side′²]`, whatever comes before."""
        images = x.reshape(math.prod(x.shape[:-1]), *self.shape)
        return self.layers(images).reshape(*x.shape[:-1], self.out_dim)


def _halved_sides(data_dim: int, channels: Sequence[int]) -> list[int]:
    """The sides of an image before and after every convolution."""
    side = math.isqrt(data_dim)
    if side**2 != data_dim:
        raise ValueError(
            f"expected square images with channels={list(channels)}, got data_dim={data_dim}, "
            "which is no square: use channels=[]"
        )
    if min(channels) < 1:
        raise ValueError(f"expected channels of at least 1, got {list(channels)}")
    sides = [side]
    for _ in channels:
        sides.append((sides[-1] + 1) // 2)
    return sides


def _xavier_convolution(
    fan_in: int, fan_out: int, transposed: bool, **options: Any
) -> nn.Conv2d | nn.ConvTranspose2d:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(fan_in, fan_out, kernel_size=3, stride=2, padding=1, **options)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.get_parameter("bias"))
    return layer


def _xavier_linear(fan_in: int, fan_out: int) -> nn.Linear:
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def last_layer(network: nn.Module) -> nn.Linear:
    """The linear layer that a network of `mlp` or `encoder_network` ends in."""
    *_, last = network.children()
    assert isinstance(last, nn.Linear)
    return last


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
    expected = f"one of {', '.join(known)}" if known else "none: leave it out"
    raise ValueError(f"unknown {what} {got!r}{hint}: expected {expected}")


def expect_vectors(name: str, x: Tensor, dim: int, shape: str = "(B, {dim})") -> None:
    """Check that the last dimension of `x` is `dim`.

    Raises:
        ValueError: with the expected and the given shape.
    """
    if x.ndim < 1 or x.shape[-1] != dim:
        expected = shape.format(dim=dim)
        raise ValueError(f"expected {name} of shape {expected}, got {tuple(x.shape)}")
