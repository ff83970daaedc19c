"""Exercises of notebook 8: ranks, coverage, and a gap that is taken apart."""

import torch
from torch import Tensor

from evidence.notebooks.checks.exercise import Case, Exercise

_NUM_DRAWS, _NUM_DATA = 19, 8


def _draws(generator: torch.Generator, dtype: torch.dtype) -> Case:
    draws = torch.randn(_NUM_DRAWS, _NUM_DATA, generator=generator, dtype=dtype)
    truth = torch.randn(_NUM_DATA, generator=generator, dtype=dtype) - 0.3
    return {"draws": draws, "truth": truth}


def _below(draws: Tensor, truth: Tensor) -> Tensor:
    return (draws < truth).sum(0)


rank = Exercise(
    "rank",
    right=_below,
    cases=_draws,
    has_gradients=False,
    mistakes={
        "this counts draws above the truth: the rank counts those below": (
            lambda draws, truth: (draws > truth).sum(0)
        ),
        "this is a share: expected a whole number from 0 to S": (
            lambda draws, truth: (draws < truth).double().mean(0)
        ),
        "this counts over the data: draws are the first dimension": (
            lambda draws, truth: (draws < truth).sum(1)
        ),
        "this counts from 1: of S draws between 0 and S lie below": (
            lambda draws, truth: _below(draws, truth) + 1
        ),
        "this counts over draws and data: expected one rank per datum": (
            lambda draws, truth: (draws < truth).sum()
        ),
        "these are comparisons: expected how many of the draws lie below": (
            lambda draws, truth: draws < truth
        ),
    },
)


def _intervals(generator: torch.Generator, dtype: torch.dtype) -> Case:
    case = _draws(generator, dtype)
    return case | {"mass": 0.3 + 0.5 * torch.rand((), generator=generator).item()}


def _covered(draws: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    return _inside(draws, truth, low, high).mean()


def _inside(draws: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    return ((draws.quantile(low, 0) <= truth) & (truth <= draws.quantile(high, 0))).to(draws)


def _normal_interval(draws: Tensor, truth: Tensor, mass: float) -> Tensor:
    width = 2**0.5 * torch.erfinv(torch.tensor(mass)).to(draws)
    return ((truth - draws.mean(0)).abs() <= width * draws.std(0)).to(draws).mean()


coverage = Exercise(
    "coverage",
    right=lambda draws, truth, mass: _covered(draws, truth, (1 - mass) / 2, (1 + mass) / 2),
    cases=_intervals,
    has_gradients=False,
    mistakes={
        "the interval leaves all of 1 − mass out on one side: half on each": (
            lambda draws, truth, mass: _covered(draws, truth, 0.0, mass)
        ),
        "the interval leaves all of 1 − mass out below: half on each side": (
            lambda draws, truth, mass: _covered(draws, truth, 1 - mass, 1.0)
        ),
        "the interval leaves 1 − mass out on each side: it holds too little": (
            lambda draws, truth, mass: _covered(
                draws, truth, min(1 - mass, mass), max(1 - mass, mass)
            )
        ),
        "the quantiles are 1 − mass and mass: half of 1 − mass is left out on each side": (
            lambda draws, truth, mass: _covered(draws, truth, 1 - mass, mass)
        ),
        "this is a normal interval: the quantiles of the draws hold for any posterior": (
            _normal_interval
        ),
        "the quantiles are those of all draws together: each datum has its own, dimension 0": (
            lambda draws, truth, mass: _covered(
                draws.reshape(-1, 1), truth, (1 - mass) / 2, (1 + mass) / 2
            )
        ),
        "this says of each datum whether it is covered: expected their share": (
            lambda draws, truth, mass: _inside(draws, truth, (1 - mass) / 2, (1 + mass) / 2)
        ),
        "this is a percentage: expected a share between 0 and 1": (
            lambda draws, truth, mass: 100 * _covered(draws, truth, (1 - mass) / 2, (1 + mass) / 2)
        ),
        "this is the share that is missed": (
            lambda draws, truth, mass: 1 - _covered(draws, truth, (1 - mass) / 2, (1 + mass) / 2)
        ),
        "the quantiles are over the data: draws are the first dimension": (
            lambda draws, truth, mass: (
                (
                    (draws.quantile((1 - mass) / 2, 1)[: len(truth)] <= truth)
                    & (truth <= draws.quantile((1 + mass) / 2, 1)[: len(truth)])
                )
                .to(draws)
                .mean()
            )
        ),
        "this is the number of covered data: expected their share": (
            lambda draws, truth, mass: (
                _covered(draws, truth, (1 - mass) / 2, (1 + mass) / 2) * len(truth)
            )
        ),
        "this is the nominal mass, which is what coverage is compared with": (
            lambda draws, truth, mass: torch.tensor(mass).to(draws)
        ),
    },
)


def _bounds(generator: torch.Generator, dtype: torch.dtype) -> Case:
    steps = torch.rand(3, _NUM_DATA, generator=generator, dtype=dtype)
    log_px = 5 * steps[0] - 80
    best = log_px - 2 * steps[1]
    return {"log_px": log_px, "elbo_best": best, "elbo": best - 3 * steps[2]}


gap_parts = Exercise(
    "gap_parts",
    right=lambda log_px, best, elbo: ((log_px - best).mean(), (best - elbo).mean()),
    cases=_bounds,
    mistakes={
        "approximation and amortization are swapped: the family's gap is what is left at q*": (
            lambda log_px, best, elbo: ((best - elbo).mean(), (log_px - best).mean())
        ),
        "both signs are flipped: gaps are positive": (
            lambda log_px, best, elbo: ((best - log_px).mean(), (elbo - best).mean())
        ),
        "the sign of the approximation gap is flipped: both gaps are positive": (
            lambda log_px, best, elbo: ((best - log_px).mean(), (best - elbo).mean())
        ),
        "the sign of the amortization gap is flipped: both gaps are positive": (
            lambda log_px, best, elbo: ((log_px - best).mean(), (elbo - best).mean())
        ),
        "the first is the total gap: the approximation gap stops at the ELBO of q*": (
            lambda log_px, best, elbo: ((log_px - elbo).mean(), (best - elbo).mean())
        ),
        "the second is the total gap: the amortization gap begins at the ELBO of q*": (
            lambda log_px, best, elbo: ((log_px - best).mean(), (log_px - elbo).mean())
        ),
        "these are sums over the data: reports are per datum": (
            lambda log_px, best, elbo: ((log_px - best).sum(), (best - elbo).sum())
        ),
        "one number per datum: expected their means": (
            lambda log_px, best, elbo: (log_px - best, best - elbo)
        ),
        "expected two results, the approximation and the amortization gap": (
            lambda log_px, best, elbo: (log_px - elbo).mean()
        ),
    },
)
