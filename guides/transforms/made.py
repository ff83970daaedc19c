"""The network behind autoregressive layers."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Solve = Callable[[int, Tensor], Tensor]


class Made(nn.Module):
    """N outputs for each of Z inputs, from the inputs before it and all of the context.

    A hidden unit of degree d ∈ {0, …, Z − 1} sees the context, inputs 0, …, d − 1 and units of its
    degree or lower; output i sees units of degree i or lower. Units are sorted by degree, so that
    the network can also be evaluated input by input at the price of a single pass: Pyro's takes Z
    passes, and warns of Z = 1, where only the context is left to see.

    Outputs start near zero.

    Reference: M. Germain, K. Gregor, I. Murray, H. Larochelle, "MADE: Masked Autoencoder for
    Distribution Estimation", 2015, https://arxiv.org/abs/1502.03509, section 4.

    Args:
        dim: Z, the number of inputs.
        context_dim: the number of entries of the context.
        hidden_dims: sizes of the hidden layers.
        num_outputs: N, the number of outputs for each input.
    """

    def __init__(
        self, dim: int, context_dim: int, hidden_dims: Sequence[int], num_outputs: int
    ) -> None:
        super().__init__()
        if not hidden_dims or min(hidden_dims) < 1:
            raise ValueError(
                f"expected one or more hidden layers of at least 1, got {[*hidden_dims]}"
            )
        self.dim, self.num_outputs = dim, num_outputs
        self.context = nn.Linear(context_dim, hidden_dims[0])
        sizes = (dim, *hidden_dims, dim * num_outputs)
        self.layers = nn.ModuleList(
            nn.Linear(fan_in, fan_out, bias=k > 0)  # the context has the first layer's bias
            for k, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes))
        )
        degrees = [torch.arange(size) * dim // size for size in hidden_dims]
        self.counts = [degree.bincount(minlength=dim).tolist() for degree in degrees]
        before = [torch.arange(dim) + 1, *degrees]
        after = [*degrees, torch.arange(dim).repeat_interleave(num_outputs)]
        for k, (inside, outside) in enumerate(zip(before, after, strict=True)):
            self.register_buffer(f"mask{k}", outside[:, None] >= inside, persistent=False)
        if dim == 1:  # no output sees a single input
            self.layers[0].weight.requires_grad_(False)
        self._start_calmly()

    @property
    def _linears(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", [*self.layers])

    @torch.no_grad()
    def _start_calmly(self) -> None:
        for layer in (self.context, *self._linears):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                layer.bias.zero_()
        self._linears[-1].weight *= 0.1

    def given(self, context: Tensor) -> "ConditionedMade":
        """The network for a batch of contexts, `[B, context_dim]`."""
        weights = [
            layer.weight * self.get_buffer(f"mask{k}") for k, layer in enumerate(self._linears)
        ]
        biases = [layer.bias for layer in self._linears[1:]]
        return ConditionedMade(self, weights, biases, self.context(context))


class ConditionedMade:
    """A `Made` whose context is given.

    Args:
        made: the network.
        weights: masked weights of its layers.
        biases: biases of all layers but the first.
        first_bias: what the context adds to the first layer, `[B, hidden]`.
    """

    def __init__(
        self, made: Made, weights: Sequence[Tensor], biases: Sequence[Tensor], first_bias: Tensor
    ) -> None:
        self.made = made
        self.weights = weights
        self.biases = biases
        self.first_bias = first_bias

    def __call__(self, x: Tensor) -> Tensor:
        """Outputs for inputs `[..., B, Z]`, all in one pass: `[..., B, Z, N]`."""
        hidden = F.linear(x, self.weights[0]) + self.first_bias
        for weight, bias in zip(self.weights[1:], self.biases, strict=True):
            hidden = F.linear(F.elu(hidden), weight, bias)
        return hidden.unflatten(-1, (self.made.dim, self.made.num_outputs))

    def one_by_one(self, shape: torch.Size, solve: Solve) -> None:
        """Find inputs from first to last by `solve(i, outputs of input i)`, which gives input i.

        Every unit is computed once, in the step of its degree, and at once added to what those
        after it wait for: Z small steps with the arithmetic of one pass.

        Args:
            shape: the inputs' shape, `[..., B, Z]`; below, P is the number of points.
            solve: takes i and `[P, N]`, and returns `[P]`.
        """
        *points, dim = shape
        number = math.prod(points)
        biases = (self.first_bias, *self.biases)
        waiting = [b.expand(*points, -1).reshape(number, b.shape[-1]) for b in biases]
        counts = self.made.counts
        inputs, *units = [
            weight.mT.split(count)
            for weight, count in zip(self.weights, ([1] * dim, *counts), strict=True)
        ]
        for i in range(dim):
            for k, rows in enumerate(units):
                now, waiting[k] = _take(counts[k][i], waiting[k])
                waiting[k + 1] = _add(waiting[k + 1], F.elu(now), rows[i])
            outputs, waiting[-1] = _take(self.made.num_outputs, waiting[-1])
            found = solve(i, outputs)
            waiting[0] = _add(waiting[0], found.unsqueeze(-1), inputs[i])


def _take(number: int, waiting: Tensor) -> tuple[Tensor, Tensor]:
    """The first columns, and the others."""
    taken, others = waiting.split((number, waiting.shape[-1] - number), dim=-1)
    return taken, others


def _add(waiting: Tensor, values: Tensor, rows: Tensor) -> Tensor:
    """What `values`, `[P, n]`, add to the last columns of their `rows` of a weight matrix."""
    return torch.addmm(waiting, values, rows[:, rows.shape[-1] - waiting.shape[-1] :])
