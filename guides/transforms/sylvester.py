"""Sylvester layers."""

import torch
from torch import Tensor

from evidence.guides.transforms.base import AbstractTransform
from evidence.guides.transforms.householder import unit_vectors
from evidence.guides.transforms.inversion import rise, unbend


class SylvesterLayers(AbstractTransform):
    """K Sylvester layers, f(z) = z + Q R tanh(R̃ Qᵀz + b), one after the other.

    Q has orthonormal columns, R and R̃ are upper triangular with R_ii R̃_ii > −1. By Sylvester's
    identity det ∂f/∂z = Π_i (1 + R_ii R̃_ii tanh′ v_i) with v = R̃ Qᵀz + b. The inverse solves
    v + R̃ R tanh v = R̃ Qᵀy + b, a triangular system, from the last unknown to the first.

    Args:
        basis: Q, `[B, K, Z, M]`.
        r: R, `[B, K, M, M]`.
        r_tilde: R̃, `[B, K, M, M]`.
        bias: b, `[B, K, M]`.
    """

    def __init__(self, basis: Tensor, r: Tensor, r_tilde: Tensor, bias: Tensor) -> None:
        super().__init__()
        slope = 1 + r.diagonal(dim1=-2, dim2=-1) * r_tilde.diagonal(dim1=-2, dim2=-1)
        self.slope = slope.clamp_min(torch.finfo(slope.dtype).eps)  # of no meaning below: rounding
        inward, outward, triangle = r_tilde @ basis.mT, basis @ r, r_tilde @ r
        parts = (inward, outward, triangle)
        self._layers = list(
            zip(
                *(part.unbind(-3) for part in parts),
                self.slope.unbind(-2),
                bias.unbind(-2),
                strict=True,
            )
        )

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., B, Z]` and `[..., B]`."""
        bends = []
        for inward, outward, _, _, bias in self._layers:
            bends.append(torch.tanh(_multiply(inward, x) + bias))
            x = x + _multiply(outward, bends[-1])
        return x, self._ladj_of(bends)

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., B, Z]` and `[..., B]`."""
        bends = []
        for inward, outward, triangle, slope, bias in reversed(self._layers):
            bends.append(_back_substitute(triangle, slope, _multiply(inward, y) + bias))
            y = y - _multiply(outward, bends[-1])
        return y, self._ladj_of(bends[::-1])

    def _ladj_of(self, bends: list[Tensor]) -> Tensor:
        """Σ log det, from tanh v of each layer, `[..., B, M]`: all layers in one go."""
        return rise(self.slope, torch.stack(bends, -2)).log().sum((-2, -1))


def _back_substitute(triangle: Tensor, slope: Tensor, target: Tensor) -> Tensor:
    """Bends tanh v, for v + T tanh v = target with T upper triangular and diag T = slope − 1.

    T is `[B, M, M]`, `slope` `[B, M]`; `target` and the result are `[..., B, M]`.
    """
    columns, slopes = triangle.unbind(-1), slope.unbind(-1)
    bends: list[Tensor] = []
    for i in reversed(range(len(slopes))):
        bends.append(torch.tanh(unbend(slopes[i], target[..., i])))
        target = torch.addcmul(target, columns[i], bends[-1].unsqueeze(-1), value=-1)
    return torch.stack(bends[::-1], -1)


def _multiply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix times vector: `[B, N, M]` and `[..., B, M]` to `[..., B, N]`."""
    return torch.einsum("...ij,...j->...i", matrix, vector)


def orthonormal_by_qr(raw: Tensor) -> Tensor:
    """Q of the QR decomposition of I + raw, where R has a positive diagonal: `[..., Z, M]`.

    Orthonormal to rounding error, where the paper stops an iteration, and smooth: without the
    convention on R, columns of Q would change sign as the input moves. I keeps zero, where an
    encoder's outputs begin, from being singular.
    """
    basis, triangle = torch.linalg.qr(raw + _eye_like(raw))
    signs = triangle.diagonal(dim1=-2, dim2=-1).sign()
    return basis * torch.where(signs == 0, 1.0, signs).unsqueeze(-2)


def with_the_last_column(basis: Tensor) -> Tensor:
    """Z orthonormal columns out of Z − 1, the last such that their determinant is 1: `[..., Z, Z]`.

    QR of a square matrix would give a last column too, but one that turns round wherever the
    determinant changes sign, and training crosses that. This one follows the others smoothly.
    """
    with torch.no_grad():
        last = torch.linalg.qr(basis, mode="complete").Q[..., -1:]
        last = last * torch.linalg.det(torch.cat([basis, last], -1)).sign()[..., None, None]
    # The complement is a line: what projection leaves of any vector is the column, exactly.
    last = last - basis @ (basis.mT @ last)
    return torch.cat([basis, last / last.norm(dim=-2, keepdim=True)], -1)


def orthonormal_by_reflections(raw: Tensor) -> Tensor:
    """The first M columns of a product of M reflections, for `raw` `[..., Z, M]`: `[..., Z, M]`.

    With the unit vectors as columns of V, H_1 ⋯ H_M = I − V U⁻¹ Vᵀ, where U is upper triangular,
    with VᵀV above its diagonal and 1/2 on it (Joffrain et al. 2006, "Accumulating Householder
    Transformations, Revisited"): three matrix products instead of M passes.
    """
    rows = unit_vectors(raw.mT)  # Vᵀ, [..., M, Z]
    num_vectors = raw.shape[-1]
    upper = (rows @ rows.mT).triu(1) + 0.5 * _eye_like(raw)[:num_vectors]
    return _eye_like(raw) - rows.mT @ torch.linalg.solve_triangular(
        upper, rows[..., :num_vectors], upper=True
    )


def _eye_like(matrix: Tensor) -> Tensor:
    return torch.eye(*matrix.shape[-2:], dtype=matrix.dtype, device=matrix.device)
