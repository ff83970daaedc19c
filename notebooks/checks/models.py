"""Exercises of notebook 7: a model in Pyro, Bayes factors, and what a wide prior costs."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import Normal

from evidence.notebooks.checks.exercise import (
    Case,
    Exercise,
    Function,
    WrongAnswerError,
)

_NUM_DATA = 12


def _line(generator: torch.Generator, dtype: torch.dtype) -> Case:
    x, y = (torch.randn(_NUM_DATA, generator=generator, dtype=dtype) for _ in range(2))
    return {"x": x, "y": 2 + y}


def _values(like: Tensor) -> dict[str, Tensor]:
    """Where the log joint is looked at."""
    at = {"intercept": 0.7, "slope": -1.2, "sigma": 0.8}
    return {name: torch.tensor(value, dtype=like.dtype) for name, value in at.items()}


def _log_joint(model: Function, x: Tensor, y: Tensor) -> Tensor:
    """Log p(y, latents) of a Pyro program at given latents, if it is made of the right sites."""
    with pyro.validation_enabled(False), torch.no_grad():
        conditioned = poutine.condition(model, data=_values(y))
        trace = poutine.trace(conditioned).get_trace(x, y)
        _expect_sites(trace, list(_values(y)))
        return torch.as_tensor(trace.log_prob_sum())


def _expect_sites(trace: poutine.Trace, latents: list[str]) -> None:
    """Check that latents are shared by the data, and the data observed in a plate."""
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"
    }
    for name in latents:
        if name not in sites:
            raise WrongAnswerError(
                f"regression: no latent {name!r}: expected intercept, slope and sigma; a latent is "
                "pyro.sample(name, distribution)"
            )
        if sites[name]["cond_indep_stack"]:
            raise WrongAnswerError(
                "regression: a latent is inside the plate over the data: there is one intercept, "
                "one slope and one sigma for all data, not one per datum"
            )
    observed = [site for n, site in sites.items() if site["is_observed"] and n not in latents]
    if not observed:
        raise WrongAnswerError(
            "regression: no observed site: pyro.sample('y', distribution, obs=y), or the data have "
            "no say"
        )
    if not any(site["cond_indep_stack"] for site in observed):
        raise WrongAnswerError(
            "regression: the data are outside of any plate: with pyro.plate('data', len(y))"
        )


def _program(
    *,
    scales: tuple[float, float] = (10.0, 10.0),
    noise: Function = lambda sigma: sigma,
    mean: Function = lambda a, b, x: a + b * x,
    sigma_prior: Function = lambda: dist.HalfCauchy(5.0),
) -> Function:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("intercept", dist.Normal(0.0, scales[0]))
        b = pyro.sample("slope", dist.Normal(0.0, scales[1]))
        sigma = pyro.sample("sigma", sigma_prior())
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean(a, b, x), noise(sigma)), obs=y)

    return lambda x, y: _log_joint(model, x, y)


class _Program(Exercise):
    """An exercise whose answer is a Pyro program, which is run on the data."""

    def __call__(self, answer: Function, *, seed: int = 0) -> None:
        """Check a program by its log joint at given latents."""
        if not callable(answer):
            raise WrongAnswerError(f"expected the function {self.name}, got {answer!r}")
        super().__call__(_scored(answer), seed=seed)


def _scored(model: Function) -> Function:
    def log_joint(x: Tensor, y: Tensor) -> Any:
        return _log_joint(model, x, y)

    return log_joint


regression = _Program(
    "regression",
    right=_program(),
    cases=_line,
    has_gradients=False,
    mistakes={
        "the noise has standard deviation √sigma: Normal takes a standard deviation, not a "
        "variance": _program(noise=lambda s: s.sqrt()),
        "the noise has standard deviation sigma²: Normal takes a standard deviation, and sigma is "
        "one": _program(noise=lambda s: s**2),
        "the noise is 1 whatever sigma is": _program(noise=torch.ones_like),
        "the priors have the scale √10 (the variance 10): expected Normal(0, 10)": _program(
            scales=(math.sqrt(10), math.sqrt(10))
        ),
        "the priors of intercept and slope are N(0, 1): expected Normal(0, 10)": _program(
            scales=(1.0, 1.0)
        ),
        "the intercept is missing in the mean": _program(mean=lambda a, b, x: b * x),
        "the slope is missing in the mean": _program(mean=lambda a, b, x: a + 0 * x),
        "x is missing in the mean": _program(mean=lambda a, b, x: a + b + 0 * x),
        "intercept and slope are swapped in the mean": _program(mean=lambda a, b, x: b + a * x),
        "sigma has a half-normal prior: expected HalfCauchy(5)": _program(
            sigma_prior=lambda: dist.HalfNormal(5.0)
        ),
        "sigma has the prior HalfCauchy(1): expected HalfCauchy(5)": _program(
            sigma_prior=lambda: dist.HalfCauchy(1.0)
        ),
        "sigma has an exponential prior: expected HalfCauchy(5)": _program(
            sigma_prior=lambda: dist.Exponential(1.0)
        ),
    },
)


def _estimates(generator: torch.Generator, dtype: torch.dtype) -> Case:
    numbers = torch.rand(4, generator=generator, dtype=dtype) + 0.1
    log_p = 10 * numbers[:2] - 300
    return {"log_p1": log_p[0], "se1": numbers[2] / 5, "log_p2": log_p[1], "se2": numbers[3] / 5}


log_bayes_factor = Exercise(
    "log_bayes_factor",
    right=lambda p1, s1, p2, s2: (p1 - p2, (s1**2 + s2**2).sqrt()),
    cases=_estimates,
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
        "the error of the first model alone": lambda p1, s1, p2, s2: (p1 - p2, s1.clone()),
        "expected two results, the log and its standard error; this is the log alone": (
            lambda p1, s1, p2, s2: p1 - p2
        ),
    },
)


def _models(generator: torch.Generator, dtype: torch.dtype) -> Case:
    log_p = 3 * torch.randn(4, generator=generator, dtype=dtype) - 900
    prior = torch.rand(4, generator=generator, dtype=dtype) + 0.2
    return {"log_p": log_p, "prior": prior / prior.sum()}


model_probabilities = Exercise(
    "model_probabilities",
    right=lambda log_p, prior: (log_p + prior.log()).softmax(0),
    cases=_models,
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
        "the log-evidences are multiplied by the prior": (
            lambda log_p, prior: (log_p * prior).softmax(0)
        ),
    },
)


def _means(generator: torch.Generator, dtype: torch.dtype) -> Case:
    numbers = torch.rand(2, generator=generator, dtype=dtype)
    return {"mean": numbers[0] - 0.2, "num_data": 25, "prior_scale": 0.5 + 3 * numbers[1]}


def _log_normal(mean: Tensor, variance: Tensor | float) -> Tensor:
    scale = torch.as_tensor(variance, dtype=mean.dtype).sqrt()
    return Normal(torch.zeros_like(mean), scale).log_prob(mean)


log_bf_of_a_mean = Exercise(
    "log_bf_of_a_mean",
    right=lambda m, n, tau: _log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n),
    cases=_means,
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
        "this takes variances for standard deviations": (
            lambda m, n, tau: _log_normal(m, (1 / n + tau**2) ** 2) - _log_normal(m, 1 / n**2)
        ),
        "this is the Bayes factor itself: expected its log": (
            lambda m, n, tau: (_log_normal(m, 1 / n + tau**2) - _log_normal(m, 1 / n)).exp()
        ),
    },
)
