"""Draws of a proposal at which the log joint, or the proposal's density, is no number."""

import torch
from torch import Tensor

from evidence.inference.estimation.places import place
from evidence.inference.paths.log_joint import AbstractPath

# Counted as zero, so large a share of the draws makes an estimate low by as much, 0.01 nats, where
# weights there are like all others; in the tails of a proposal they are smaller.
_MOST = 0.01


class Unknown:
    """Counts draws whose weight is NaN, as where a heavy tail overflows: they have weight zero.

    Args:
        path: in whose coordinates they are drawn.
    """

    def __init__(self, path: AbstractPath) -> None:
        self.path, self.number = path, 0
        self._first: tuple[Tensor, int] | None = None  # its row [1, B, Z], and which datum

    def zeroed(self, log_w: Tensor, u: Tensor) -> Tensor:
        """Log-weights `[C, B]` of draws u `[C, B, Z]`, −inf where they are NaN."""
        is_unknown = log_w.isnan()
        if is_unknown.any():
            self.number += int(is_unknown.sum())
            if self._first is None:
                row, datum = is_unknown.nonzero()[0].tolist()
                self._first = u[row : row + 1], datum
        return torch.where(is_unknown, -torch.inf, log_w)

    def caveat(self, num_draws: int) -> str | None:
        """What to say where they are more than one in a hundred of all draws."""
        if self._first is None or self.number <= _MOST * num_draws:
            return None
        row, datum = self._first
        site = self.path.unsound_site(row)
        what = f"the log joint is NaN by site {site!r}"
        if site is None:
            what = "the log joint or the density of the proposal is NaN"
        where = place(self.path, row[0, 0]) if row.shape[1] == 1 else f"of datum {datum}"
        return (
            f"{what} at {self.number:,} of {num_draws:,} draws "
            f"({self.number / num_draws:.1%}; {where}), which count as zero: write it so that it "
            "is a number there, or compute in double (model.double(), x.double(); "
            "--dtype float64)"
        )
