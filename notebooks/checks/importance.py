"""Exercises of notebook 5: the mean of weights, and how far it can be trusted."""

import math

import torch
from torch import Tensor

from evidence.notebooks.checks.exercise import Case, Exercise

_NUM_DRAWS, _NUM_DATA = 50, 6


def _log_weights(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Log-weights of ordinary spread, so low that exp() of them is zero."""
    log_w = torch.randn(_NUM_DRAWS, _NUM_DATA, generator=generator, dtype=dtype)
    return {"log_w": log_w - 800}


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _shares(log_w: Tensor) -> Tensor:
    return log_w.softmax(0)


def _ess(log_w: Tensor) -> Tensor:
    return 1 / _shares(log_w).square().sum(0)


log_mean_exp = Exercise(
    "log_mean_exp",
    right=_log_mean,
    cases=_log_weights,
    mistakes={
        "exp(log_w) is zero for log-weights of −800, and its log is −∞: use logsumexp, which takes "
        "the largest out first": lambda log_w: torch.full_like(log_w[0], -math.inf),
        "log K is missing: this is the log of the sum of the weights, not of their mean": (
            lambda log_w: log_w.logsumexp(0)
        ),
        "log K is added: the mean of K weights is their sum divided by K": (
            lambda log_w: log_w.logsumexp(0) + math.log(len(log_w))
        ),
        "this divides by K outside of the log: subtract log K": (
            lambda log_w: log_w.logsumexp(0) / len(log_w)
        ),
        "this is the mean of the log-weights, the ELBO: the log belongs outside of the mean": (
            lambda log_w: log_w.mean(0)
        ),
        "this sums over the data before the mean over the draws: expected one number per datum": (
            lambda log_w: _log_mean(log_w.sum(1))
        ),
        "the mean is over the data: draws are the first dimension": (
            lambda log_w: log_w.logsumexp(1) - math.log(log_w.shape[1])
        ),
        "this is the mean over all data too: expected one number per datum": (
            lambda log_w: _log_mean(log_w).mean()
        ),
        "this is in bits (log to base 2): expected nats": (
            lambda log_w: _log_mean(log_w) / math.log(2)
        ),
        "log K is to base 2: torch.log2 and math.log2 are not the natural logarithm": (
            lambda log_w: log_w.logsumexp(0) - math.log2(len(log_w))
        ),
        "this is the largest weight, not their mean": lambda log_w: log_w.max(0).values,
    },
)

effective_sample_size = Exercise(
    "effective_sample_size",
    right=_ess,
    cases=_log_weights,
    mistakes={
        "exp(log_w) is zero for log-weights of −800: normalize by softmax over the draws": (
            lambda log_w: torch.full_like(log_w[0], math.nan)
        ),
        "this is the sum of the squared shares; the ESS is one over it": (
            lambda log_w: _shares(log_w).square().sum(0)
        ),
        "this divides by K: the ESS runs from 1 to K, this is a share": (
            lambda log_w: _ess(log_w) / len(log_w)
        ),
        "the shares are not squared: they sum to one, whatever the weights are": (
            lambda log_w: torch.ones_like(log_w[0])
        ),
        "the shares are normalized over the data: draws are the first dimension": (
            lambda log_w: 1 / log_w.softmax(1).square().sum(0)
        ),
        "this takes draws for data: draws are the first dimension": (
            lambda log_w: 1 / log_w.softmax(1).square().sum(1)
        ),
        "one over the largest share is another measure, and larger than the truth allows": (
            lambda log_w: 1 / _shares(log_w).max(0).values
        ),
        "one number for all data: expected one per datum": lambda log_w: _ess(log_w).sum(),
    },
)

mc_se = Exercise(
    "mc_se",
    right=lambda log_w: (1 / _ess(log_w) - 1 / len(log_w)).sqrt(),
    cases=_log_weights,
    mistakes={
        "this is the error of the ELBO: of the mean of the logs, not of the log of the mean": (
            lambda log_w: log_w.std(0) / math.sqrt(len(log_w))
        ),
        "this is the standard deviation of the log-weights": lambda log_w: log_w.std(0),
        "this is the variance: take its square root": (
            lambda log_w: 1 / _ess(log_w) - 1 / len(log_w)
        ),
        "the −1/K is missing: equal weights have no error at all": (
            lambda log_w: _ess(log_w).rsqrt()
        ),
        "this is the error of the mean weight relative to nothing: √(1/ESS − 1/K) is that of its "
        "log": lambda log_w: (1 / _ess(log_w) - 1 / len(log_w)).sqrt() * _log_mean(log_w).exp(),
        "divided by √K once more: 1/ESS already falls like 1/K": (
            lambda log_w: ((1 / _ess(log_w) - 1 / len(log_w)) / len(log_w)).sqrt()
        ),
        "ESS and K are not inverted": lambda log_w: (len(log_w) - _ess(log_w)).sqrt(),
        "this is 1/ESS − 1/K with a plus": (
            lambda log_w: (1 / _ess(log_w) + 1 / len(log_w)).sqrt()
        ),
    },
)


def _log_evidences(generator: torch.Generator, dtype: torch.dtype) -> Case:
    return {"log_px": 5 * torch.randn(40, generator=generator, dtype=dtype) - 90}


data_se = Exercise(
    "data_se",
    right=lambda log_px: log_px.std() / math.sqrt(len(log_px)),
    cases=_log_evidences,
    mistakes={
        "this is the spread of the data: the error of their mean is smaller by √N": (
            lambda log_px: log_px.std()
        ),
        "this is the variance of the mean: take its square root": (
            lambda log_px: log_px.var() / len(log_px)
        ),
        "this divides by N: the error of a mean falls like 1/√N": (
            lambda log_px: log_px.std() / len(log_px)
        ),
        "this divides the squares by N: with an estimated mean, by N − 1": (
            lambda log_px: log_px.std(correction=0) / math.sqrt(len(log_px))
        ),
        "this is the error of the sum over the data: reports are about the mean": (
            lambda log_px: log_px.std() * math.sqrt(len(log_px))
        ),
        "this forgets that the mean is not zero": (
            lambda log_px: log_px.square().mean().sqrt() / math.sqrt(len(log_px))
        ),
    },
)
