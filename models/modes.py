"""The modes of a posterior that is known: how much each holds, and to which a draw belongs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot


@dataclass(frozen=True)
class Modes:
    """K parts of a posterior whose masses are known exactly.

    Args:
        shares: of the mass in each `[K]`, or of each of B data `[B, K]`, in float64.
        memberships: how much a draw belongs to each, `[..., Z] -> [..., K]`, with sum one: one of
            them, or, of a mixture, what each component has in its density there. Their mean over
            the posterior is `shares`.
        site: the latent that says where a draw is.
    """

    shares: Tensor
    memberships: Callable[[Tensor], Tensor]
    site: str = "z"

    def assign(self, values: Mapping[str, Tensor]) -> Tensor:
        """How much draws belong to each mode, of values by site `[S, M, Z]`: `[S, M, K]`."""
        return self.memberships(values[self.site])


def nearest(centres: Tensor, shares: Tensor) -> Modes:
    """A draw belongs to the mode whose centre `[K, Z]` is nearest."""

    def memberships(z: Tensor) -> Tensor:
        distances = (z.unsqueeze(-2) - centres.to(z)).square().sum(-1)  # [..., K]
        return one_hot(distances.argmin(-1), len(centres)).to(z)

    return Modes(shares.double() / shares.double().sum(), memberships)


def components(log_masses: Tensor, log_densities: Callable[[Tensor], Tensor]) -> Modes:
    """A draw belongs to every component of a mixture as much as that has in its density.

    Args:
        log_masses: of what each leaves in the posterior `[K]`, up to a constant.
        log_densities: of what each adds to the joint density, `[..., Z] -> [..., K]`.
    """
    shares = torch.as_tensor(log_masses, dtype=torch.float64).softmax(-1)
    return Modes(shares, lambda z: log_densities(z).softmax(-1))
