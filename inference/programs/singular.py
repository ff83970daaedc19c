"""Matrices without a Cholesky factor: one in a row of many is no error of all rows."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def nan_where_singular() -> Generator[None]:
    """Let `torch.linalg.cholesky` give NaN where a matrix is not positive definite, and no error.

    Distributions take it of their covariances and precisions, which chains and wide proposals, far
    from the posterior, lead to the end of what a computer has.
    """
    raising = torch.linalg.cholesky
    torch.linalg.cholesky = _cholesky
    try:
        yield
    finally:
        torch.linalg.cholesky = raising


def _cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    """The factor `[..., N, N]` of every matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix, upper=upper)
    return torch.where((failed != 0)[..., None, None], torch.nan, factor)
