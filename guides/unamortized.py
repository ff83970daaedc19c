"""Inference without amortization: parameters for every datum, and no encoder."""

from collections.abc import Callable
from typing import Any, Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from evidence.guides.base import AbstractGuide
from evidence.guides.full_rank import FullRank
from evidence.guides.per_datum import per_datum
from evidence.guides.posterior import AbstractPosterior
from evidence.inference.programs.data import as_data


class Unamortized(AbstractPosterior):
    """The family of any guide with free local parameters for every datum: the family's best fit.

    λ = (λ_1, …, λ_N) is optimized as it is, started at the encoder's λ(x); what the ELBO gains is
    the amortization gap. Only these data can be asked for; a row of x is known by its values, so
    it must not be binarized anew.

    Reference: C. Cremer, X. Li, D. Duvenaud, "Inference Suboptimality in Variational Autoencoders",
    2018, https://arxiv.org/abs/1801.03558, section 2.

    Args:
        guide: the guide whose family is meant; its encoder gives the start and is dropped.
        x: the data `[N, D]`.
    """

    is_amortized = False

    def __init__(self, guide: AbstractPosterior, x: Tensor) -> None:
        super().__init__(guide.latent_dim, guide.data_dim, site=guide.site)
        with torch.no_grad():
            start = guide.local_parameters(x)
        self.table = nn.Parameter(start.clone())  # [N, P]
        self.guide = guide.given(start)  # its encoder is gone
        # The first of equal rows speaks for all of them.
        self._row_of = {key: row for row, key in reversed(list(enumerate(_keys(x))))}

    @classmethod
    def for_model(
        cls,
        model: Callable[..., Any],
        data: Any,
        *,
        guide: AbstractPosterior | type[AbstractGuide] = FullRank,
    ) -> Self:
        """A family's guide of the model, with parameters for every datum in its encoder's place.

        Args:
            model: called with a batch; scores it.
            data: one tensor `[N, D]`.
            guide: the guide whose family is meant, or the family.

        Raises:
            ValueError: the data share a latent, or are not one tensor.
        """
        inside, x = per_datum(guide, model, data, cls.__name__), as_data(data)
        assert isinstance(x, Tensor)  # or `per_datum` had refused it
        return cls(inside, x)

    def forward(self, x: Tensor) -> Any:
        """Sample every latent given the batch `x`, as the guide inside does."""
        self.register()
        return self.given(self.local_parameters(x))(x)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) for rows of the data, in any order: batch shape `[B]`, event shape `[Z]`."""
        return self.given(self.local_parameters(x)).posterior(x)

    def local_parameters(self, x: Tensor) -> Tensor:
        """The stored parameters of the rows of `x`: `[B, P]`.

        Raises:
            ValueError: a row is none of the data.
        """
        rows = [self._row_of.get(key, -1) for key in _keys(x)]
        if -1 in rows:
            raise ValueError(
                f"Unamortized has parameters for the {len(self.table)} data it was made with, got "
                f"another one at row {rows.index(-1)}: make a new one, Unamortized(guide, x), and "
                "fit it (data that are binarized anew at each access are never the same)"
            )
        return self.table[rows]

    def given(self, local_parameters: Tensor) -> AbstractPosterior:
        """The guide inside for one batch whose local parameters, `[B, P]`, are given."""
        return self.guide.given(local_parameters)

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """As the guide inside does."""
        return self.guide.site_values(z)


def _keys(x: Tensor) -> list[bytes]:
    """What tells the rows of `x` apart; −0 is 0."""
    rows = (x.detach().double().cpu() + 0.0).contiguous().flatten(1).numpy()
    return [row.tobytes() for row in rows]
