"""From grey levels to what a likelihood can score: binarization and dequantization."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evidence.inference.programs.data import Batch, Data
from evidence.inference.programs.random_state import isolated_rng
from evidence.models.networks import expect_choice

BINARIZATIONS = ("auto", "dynamic", "static", "threshold", "none")


def resolve_binarization(binarize: str, *, pixels: str, num_levels: int | None) -> str:
    """What "auto" means: dynamic binarization of grey pixels for a model of binary ones, else none.

    Raises:
        ValueError: an unknown name, or a binarization of data that are no pixels.
    """
    expect_choice("binarization", binarize, BINARIZATIONS)
    if binarize == "auto":
        return "dynamic" if pixels == "binary" and num_levels is not None else "none"
    if binarize != "none" and num_levels is None:
        raise ValueError(
            f"expected pixels to binarize ({binarize}), got real-valued data: use --binarize none"
        )
    return binarize


def prepare(
    x_train: Batch,
    x_test: Batch,
    *,
    binarize: str,
    num_levels: int | None,
    seed: int,
    dequantized: bool = True,
) -> tuple[Batch, Batch, Callable[[Any], Any] | None]:
    """Training data, evaluation data, and what to do with each minibatch as it is drawn.

    - dynamic: pixels are probabilities, drawn anew for each minibatch (Burda et al. 2016);
    - static: drawn once;
    - threshold: x > 0.5;
    - none: grey levels get uniform noise of one level, (x·(L − 1) + u)/L, u ~ U[0, 1), so that a
      density is bounded (Theis et al. 2016, https://arxiv.org/abs/1511.01844, section 3.1);
      real-valued data stay as they are, and so do grey levels if `dequantized` is false, for a
      likelihood that scores levels.

    Evaluation data are drawn once, from `seed`, in every case. Several tensors stay as they are.
    """
    if isinstance(x_train, Data) or isinstance(x_test, Data):
        return x_train, x_test, None

    def fixed(x: Tensor, draw: Callable[[Tensor], Tensor], offset: int) -> Tensor:
        with isolated_rng(seed + offset):
            return draw(x)

    match binarize:
        case "dynamic":
            return x_train, fixed(x_test, torch.bernoulli, 1), torch.bernoulli
        case "static":
            return fixed(x_train, torch.bernoulli, 2), fixed(x_test, torch.bernoulli, 1), None
        case "threshold":
            return (x_train > 0.5).to(x_train), (x_test > 0.5).to(x_test), None
    if num_levels is None or not dequantized:
        return x_train, x_test, None

    def dequantize(x: Tensor) -> Tensor:
        return (x * (num_levels - 1) + torch.rand_like(x)) / num_levels

    return x_train, fixed(x_test, dequantize, 1), dequantize


def bits_per_dim(nats: float, *, data_dim: int, num_levels: int, dequantized: bool = True) -> float:
    """Bits per pixel of the grey levels, from log p of them or of the dequantized pixels, in nats.

    The mean log-density of dequantized pixels bounds the log-probability of the grey levels, after
    the volume L^−D of one level (Theis et al. 2016, eq. 5).
    """
    volume = math.log(num_levels) if dequantized else 0.0
    return (volume - nats / data_dim) / math.log(2)
