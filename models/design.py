"""The fixed design matrix of a regression."""

from collections.abc import Sequence

import torch
from torch import Tensor


def design_matrix(
    design: Sequence[Sequence[float]] | Tensor | None, num_rows: int, num_features: int
) -> Tensor:
    """Φ as given, or by default the powers 1, t, t², … of t on a grid of [−1, 1]: `[N, Z]`.

    Args:
        design: one row of features per response, `[N, Z]`.
        num_rows: N.
        num_features: Z.

    Raises:
        ValueError: the design given has another shape.
    """
    if design is None:
        t = torch.linspace(-1, 1, num_rows)
        return t.unsqueeze(1) ** torch.arange(num_features)
    given = torch.as_tensor(design, dtype=torch.get_default_dtype())
    if given.shape != (num_rows, num_features):
        raise ValueError(
            f"expected a design of shape ({num_rows}, {num_features}), responses times weights, "
            f"got {tuple(given.shape)}"
        )
    return given.clone()


def expect_positive(**scales: float) -> None:
    """Check that every number is positive.

    Raises:
        ValueError: names the first that is not.
    """
    for name, value in scales.items():
        if not value > 0:
            raise ValueError(f"expected {name} > 0, got {value}")
