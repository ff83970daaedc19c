"""The Sylvester-flow posterior."""

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from evidence.guides.flow import AbstractFlow
from evidence.guides.transforms.sylvester import (
    SylvesterLayers,
    orthonormal_by_qr,
    orthonormal_by_reflections,
    with_the_last_column,
)
from evidence.models.networks import expect_choice

Kind = Literal["orthogonal", "householder"]


class Sylvester(AbstractFlow):
    """A diagonal Gaussian pushed through K Sylvester layers: planar ones with M units each.

    z₀ ~ N(μ(x), diag σ²(x)),  z_k = z_{k−1} + Q_k R_k tanh(R̃_k Q_kᵀ z_{k−1} + b_k),  z = z_K,
    with orthonormal columns in Q, upper triangular R and R̃, and their diagonals in (−1, 1). The
    encoder gives everything; kind says how it gives Q:

        orthogonal   Q of the QR decomposition of a free Z × M matrix (the paper iterates)
        householder  the first M columns of a product of M reflections

    Any z is scored: a layer is inverted by Newton's method, unit by unit, with exact gradients.

    Reference: R. van den Berg, L. Hasenclever, J. M. Tomczak, M. Welling, "Sylvester Normalizing
    Flows for Variational Inference", 2018, https://arxiv.org/abs/1803.05649, section 3.

    Args:
        latent_dim: Z, the number of latent variables.
        data_dim: D, the number of entries of one datum.
        num_flows: K, the number of Sylvester layers.
        num_units: M, columns of Q, at most Z; by default the smaller of Z and 8.
        kind: "orthogonal" or "householder".
        encoder: options of `AbstractGuide`: `hidden_dims`, `activation`, `site`, ...
    """

    def __init__(
        self,
        latent_dim: int,
        data_dim: int,
        *,
        num_flows: int = 8,
        num_units: int | None = None,
        kind: Kind = "orthogonal",
        **encoder: Any,
    ) -> None:
        units = min(latent_dim, 8) if num_units is None else num_units
        if not 1 <= units <= latent_dim:
            raise ValueError(f"expected num_units from 1 to {latent_dim} latents, got {units}")
        # Of Z orthonormal columns the last one is no longer free.
        columns = min(units, latent_dim - 1) if kind == "orthogonal" else units
        super().__init__(
            latent_dim,
            data_dim,
            num_flows=num_flows,
            layer_dim=latent_dim * columns + units * (units + 2),
            **encoder,
        )
        self.num_units = units
        self.num_columns = columns
        self.kind = expect_choice("kind", kind, get_args(Kind))

    def layers(self, parameters: Tensor) -> SylvesterLayers:
        """K Sylvester layers from Q, R with R̃, diag R̃ and b, `[B, K, P]`.

        As in the authors' code one square matrix holds R above the diagonal and on it, and R̃
        below, and tanh bounds the diagonals.
        """
        units = self.num_units
        sizes = (self.latent_dim * self.num_columns, units * units, units, units)
        raw_basis, square, diagonal, bias = parameters.split(sizes, dim=-1)
        square = square.unflatten(-1, (units, units))
        return SylvesterLayers(
            self._basis(raw_basis.unflatten(-1, (self.latent_dim, self.num_columns))),
            _triangular(square, square.diagonal(dim1=-2, dim2=-1)),
            _triangular(square.mT, diagonal),
            bias,
        )

    def _basis(self, raw: Tensor) -> Tensor:
        """Q of every layer, `[B, K, Z, M]`."""
        if self.kind == "householder":
            return orthonormal_by_reflections(raw)
        basis = orthonormal_by_qr(raw)
        return basis if self.num_columns == self.num_units else with_the_last_column(basis)


def _triangular(square: Tensor, diagonal: Tensor) -> Tensor:
    """The entries above the diagonal of `square`, `[..., M, M]`, with tanh of another diagonal."""
    return square.triu(1) + torch.diag_embed(torch.tanh(diagonal))
