"""Exercises of notebook 7: Bayes factors, and what a wide prior costs."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal

from evidence.notebooks.checks.cases import size
from evidence.notebooks.checks.exercise import Case, Exercise


def _estimates(generator: torch.Generator, dtype: torch.dtype) -> Case:
    """Of which the first model has the larger evidence, and the smaller error."""
    numbers = torch.rand(4, generator=generator, dtype=dtype) + 0.1
    log_p = numbers[:2] * torch.tensor([10, 5]) - torch.tensor([290, 300])
    se1, se2 = numbers[2] / 10, numbers[3] / 10 + 0.12
    return {"log_p1": log_p[0], "se1": se1, "log_p2": log_p[1], "se2": se2}


def _against_the_first(generator: torch.Generator, dtype: torch.dtype) -> Case:
    case = _estimates(generator, dtype)
    return dict(zip(case, (case["log_p2"], case["se2"], case["log_p1"], case["se1"]), strict=True))


log_bayes_factor = Exercise(
    "log_bayes_factor",
    right=lambda p1, s1, p2, s2: (p1 - p2, (s1**2 + s2**2).sqrt()),
    cases=(_estimates, _against_the_first),
    has_gradients=False,
    mistakes={
        "this is model 2 against model 1: the sign is flipped": (
            lambda p1, s1, p2, s2: (p2 - p1, (s1**2 + s2**2).sqrt())
        ),
        "this is the ratio of the log-evidences: the Bayes factor is a ratio of evidences, so its "
        "log is a difference": lambda p1, s1, p2, s2: (p1 / p2, (s1**2 + s2**2).sqrt()),
        "the standard errors are added: of independent estimates the squares add up": (
            lambda p1, s1, p2, s2: (p1 - p2, s1 + s2)
        ),
        "the squared errors are subtracted: also the error of a difference grows by both": (
            lambda p1, s1, p2, s2: (p1 - p2, (s1**2 - s2**2).abs().sqrt())
        ),
        "the error is a variance: take its square root": (
            lambda p1, s1, p2, s2: (p1 - p2, s1**2 + s2**2)
        ),
        "this is to base 10: expected nats": (
            lambda p1, s1, p2, s2: (
                (p1 - p2) / math.log(10),
                (s1**2 + s2**2).sqrt() / math.log(10),
            )
        ),
        "the log is right, the error is to base 10, or the reverse: both in nats": (
            lambda p1, s1, p2, s2: ((p1 - p2) / math.log(10), (s1**2 + s2**2).sqrt())
        ),
        "this is the Bayes factor itself: expected its log": (
            lambda p1, s1, p2, s2: ((p1 - p2).exp(), (s1**2 + s2**2).sqrt())
        ),
        "this is twice the log, of the scale of Kass and Raftery: expected the log": (
            lambda p1, s1, p2, s2: (2 * (p1 - p2), 2 * (s1**2 + s2**2).sqrt())
        ),
        "these are added: the log of a ratio is a difference": (
            lambda p1, s1, p2, s2: (p1 + p2, (s1**2 + s2**2).sqrt())
        ),
        "the sign is lost: a log Bayes factor may be negative": (
            lambda p1, s1, p2, s2: ((p1 - p2).abs(), (s1**2 + s2**2).sqrt())
        ),
        "this is twice the log, of the scale of Kass and Raftery, with the error of the log": (
            lambda p1, s1, p2, s2: (2 * (p1 - p2), (s1**2 + s2**2).sqrt())
        ),
        "the log is divided by its error: expected the log Bayes factor itself": (
            lambda p1, s1, p2, s2: (
                (p1 - p2) / (s1**2 + s2**2).sqrt(),
                (s1**2 + s2**2).sqrt(),
            )
        ),
        "the arguments come as log p, its error, log p, its error": (
            lambda p1, s1, p2, s2: (p1 - s1, (p2**2 + s2**2).sqrt())
        ),
        "this is the log of the difference: the log-evidences are logs already": (
            lambda p1, s1, p2, s2: ((p1 - p2).abs().log(), (s1**2 + s2**2).sqrt())
        ),
        "the errors are averaged: of independent estimates the squares add up": (
            lambda p1, s1, p2, s2: (p1 - p2, (s1 + s2) / 2)
        ),
        "the errors are subtracted: of independent estimates the squares add up": (
            lambda p1, s1, p2, s2: (p1 - p2, (s1 - s2).abs())
        ),
        "the squares are averaged: of a difference they add up": (
            lambda p1, s1, p2, s2: (p1 - p2, ((s1**2 + s2**2) / 2).sqrt())
        ),
        "the errors are multiplied: of independent estimates the squares add up": (
            lambda p1, s1, p2, s2: (p1 - p2, s1 * s2)
        ),
        "the errors are not squared under the root": (
            lambda p1, s1, p2, s2: (p1 - p2, (s1 + s2).sqrt())
        ),
        "this is the larger error: of independent estimates the squares add up": (
            lambda p1, s1, p2, s2: (p1 - p2, torch.maximum(s1, s2))
        ),
        "the error of the second model alone": lambda p1, s1, p2, s2: (p1 - p2, s2.clone()),
        "the error of the first model alone": lambda p1, s1, p2, s2: (p1 - p2, s1.clone()),
        "expected two results, the log and its standard error; this is the log alone": (
            lambda p1, s1, p2, s2: p1 - p2
        ),
    },
)


def _models(generator: torch.Generator, dtype: torch.dtype) -> Case:
    number = size(generator, 2, 6)
    log_p = 2 * torch.randn(number, generator=generator, dtype=dtype) - 900
    prior = torch.rand(number, generator=generator, dtype=dtype) + 0.2
    return {"log_p": log_p, "prior": prior / prior.sum()}


model_probabilities = Exercise(
    "model_probabilities",
    right=lambda log_p, prior: (log_p + prior.log()).softmax(0),
    cases=_models,
    has_gradients=False,
    mistakes={
        "exp(log_p) is zero for log-evidences of −900, and 0/0 is no number: use softmax": (
            lambda log_p, prior: torch.full_like(log_p, math.nan)
        ),
        "the prior probabilities are missing: this is right only if they are equal": (
            lambda log_p, prior: log_p.softmax(0)
        ),
        "the prior is added to the logs: add its log": (
            lambda log_p, prior: (log_p + prior).softmax(0)
        ),
        "the prior is multiplied after normalization: normalize once more": (
            lambda log_p, prior: log_p.softmax(0) * prior
        ),
        "the prior is divided by, not multiplied": (
            lambda log_p, prior: (log_p - prior.log()).softmax(0)
        ),
        "these are logs of probabilities: expected probabilities": (
            lambda log_p, prior: (log_p + prior.log()).log_softmax(0)
        ),
        "the log-evidences themselves are normalized: probabilities come from their exponentials": (
            lambda log_p, prior: log_p * prior / (log_p * prior).sum()
        ),
        "the prior is not normalized away: divide by the sum over the models": (
            lambda log_p, prior: (log_p - log_p.max()).exp() * prior
        ),
        "these are divided by the largest: divide by the sum over the models": (
            lambda log_p, prior: (
                (log_p + prior.log()).softmax(0) / (log_p + prior.log()).softmax(0).max()
            )
        ),
        "the log of the prior is to base 2: expected the natural one": (
            lambda log_p, prior: (log_p + prior.log2()).softmax(0)
        ),
        "the log of the prior is to base 10: expected the natural one": (
            lambda log_p, prior: (log_p + prior.log10()).softmax(0)
        ),
        "this is the prior: the data have no say": lambda log_p, prior: prior.clone(),
        "this is one for the best model and zero for the rest: expected probabilities": (
            lambda log_p, prior: F.one_hot((log_p + prior.log()).argmax(), len(prior)).to(prior)
        ),
        "the sign of log_p is flipped": lambda log_p, prior: (prior.log() - log_p).softmax(0),
        "the log of the prior is added after normalization: softmax of the sum": (
            lambda log_p, prior: log_p.log_softmax(0) + prior.log()
        ),
        "these are odds against the first model: expected probabilities": (
            lambda log_p, prior: (log_p - log_p[0]).exp() * prior / prior[0]
        ),
        "posterior without prior and prior are averaged: they are multiplied": (
            lambda log_p, prior: (log_p.softmax(0) + prior) / 2
        ),
        "sigmoid of each: probabilities of several models come from softmax": (
            lambda log_p, prior: torch.sigmoid(log_p - log_p.mean() + prior.log())
        ),
        "these are equal, whatever the arguments are": (
            lambda log_p, prior: torch.full_like(log_p, 1 / len(log_p))
        ),
        "the log-evidences are multiplied by the prior": (
            lambda log_p, prior: (log_p * prior).softmax(0)
        ),
    },
)


def _means(generator: torch.Generator, dtype: torch.dtype) -> Case:
    numbers = torch.rand(2, generator=generator, dtype=dtype)
    return {
        "mean": numbers[0] - 0.2,
        "num_data": size(generator, 8, 60),
        "prior_scale": 0.5 + 3 * numbers[1],
    }


def _log_normal(mean: Tensor, variance: Tensor | float) -> Tensor:
    scale = torch.as_tensor(variance, dtype=mean.dtype).sqrt()
    return Normal(torch.zeros_like(mean), scale).log_prob(mean)


log_bf_of_a_mean = Exercise(
    "log_bf_of_a_mean",
    right=lambda m, n, tau: _log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n),
    cases=_means,
    has_gradients=False,
    mistakes={
        "this is the null against the alternative: the sign is flipped": (
            lambda m, n, tau: _log_normal(m, 1 / n) - _log_normal(m, 1 / n + tau**2)
        ),
        "under the alternative the mean has the prior's variance alone: the noise 1/n adds to it": (
            lambda m, n, tau: _log_normal(m, tau**2) - _log_normal(m, 1 / n)
        ),
        "the variance under the alternative is 1/n + τ, with τ in place of τ²": (
            lambda m, n, tau: _log_normal(m, 1 / n + tau) - _log_normal(m, 1 / n)
        ),
        "the noise of the mean of n data has variance 1/n, not 1": (
            lambda m, n, tau: _log_normal(m, 1 + tau**2) - _log_normal(m, 1.0)
        ),
        "the standard deviations are added: variances of independent terms add up": (
            lambda m, n, tau: _log_normal(m, (n**-0.5 + tau) ** 2) - _log_normal(m, 1 / n)
        ),
        "this is the likelihood ratio at the best mean: a marginal likelihood averages over the "
        "prior, it does not maximize": lambda m, n, tau: n * m**2 / 2 + 0 * tau,
        "the variances are n and n + τ²: the mean of n data has the variance 1/n": (
            lambda m, n, tau: _log_normal(m, n + tau**2) - _log_normal(m, n)
        ),
        "the noise has the variance 1/√n: that is the standard deviation, the variance is 1/n": (
            lambda m, n, tau: _log_normal(m, n**-0.5 + tau**2) - _log_normal(m, n**-0.5)
        ),
        "the noise has the variance 1/n²: the mean of n data has the variance 1/n": (
            lambda m, n, tau: _log_normal(m, n**-2 + tau**2) - _log_normal(m, n**-2)
        ),
        "this is multiplied by n: the mean is one observation, of variance 1/n": (
            lambda m, n, tau: n * (_log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n))
        ),
        "the term ½ log(1 + n τ²) has lost its factor ½": (
            lambda m, n, tau: (
                _log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n) - (1 + n * tau**2).log() / 2
            )
        ),
        "the term −½ log(1 + n τ²) is missing: it is what a wide prior costs": (
            lambda m, n, tau: (
                _log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n) + (1 + n * tau**2).log() / 2
            )
        ),
        "this does not depend on the mean: the exponents are missing": (
            lambda m, n, tau: -(1 + n * tau**2).log() / 2 + 0 * m
        ),
        "this is the log marginal likelihood under the alternative: take off that of the null": (
            lambda m, n, tau: _log_normal(m, 1 / n + tau**2)
        ),
        "these are logs of the densities, divided: a log of a ratio is a difference": (
            lambda m, n, tau: _log_normal(m, 1 / n + tau**2) / _log_normal(m, 1 / n)
        ),
        "the null has the variance τ²: under it the mean is zero, and only the noise is left": (
            lambda m, n, tau: _log_normal(m, 1 / n) - _log_normal(m, tau**2)
        ),
        "this is to base 10: expected nats": (
            lambda m, n, tau: (
                (_log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n)) / math.log(10)
            )
        ),
        "this is twice the log, of the scale of Kass and Raftery: expected the log": (
            lambda m, n, tau: 2 * (_log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n))
        ),
        "this takes variances for standard deviations": (
            lambda m, n, tau: _log_normal(m, (1 / n + tau**2) ** 2) - _log_normal(m, 1 / n**2)
        ),
        "this is the Bayes factor itself: expected its log": (
            lambda m, n, tau: (_log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n)).exp()
        ),
    },
)
