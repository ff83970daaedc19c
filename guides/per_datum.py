"""What guides around guides ask for: latents of every datum, and data of one tensor."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from evidence.guides.base import AbstractGuide
from evidence.guides.posterior import AbstractPosterior
from evidence.inference.programs.data import as_data


def per_datum(
    guide: AbstractPosterior | type[AbstractGuide],
    model: Callable[..., Any],
    data: Any,
    around: str,
) -> AbstractPosterior:
    """The guide to go around, made of its family if it is not made yet.

    Args:
        guide: a guide, or a family.
        model: called with a batch; scores it.
        data: one tensor `[N, D]`.
        around: the class that goes around it.

    Raises:
        ValueError: the data share a latent, or are not one tensor.
    """
    if not isinstance(as_data(data), Tensor):
        raise ValueError(
            f"{around} expects data of one tensor, got {type(data).__name__}: choose a family, "
            "such as FullRank.for_model"
        )
    guide = guide if isinstance(guide, AbstractPosterior) else guide.for_model(model, data)
    if not guide.data_dim:
        raise ValueError(
            f"{around} is about parameters of every datum, and here the data share a latent: "
            f"choose a family, such as FullRank.for_model, which has one λ for all data"
        )
    return guide
