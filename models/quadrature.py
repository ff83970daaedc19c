"""Integrals in log space by adaptive quadrature: what exact evidences are computed with."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EXACT_TO = 1e-4  # nats: an integral that is known less well is not called exact

_ORDERS = (16, 24)  # nodes per side of a panel, of the two rules that are compared
_TOLERANCE = 1e-8  # by which they may differ on a panel, as a share of the whole integral
_MAX_PANELS = 4000  # of one integral
_MAX_HALVINGS = 40  # of a side

# log f at points `[T, N, dim]`, of the integrals with the numbers `[T]`: `[T, N]`, float64.
LogIntegrand = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def log_integral(
    log_f: LogIntegrand,
    num_integrals: int,
    dim: int,
    *,
    num_panels: int = 8,
    max_points: int = 1 << 20,
    device: torch.device | None = None,
) -> Tensor:
    """Log ∫ f over the cube [−1, 1]^dim, of many f at once, in float64: `[num_integrals]`.

    The cube is cut into panels. On each of them two Gauss-Legendre rules are compared, and where
    they differ the panel is halved along every side; the sum of all differences, which are the
    errors of the coarser rule, bounds the error. The caller centres and scales f, so that its mass
    is about the middle; see `over_the_line`.

    Reference: P. J. Davis, P. Rabinowitz, "Methods of Numerical Integration", 2nd ed., 1984,
    chapter 6, on automatic and adaptive integration.

    Args:
        log_f: log of the integrand; −inf where f is zero.
        num_integrals: how many integrals.
        dim: number of dimensions, 1 or 2 for reasonable numbers of nodes.
        num_panels: panels per side to begin with.
        max_points: how many points `log_f` is asked for at once, about.
        device: where to compute.

    Raises:
        ValueError: an integral is not known to within 1e-4 nat.
    """
    panels = _first_panels(num_integrals, dim, num_panels, device)
    done = _Sums(num_integrals, device)
    used = torch.zeros(num_integrals, dtype=torch.long, device=device)
    for halvings in range(_MAX_HALVINGS + 1):
        values, log_errors = _compare_rules(log_f, panels, max_points)
        whole = torch.logaddexp(done.total, _log_sums(values, panels.rows, num_integrals))
        used += panels.rows.bincount(minlength=num_integrals)
        is_rough = log_errors - whole[panels.rows] > math.log(_TOLERANCE)  # so put, NaN is done
        is_rough &= (used[panels.rows] < _MAX_PANELS) & (halvings < _MAX_HALVINGS)
        done.add(panels.rows, values, log_errors, ~is_rough)
        if not is_rough.any():
            break
        panels = panels.halves(is_rough)
    return done.exact()


def over_the_line(v: Tensor, *, scale: float = 5.0) -> tuple[Tensor, Tensor]:
    """The map u = scale v/√(1 − v²) of (−1, 1) onto the line, and log du/dv, of the shape of `v`.

    In v a density of unit scale about u = 0 needs few nodes, and no tail is cut off.
    """
    rest = (1 - v) * (1 + v)
    return scale * v * rest.rsqrt(), math.log(scale) - 1.5 * rest.log()


@dataclass(frozen=True)
class _Panels:
    """Cubes of one size, each a part of the domain of one integral.

    Args:
        rows: numbers of the integrals `[T]`.
        corners: lowest corners `[T, dim]`.
        side: length of the sides.
    """

    rows: Tensor
    corners: Tensor
    side: float

    def halves(self, chosen: Tensor) -> "_Panels":
        """The 2^dim parts of every panel that is chosen by a mask `[T]`."""
        side, corners = 0.5 * self.side, self.corners[chosen].unsqueeze(1)
        offsets = _product(corners.new_tensor([0.0, side]), corners.shape[-1])
        rows = self.rows[chosen].repeat_interleave(len(offsets))
        return _Panels(rows, (corners + offsets).flatten(0, 1), side)


class _Sums:
    """Logs of the sums over panels, of the integrals and of their errors, `[num_integrals]`."""

    def __init__(self, num_integrals: int, device: torch.device | None) -> None:
        nothing = torch.full((num_integrals,), -math.inf, dtype=torch.float64, device=device)
        self.total, self.log_error = nothing, nothing

    def add(self, rows: Tensor, values: Tensor, log_errors: Tensor, chosen: Tensor) -> None:
        """Add the panels that are chosen by a mask `[T]`."""
        rows, num = rows[chosen], len(self.total)
        self.total = torch.logaddexp(self.total, _log_sums(values[chosen], rows, num))
        self.log_error = torch.logaddexp(self.log_error, _log_sums(log_errors[chosen], rows, num))

    def exact(self) -> Tensor:
        """The integrals, if they may be called exact."""
        errors = (self.log_error - self.total).exp().nan_to_num(nan=math.inf)  # relative: nats
        if (errors > EXACT_TO).any():
            row = int(errors.argmax())
            raise ValueError(
                f"expected an exact evidence, known to within {EXACT_TO:g} nat, got one known to "
                f"within {errors[row]:.2g} at row {row}, by quadrature: rescale the data, or "
                "estimate the evidence instead"
            )
        return self.total


def _first_panels(
    num_integrals: int, dim: int, num_panels: int, device: torch.device | None
) -> _Panels:
    """The cube [−1, 1]^dim of every integral, in num_panels^dim panels."""
    side = 2 / num_panels
    ends = -1 + side * torch.arange(num_panels, dtype=torch.float64, device=device)
    corners = _product(ends, dim)
    rows = torch.arange(num_integrals, device=device).repeat_interleave(len(corners))
    return _Panels(rows, corners.repeat(num_integrals, 1), side)


def _compare_rules(log_f: LogIntegrand, panels: _Panels, max_points: int) -> tuple[Tensor, Tensor]:
    """Log ∫ f over every panel by the finer rule, and log of its difference to the coarser one."""
    dim = panels.corners.shape[1]
    rules = [_rule(order, dim, panels) for order in _ORDERS]
    nodes = torch.cat([nodes for nodes, _ in rules])
    estimates: list[Tensor] = []
    size = max_points // len(nodes) + 1
    for rows, corners in zip(panels.rows.split(size), panels.corners.split(size), strict=True):
        values = log_f(corners.unsqueeze(1) + nodes, rows)
        parts = values.split([len(log_weights) for _, log_weights in rules], dim=1)
        sums = [(v + w).logsumexp(1) for v, (_, w) in zip(parts, rules, strict=True)]
        estimates.append(torch.stack(sums))
    coarse, fine = torch.cat(estimates, dim=1)
    larger = torch.maximum(coarse, fine)
    log_difference = larger + torch.log(-torch.expm1(-(fine - coarse).abs()))
    return fine, torch.where(larger == -math.inf, larger, log_difference)


def _rule(order: int, dim: int, panels: _Panels) -> tuple[Tensor, Tensor]:
    """Offsets of the nodes from a panel's corner, `[N, dim]`, and log-weights `[N]`."""
    nodes, weights = (
        torch.from_numpy(values).to(panels.corners)
        for values in np.polynomial.legendre.leggauss(order)
    )
    half = 0.5 * panels.side
    return _product(half * (1 + nodes), dim), _product((half * weights).log(), dim).sum(1)


def _product(side: Tensor, dim: int) -> Tensor:
    """All points with coordinates from `side`, `[N]`: `[N^dim, dim]`."""
    return torch.cartesian_prod(*[side] * dim).reshape(-1, dim)


def _log_sums(log_terms: Tensor, rows: Tensor, num: int) -> Tensor:
    """Log Σ exp over the terms `[T]` of every row: `[num]`, −inf where there is none."""
    empty = torch.full((num,), -math.inf, dtype=log_terms.dtype, device=log_terms.device)
    top = empty.scatter_reduce(0, rows, log_terms, "amax")
    top = torch.where(top == -math.inf, 0.0, top)
    return top + torch.zeros_like(top).index_add(0, rows, (log_terms - top[rows]).exp()).log()
