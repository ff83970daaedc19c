"""Exercises of notebook 5: the mean of weights, and how far it can be trusted."""

import math

import torch
from torch import Tensor

from evidence.notebooks.checks.cases import size
from evidence.notebooks.checks.exercise import Case, Exercise


def _log_weights(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Log-weights of ordinary spread, so low that exp() of them is zero."""
    shape = size(generator, 30, 70), size(generator, 4, 9)
    log_w = torch.randn(shape, generator=generator, dtype=dtype)
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
        "log K is to base 10: math.log10 is not the natural logarithm": (
            lambda log_w: log_w.logsumexp(0) - math.log10(len(log_w))
        ),
        "K is subtracted, not its log": lambda log_w: log_w.logsumexp(0) - len(log_w),
        "K − 1 in place of K: a mean divides by the number of draws": (
            lambda log_w: log_w.logsumexp(0) - math.log(len(log_w) - 1)
        ),
        "this subtracts ½ log K: the mean divides by K": (
            lambda log_w: log_w.logsumexp(0) - math.log(len(log_w)) / 2
        ),
        "this subtracts the log of the number of data: K is the number of draws, len(log_w)": (
            lambda log_w: log_w.logsumexp(0) - math.log(log_w.shape[1])
        ),
        "this subtracts the log of the number of all entries: K is the number of draws": (
            lambda log_w: log_w.logsumexp(0) - math.log(log_w.numel())
        ),
        "the largest log-weight that was taken out is not added again": (
            lambda log_w: _log_mean(log_w - log_w.max(0).values)
        ),
        "a small number is added to the weights, which are far smaller: use logsumexp": (
            lambda log_w: torch.full_like(log_w[0], math.log(1e-12))
        ),
        "this is the mean weight itself, zero for log-weights of −800: expected its log": (
            lambda log_w: torch.zeros_like(log_w[0])
        ),
        "this is the largest weight, not their mean": lambda log_w: log_w.max(0).values,
    },
)

effective_sample_size = Exercise(
    "effective_sample_size",
    right=_ess,
    cases=_log_weights,
    has_gradients=False,
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
        "the squared shares are summed over the data too: expected one number per datum": (
            lambda log_w: 1 / _shares(log_w).square().sum()
        ),
        "the weights are normalized over draws and data together: over the draws of each datum": (
            lambda log_w: 1 / log_w.flatten().softmax(0).reshape(log_w.shape).square().sum(0)
        ),
        "this is the mean of the squared shares; expected their sum": (
            lambda log_w: 1 / _shares(log_w).square().mean(0)
        ),
        "this takes the log-weights for weights: the shares are log_w.softmax(0)": (
            lambda log_w: log_w.sum(0) ** 2 / log_w.square().sum(0)
        ),
        "the sum of the weights is not squared: (Σ w)² / Σ w²": (
            lambda log_w: (
                1
                / (
                    _shares(log_w).square().sum(0)
                    * (log_w.logsumexp(0) - log_w.max(0).values).exp()
                )
            )
        ),
        "the variance of the weights divides by K − 1: expected 1/Σ of the squared shares": (
            lambda log_w: len(log_w) / (1 + (len(log_w) * _shares(log_w)).var(0))
        ),
        "this is K, whatever the weights are": (
            lambda log_w: torch.full_like(log_w[0], len(log_w))
        ),
        "this is the exponential of the entropy of the shares, another measure": (
            lambda log_w: (-(_shares(log_w) * log_w.log_softmax(0)).sum(0)).exp()
        ),
    },
)

mc_se = Exercise(
    "mc_se",
    right=lambda log_w: (1 / _ess(log_w) - 1 / len(log_w)).sqrt(),
    cases=_log_weights,
    has_gradients=False,
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
        "this is 1/√K, whatever the weights are": (
            lambda log_w: torch.full_like(log_w[0], len(log_w) ** -0.5)
        ),
        "a root of what is negative is nan: 1/ESS − 1/K is positive, of K = len(log_w) draws": (
            lambda log_w: torch.full_like(log_w[0], math.nan)
        ),
        "the root is taken of each: √(1/ESS − 1/K) is one root of the difference": (
            lambda log_w: _ess(log_w).rsqrt() - len(log_w) ** -0.5
        ),
        "1/(K − 1) in place of 1/K: equal weights must have no error": (
            lambda log_w: (1 / _ess(log_w) - 1 / (len(log_w) - 1)).sqrt()
        ),
        "the variance of the weights divides by K − 1: √(1/ESS − 1/K) is what is asked for": (
            lambda log_w: (
                (1 / _ess(log_w) - 1 / len(log_w)) * len(log_w) / (len(log_w) - 1)
            ).sqrt()
        ),
        "this is the spread of the log-weights over √ESS: expected √(1/ESS − 1/K)": (
            lambda log_w: log_w.std(0) / _ess(log_w).sqrt()
        ),
        "this is two standard errors: expected one": (
            lambda log_w: 2 * (1 / _ess(log_w) - 1 / len(log_w)).sqrt()
        ),
        "this is the product 1/(ESS · K): expected the difference": (
            lambda log_w: (1 / _ess(log_w) / len(log_w)).sqrt()
        ),
        "ESS and K are not inverted": lambda log_w: (len(log_w) - _ess(log_w)).sqrt(),
        "this is 1/ESS − 1/K with a plus": (
            lambda log_w: (1 / _ess(log_w) + 1 / len(log_w)).sqrt()
        ),
    },
)


def _log_evidences(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_data = size(generator, 25, 60)
    return {"log_px": 5 * torch.randn(num_data, generator=generator, dtype=dtype) - 90}


data_se = Exercise(
    "data_se",
    right=lambda log_px: log_px.std() / math.sqrt(len(log_px)),
    cases=_log_evidences,
    has_gradients=False,
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
        "this is the variance of the data: expected the standard error of their mean": (
            lambda log_px: log_px.var()
        ),
        "this is the variance over √N: expected the standard deviation over √N": (
            lambda log_px: log_px.var() / math.sqrt(len(log_px))
        ),
        "N − 1 is there twice: the mean of N data is divided by √N": (
            lambda log_px: log_px.std() / math.sqrt(len(log_px) - 1)
        ),
        "this is the mean: expected its standard error": lambda log_px: log_px.mean(),
        "this is 1/√N: the spread of the data is missing": (
            lambda log_px: torch.tensor(len(log_px) ** -0.5).to(log_px)
        ),
        "this is the mean absolute deviation over √N: expected the standard deviation": (
            lambda log_px: (log_px - log_px.mean()).abs().mean() / math.sqrt(len(log_px))
        ),
        "this is the half-width of a 95% interval: expected one standard error": (
            lambda log_px: 1.96 * log_px.std() / math.sqrt(len(log_px))
        ),
        "this is relative to the mean: expected nats": (
            lambda log_px: (log_px.std() / math.sqrt(len(log_px)) / log_px.mean()).abs()
        ),
        "the logs are exponentiated: expected the error of the mean of the logs": (
            lambda log_px: log_px.exp().std() / math.sqrt(len(log_px))
        ),
        "this forgets that the mean is not zero": (
            lambda log_px: log_px.square().mean().sqrt() / math.sqrt(len(log_px))
        ),
    },
)
