"""The exercise of notebook 7 whose answer is a program: a regression in Pyro."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from evidence.notebooks.checks.cases import size
from evidence.notebooks.checks.exercise import (
    Case,
    Exercise,
    Function,
    WrongAnswerError,
    expect_function,
)


def _line(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_data = size(generator, 9, 15)
    x, y = (torch.randn(num_data, generator=generator, dtype=dtype) for _ in range(2))
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
    if any(
        frame.size != frame.full_size
        for site in trace.nodes.values()
        for frame in site.get("cond_indep_stack", ())
    ):
        raise WrongAnswerError(
            "regression: the plate draws a subsample of the data: expected all, without "
            "subsample_size"
        )
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
    if len(observed) > 1 and not all(site["cond_indep_stack"] for site in observed):
        raise WrongAnswerError(
            "regression: several observed sites, one outside of the plate: each datum counts once"
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
    family: Function = dist.Normal,
) -> Function:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("intercept", dist.Normal(0.0, scales[0]))
        b = pyro.sample("slope", dist.Normal(0.0, scales[1]))
        sigma = pyro.sample("sigma", sigma_prior())
        with pyro.plate("data", len(y)):
            pyro.sample("y", family(mean(a, b, x), noise(sigma)), obs=y)

    return lambda x, y: _log_joint(model, x, y)


def _log_joint_of_x(x: Tensor, y: Tensor) -> Tensor:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("intercept", dist.Normal(0.0, 10.0))
        b = pyro.sample("slope", dist.Normal(0.0, 10.0))
        sigma = pyro.sample("sigma", dist.HalfCauchy(5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + b * x, sigma), obs=x)

    return _log_joint(model, x, y)


class _Program(Exercise):
    """An exercise whose answer is a Pyro program, which is run on the data."""

    def __call__(self, answer: Function, *, seed: int = 0) -> None:
        """Check a program by its log joint at given latents."""
        expect_function(self.name, answer)
        try:
            super().__call__(_scored(answer), seed=seed)
        except WrongAnswerError as error:
            if "right up to a constant" not in str(error):
                raise
            raise WrongAnswerError(
                "regression: the log joint is right up to a constant, so a prior is another one: "
                "expected Normal(0, 10), Normal(0, 10) and HalfCauchy(5)"
            ) from None


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
        "the prior of the intercept is N(0, 1): expected Normal(0, 10)": _program(
            scales=(1.0, 10.0)
        ),
        "the prior of the slope is N(0, 1): expected Normal(0, 10)": _program(scales=(10.0, 1.0)),
        "the priors have the scale 100: the 10 of Normal(0, 10) is no variance": _program(
            scales=(100.0, 100.0)
        ),
        "the noise has standard deviation exp(sigma): sigma is one itself": _program(
            noise=lambda s: s.exp()
        ),
        "the noise has standard deviation 1/sigma: Normal takes no precision": _program(
            noise=lambda s: 1 / s
        ),
        "the noise is Student-t: expected Normal": _program(
            family=lambda m, s: dist.StudentT(4.0, m, s)
        ),
        "the noise is Laplace: expected Normal": _program(family=dist.Laplace),
        "the slope has the wrong sign in the mean: a + b x": _program(
            mean=lambda a, b, x: a - b * x
        ),
        "the intercept is multiplied by x too: a + b x": _program(mean=lambda a, b, x: (a + b) * x),
        "x is squared in the mean": _program(mean=lambda a, b, x: a + b * x**2),
        "x is standardized inside of the model: expected x as it comes": _program(
            mean=lambda a, b, x: a + b * (x - x.mean()) / x.std()
        ),
        "x and y are swapped: y is observed, given x": lambda x, y: _program()(y, x),
        "x is observed in place of y": _log_joint_of_x,
        "sigma has the prior HalfCauchy(25), the square of 5: expected HalfCauchy(5)": _program(
            sigma_prior=lambda: dist.HalfCauchy(25.0)
        ),
        "sigma has the prior HalfCauchy(√5): expected HalfCauchy(5)": _program(
            sigma_prior=lambda: dist.HalfCauchy(math.sqrt(5))
        ),
        "sigma has a Cauchy prior, half of which is negative: expected HalfCauchy(5)": _program(
            sigma_prior=lambda: dist.Cauchy(0.0, 5.0)
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
