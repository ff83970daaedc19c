"""Priors by name."""

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from evidence.models.choices import chosen
from evidence.models.priors.flow import FlowPrior
from evidence.models.priors.mixture import MixturePrior
from evidence.models.priors.vampprior import VampPrior


def _standard_normal(latent_dim: int) -> None:
    """N(0, I), of which nothing is learnt."""


PRIORS: Mapping[str, Callable[..., nn.Module | None]] = {
    "standard-normal": _standard_normal,
    "mixture": MixturePrior,
    "vampprior": VampPrior,
    "flow": FlowPrior,
}


def make_prior(
    text: str, latent_dim: int, data_dim: int, *, hidden_dims: Sequence[int], activation: str
) -> nn.Module | None:
    """A module that returns p(z) when called, or None for the standard normal.

    Args:
        text: one of `PRIORS`, with its options if need be: `mixture(num_components=20)`.
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of a pseudo-input.
        hidden_dims: hidden layers of a VampPrior's encoder, from x to z.
        activation: nonlinearity between them.

    Raises:
        ValueError: an unknown name or option, or what the prior's class raises.
    """
    make = chosen("prior", text, PRIORS)
    if make.func is VampPrior:
        return make(latent_dim, data_dim, hidden_dims, activation)
    return make(latent_dim)
