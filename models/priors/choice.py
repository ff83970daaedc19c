"""Priors by name."""

from collections.abc import Sequence

from torch import nn

from evidence.models.networks import expect_choice
from evidence.models.priors.flow import FlowPrior
from evidence.models.priors.mixture import MixturePrior
from evidence.models.priors.vampprior import VampPrior

PRIORS = ("standard-normal", "mixture", "vampprior", "flow")


def make_prior(
    name: str,
    latent_dim: int,
    data_dim: int,
    *,
    num_components: int,
    num_flows: int,
    hidden_dims: Sequence[int],
    activation: str,
) -> nn.Module | None:
    """A module that returns p(z) when called, or None for the standard normal.

    Args:
        name: "standard-normal", "mixture", "vampprior" or "flow".
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of a pseudo-input.
        num_components: K, of a mixture or a VampPrior.
        num_flows: number of layers of a flow.
        hidden_dims: hidden layers of a VampPrior's encoder, from x to z.
        activation: nonlinearity between them.

    Raises:
        ValueError: an unknown name, or what the prior's class raises.
    """
    match expect_choice("prior", name, PRIORS):
        case "mixture":
            return MixturePrior(latent_dim, num_components=num_components)
        case "vampprior":
            return VampPrior(
                latent_dim,
                data_dim,
                num_components=num_components,
                hidden_dims=hidden_dims,
                activation=activation,
            )
        case "flow":
            return FlowPrior(latent_dim, num_flows=num_flows)
    return None
