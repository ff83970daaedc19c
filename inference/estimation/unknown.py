"""Draws at which the log joint is no number, of a proposal or beside those of the posterior."""

import torch
from torch import Tensor

from evidence.inference.estimation.places import place
from evidence.inference.paths.beside import share_beside
from evidence.inference.paths.log_joint import AbstractPath
from evidence.inference.programs.precision import in_double

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
            f"({self.number / num_draws:.1%}; {where}), which count as zero: {in_double(row.dtype)}"
        )


def unknown_beside(path: AbstractPath, z: Tensor) -> str | None:
    """What to say where the log joint is NaN, not zero, right beside draws from the posterior.

    No chain enters where it is, and draws pile up there as at a wall. Behind it may be any mass,
    as where a scale underflows that the data want to be smaller still; all estimates miss it.

    Args:
        path: in whose coordinates the draws are.
        z: draws, all alike in weight `[S, B, Z]`.
    """
    share, row = share_beside(path, z)
    if row is None or not (share > _MOST).any():
        return None
    site = path.unsound_site(row)
    by = "" if site is None else f" by site {site!r}"
    where = place(path, row[0, 0]) if row.shape[1] == 1 else f"of datum {share.argmax().item()}"
    return beside_caveat(share, z.dtype, f"{by} ({where})")


def beside_caveat(share: Tensor, dtype: torch.dtype, by: str = "") -> str | None:
    """The same of shares `[B]`, of which the largest is told."""
    if not (largest := share.max().item()) > _MOST:
        return None
    return (
        f"the log joint is NaN{by} right beside {largest:.1%} of the posterior's draws, and what "
        f"there is behind is missing: {in_double(dtype)}"
    )
