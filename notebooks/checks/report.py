"""Exercises of notebook 8: ranks, coverage, and a gap that is taken apart."""

import torch
from torch import Tensor

from evidence.notebooks.checks.cases import size
from evidence.notebooks.checks.exercise import Case, Exercise


def _draws(generator: torch.Generator, dtype: torch.dtype) -> Case:
    # Shares of 64 or 128 data are exact in float32, in which bool.float().mean() makes them.
    num_draws, num_data = size(generator, 12, 30), 2 ** size(generator, 6, 7)
    draws = torch.randn(num_draws, num_data, generator=generator, dtype=dtype)
    truth = torch.randn(num_data, generator=generator, dtype=dtype) - 0.3
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
        "this is a percentage: expected a whole number from 0 to S": (
            lambda draws, truth: 100 * (draws < truth).double().mean(0)
        ),
        "this divides by S + 1: expected a whole number from 0 to S": (
            lambda draws, truth: _below(draws, truth).double() / (len(draws) + 1)
        ),
        "this is the number of a draw: expected how many of the draws lie below the truth": (
            lambda draws, truth: torch.cat([draws, truth[None]]).argsort(0)[-1]
        ),
        "this compares with the mean of the draws: compare each draw": (
            lambda draws, truth: (draws.mean(0) < truth).long()
        ),
        "signs are lost before the comparison: leave out abs()": (
            lambda draws, truth: (draws.abs() < truth.abs()).sum(0)
        ),
        "this is the rank among the truths of other data: it is among the draws of its own datum": (
            lambda draws, truth: (truth[:, None] < truth).sum(0)
        ),
        "all data are compared with the first truth: each has its own": (
            lambda draws, truth: (draws < truth[0]).sum(0)
        ),
        "this takes 99 for the number of draws: count the draws below": (
            lambda draws, truth: 99 - (draws > truth).sum(0)
        ),
        "this adds up the draws below: expected their number": (
            lambda draws, truth: torch.where(draws < truth, draws, 0 * draws).sum(0)
        ),
        "this says whether any draw lies below: expected how many": (
            lambda draws, truth: (draws < truth).any(0)
        ),
        "these are comparisons: expected how many of the draws lie below": (
            lambda draws, truth: draws < truth
        ),
    },
)


def _wide_intervals(generator: torch.Generator, dtype: torch.dtype) -> Case:
    case = _draws(generator, dtype)
    return case | {"mass": 0.55 + 0.3 * torch.rand((), generator=generator).item()}


def _narrow_intervals(generator: torch.Generator, dtype: torch.dtype) -> Case:
    case = _wide_intervals(generator, dtype)
    return case | {"mass": 1 - case["mass"]}


def _covered(draws: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    return _inside(draws, truth, low, high).mean()


def _inside(draws: Tensor, truth: Tensor, low: float, high: float) -> Tensor:
    return ((draws.quantile(low, 0) <= truth) & (truth <= draws.quantile(high, 0))).to(draws)


def _normal_interval(draws: Tensor, truth: Tensor, mass: float) -> Tensor:
    width = 2**0.5 * torch.erfinv(torch.tensor(mass)).to(draws)
    return ((truth - draws.mean(0)).abs() <= width * draws.std(0)).to(draws).mean()


def _sorted_draws(draws: Tensor, truth: Tensor, mass: float) -> Tensor:
    inwards = int((1 - mass) / 2 * len(draws))
    ordered = draws.sort(0).values
    low, high = ordered[inwards], ordered[-1 - inwards]
    return ((low <= truth) & (truth <= high)).to(draws).mean()


coverage = Exercise(
    "coverage",
    right=lambda draws, truth, mass: _covered(draws, truth, (1 - mass) / 2, (1 + mass) / 2),
    cases=(_wide_intervals, _narrow_intervals),
    has_gradients=False,
    mistakes={
        "the interval leaves all of 1 − mass out on one side: half on each": (
            lambda draws, truth, mass: _covered(draws, truth, 0.0, mass)
        ),
        "the interval leaves all of 1 − mass out below: half on each side": (
            lambda draws, truth, mass: _covered(draws, truth, 1 - mass, 1.0)
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
        "the ends of the interval are draws: between two draws torch.quantile interpolates": (
            _sorted_draws
        ),
        "the quantiles are mass/2 and 1 − mass/2: half of 1 − mass is left out on each side": (
            lambda draws, truth, mass: _covered(
                draws, truth, min(mass, 2 - mass) / 2, max(mass, 2 - mass) / 2
            )
        ),
        "this is a normal interval of 90%, whatever mass is: expected quantiles of the draws": (
            lambda draws, truth, mass: (
                ((truth - draws.mean(0)).abs() <= 1.645 * draws.std(0)).to(draws).mean()
            )
        ),
        "the interval holds 90%, whatever mass is": (
            lambda draws, truth, mass: _covered(draws, truth, 0.05, 0.95)
        ),
        "this is 1: the truth must lie above the lower end *and* below the upper one, and any() "
        "is no share": (lambda draws, truth, mass: torch.ones((), dtype=draws.dtype)),
        "only the lower end counts: the truth must lie below the upper one, too": (
            lambda draws, truth, mass: (
                _covered(draws, truth, (1 - mass) / 2, 1.0)
                + (truth > draws.max(0).values).to(draws).mean()
            )
        ),
        "only the upper end counts: the truth must lie above the lower one, too": (
            lambda draws, truth, mass: (
                _covered(draws, truth, 0.0, (1 + mass) / 2)
                + (truth < draws.min(0).values).to(draws).mean()
            )
        ),
        "this is the share of the draws that lie in their own interval: expected that of the "
        "truths": lambda draws, truth, mass: (
            (
                (draws >= draws.quantile((1 - mass) / 2, 0))
                & (draws <= draws.quantile((1 + mass) / 2, 0))
            )
            .to(draws)
            .mean()
        ),
        "the interval is one of the truths, and holds draws: it is one of the draws": (
            lambda draws, truth, mass: (
                (
                    (draws >= truth.quantile((1 - mass) / 2))
                    & (draws <= truth.quantile((1 + mass) / 2))
                )
                .to(draws)
                .mean()
            )
        ),
        "this is 0: // cuts a share down, and all() asks whether every truth is covered": (
            lambda draws, truth, mass: torch.zeros((), dtype=draws.dtype)
        ),
        "this is the share that is missed": (
            lambda draws, truth, mass: 1 - _covered(draws, truth, (1 - mass) / 2, (1 + mass) / 2)
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
    steps = torch.rand(3, size(generator, 6, 12), generator=generator, dtype=dtype)
    log_px = 5 * steps[0] - 80
    best = log_px - 2 * steps[1] + 0.3  # estimates: of single data a gap may come out negative
    return {"log_px": log_px, "elbo_best": best, "elbo": best - 3 * steps[2] + 0.3}


gap_parts = Exercise(
    "gap_parts",
    right=lambda log_px, best, elbo: ((log_px - best).mean(), (best - elbo).mean()),
    cases=_bounds,
    has_gradients=False,
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
        "signs of single data are lost, and with them that errors cancel: leave out abs()": (
            lambda log_px, best, elbo: ((log_px - best).abs().mean(), (best - elbo).abs().mean())
        ),
        "the first is the total gap, the second the approximation gap: total = approximation + "
        "amortization": lambda log_px, best, elbo: (
            (log_px - elbo).mean(),
            (log_px - best).mean(),
        ),
        "these are shares of the total gap: expected nats": (
            lambda log_px, best, elbo: (
                (log_px - best).mean() / (log_px - elbo).mean(),
                (best - elbo).mean() / (log_px - elbo).mean(),
            )
        ),
        "these are the medians over the data: expected the means": (
            lambda log_px, best, elbo: ((log_px - best).median(), (best - elbo).median())
        ),
        "these are the largest gaps: expected the means": (
            lambda log_px, best, elbo: ((log_px - best).max(), (best - elbo).max())
        ),
        "these are the bounds themselves: expected how far they are apart": (
            lambda log_px, best, elbo: (best.mean(), elbo.mean())
        ),
        "both are the approximation gap: the amortization gap is ELBO(q*) − ELBO(q)": (
            lambda log_px, best, elbo: ((log_px - best).mean(), (log_px - best).mean())
        ),
        "three results: the total gap is the sum of the two that are expected": (
            lambda log_px, best, elbo: (
                (log_px - best).mean(),
                (best - elbo).mean(),
                (log_px - elbo).mean(),
            )
        ),
        "the arguments come as log p(x), ELBO(q*), ELBO(q)": (
            lambda log_px, best, elbo: ((log_px - elbo).mean(), (elbo - best).mean())
        ),
        "this is the approximation gap alone: expected two results": (
            lambda log_px, best, elbo: (log_px - best).mean()
        ),
        "expected two results, the approximation and the amortization gap": (
            lambda log_px, best, elbo: (log_px - elbo).mean()
        ),
    },
)
