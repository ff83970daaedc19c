"""The unit of the unconstrained space: where a posterior lies and how wide it is, about.

u = loc + scale ⊙ v, or u = loc + L v, with numbers that are fixed before training. A guide over v
then has steps of one size for a precision of 1e-5 and for an intercept of 3,000. The evidence does
not depend on them.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro import poutine
from torch import Tensor, nn

from evidence.guides.transforms.base import AbstractTransform
from evidence.inference.programs.data import Batch
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.latents import Latents, log_joint
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import random_sites
from evidence.inference.programs.unconstrained import Packing

# "auto" is "dense" for a family that a linear map takes into itself, else "diagonal".
Standardize = Literal["auto", "dense", "diagonal", "prior", "none"]

_NUM_DRAWS = 256  # from the prior, at the least
_MOST_CURVED = 512  # entries whose curvature is computed row by row
_MOST_ITERATIONS = 300
_NEAR = 0.5  # what a mode may be off, in standard deviations of its normal approximation
_WIDEST = 3.0  # a posterior is hardly wider than its prior


class Standardization(nn.Module):
    """u = loc + L v.

    Args:
        loc: `[Z]`.
        scale: `[Z]`, or a lower triangular L `[Z, Z]`.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("loc", loc)
        self.register_buffer("scale", scale)

    def forward(self, v: Tensor) -> Tensor:
        """U of `v`, both `[..., Z]`."""
        if self.scale.ndim == 1:
            return self.loc + self.scale * v
        return self.loc + v @ self.scale.mT

    def inverse(self, u: Tensor) -> Tensor:
        """V of `u`, both `[..., Z]`."""
        if self.scale.ndim == 1:
            return (u - self.loc) / self.scale
        off = (u - self.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.scale, off, upper=False).squeeze(-1)

    @property
    def log_slopes(self) -> Tensor:
        """Log of the diagonal of L, whose sum is log|det ∂u/∂v|: `[Z]`."""
        diagonal = self.scale if self.scale.ndim == 1 else self.scale.diagonal()
        return diagonal.log()

    @property
    def is_identity(self) -> bool:
        """Whether u is v."""
        return self.scale.ndim == 1 and bool((self.loc == 0).all() and (self.scale == 1).all())


class Standardized(AbstractTransform):
    """U = loc + L v, as a map.

    Args:
        unit: loc and L.
    """

    def __init__(self, unit: Standardization) -> None:
        super().__init__()
        self.unit = unit

    def push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image of `x` and the ladj: `[..., Z]` and `[...]`."""
        return self.unit(x), self.unit.log_slopes.sum().expand(x.shape[:-1])

    def pull(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The origin of `y` and the ladj there: `[..., Z]` and `[...]`."""
        return self.unit.inverse(y), self.unit.log_slopes.sum().expand(y.shape[:-1])


@torch.no_grad()
def by_mode(
    model: Callable[..., Any],
    x: Batch,
    latents: Latents,
    packing: Packing,
    *,
    dense: bool,
    start: int | None = None,
) -> Standardization | None:
    """From the mode of the joint density and its curvature there; None where there is none.

    In a hierarchy the density may grow without end as a scale goes to zero; or L-BFGS, from the
    prior's median, ends where the density is no peak. Random state and parameter store are left as
    they were.

    Args:
        model: called with the data.
        x: the data.
        latents: of the model.
        packing: how they lie side by side.
        dense: whether L is triangular, or diagonal.
        start: seed of the draw from the prior where L-BFGS begins; None for the prior's median.
    """
    if packing.dim > _MOST_CURVED or latents.is_enumerated:
        return None
    with isolated_rng(0, x.device), evaluation_mode(model):
        loc, scale = _of_prior(model, latents, packing)
        begin = loc if start is None else _draw(model, latents, packing, start)
        w = (begin - loc) / scale
        found = _of_mode(lambda w: -log_joint(model, x, packing, loc + scale * w), w, dense)
    if found is None:
        return None
    mode, spread = found
    rows = scale if spread.ndim == 1 else scale.unsqueeze(1)
    return Standardization(loc + scale * mode, rows * spread)


@torch.no_grad()
def by_prior(
    model: Callable[..., Any], latents: Latents, packing: Packing, *, start: int | None = None
) -> Standardization:
    """From draws of the prior, by their medians and median absolute deviations; see `by_mode`."""
    with isolated_rng(0, latents.x.device), evaluation_mode(model):
        loc, scale = _rounded(*_of_prior(model, latents, packing))
        return Standardization(
            loc if start is None else _draw(model, latents, packing, start), scale
        )


def identity(latents: Latents, packing: Packing) -> Standardization:
    """U = v."""
    return Standardization(latents.like.new_zeros(packing.dim), latents.like.new_ones(packing.dim))


def _draw(model: Callable[..., Any], latents: Latents, packing: Packing, seed: int) -> Tensor:
    """One draw of the prior, `[Z]`, of the first datum where each has latents of its own."""
    with isolated_rng(seed, latents.x.device):
        try:
            sites = random_sites(poutine.trace(model).get_trace(latents.x))
        except NotImplementedError:  # an improper prior
            return 3 * torch.randn(packing.dim).to(latents.like)
        return packing.pack(sites, 1, len(latents.x))[0, 0]


def _of_prior(
    model: Callable[..., Any], latents: Latents, packing: Packing
) -> tuple[Tensor, Tensor]:
    """Median and 1.48 median absolute deviations of every entry over draws: `[Z]` and `[Z]`."""
    rows: list[Tensor] = []
    try:
        while sum(map(len, rows)) < _NUM_DRAWS:
            sites = random_sites(poutine.trace(model).get_trace(latents.x))
            rows.append(packing.pack(sites, 1, len(latents.x))[0])
    except NotImplementedError:  # an improper prior
        return latents.like.new_zeros(packing.dim), latents.like.new_ones(packing.dim)
    draws = torch.cat(rows)  # [N, Z]
    loc = draws.nanmedian(0).values
    scale = 1.4826 * (draws - loc).abs().nanmedian(0).values
    good = loc.isfinite() & scale.isfinite() & (scale > 0)
    return torch.where(good, loc, 0.0), torch.where(good, scale, 1.0)


def _rounded(loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers to the precision that draws have: a standard normal is one, and stays as it is."""
    scale = 2 ** scale.log2().round()
    return torch.where(loc.abs() < 0.5 * scale, 0.0, loc), scale


def _of_mode(
    energy: Callable[[Tensor], Tensor], start: Tensor, dense: bool
) -> tuple[Tensor, Tensor] | None:
    """The mode and the spread about it, `[Z]` or a factor `[Z, Z]`; None if there is none."""
    try:
        with torch.enable_grad():
            mode = _descend(energy, start)
            curvature = torch.autograd.functional.hessian(energy, mode).double()
            (slope,) = torch.autograd.grad(energy(mode.requires_grad_()), mode)
        factor = torch.linalg.cholesky(curvature)
    except (RuntimeError, ValueError, NotImplementedError):  # no derivatives, or no peak
        return None
    off = torch.cholesky_solve(slope.detach().double().unsqueeze(1), factor).squeeze(1)
    if not (slope @ off.to(slope) < _NEAR**2):
        return None
    eye = torch.eye(len(mode), dtype=torch.float64, device=mode.device)
    spread = curvature.diagonal().rsqrt()
    if dense:
        spread = torch.linalg.cholesky(torch.cholesky_inverse(factor) + 1e-12 * eye)
    if not spread.isfinite().all():
        return None
    widest = spread if spread.ndim == 1 else spread.norm(dim=1)
    shrink = (_WIDEST / widest).clamp_max(1.0)
    spread = spread * (shrink if spread.ndim == 1 else shrink.unsqueeze(1))
    return mode.detach(), spread.to(mode)


def _descend(energy: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where L-BFGS leads."""
    w = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [w], max_iter=_MOST_ITERATIONS, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        value = energy(w)
        (w.grad,) = torch.autograd.grad(value, w)
        return value

    optimizer.step(closure)
    return w.detach()
