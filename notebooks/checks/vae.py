"""Exercises of notebook 2: the terms of the ELBO, and the draw that can be differentiated."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from evidence.notebooks.checks.cases import batches, size
from evidence.notebooks.checks.exercise import Case, Exercise
from evidence.notebooks.checks.sampling import Moments, Sampler

_LOG_2_PI = math.log(2 * math.pi)


def _data_and_moments(
    generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]
) -> Case:
    """Of several draws [S, B, D] of the moments there is still one x [B, D]."""
    shape = (*batch, size(generator, 9, 14))
    x, mu, logsigma = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
    return {"x": x[0] if len(batch) > 1 else x, "mu": mu, "logsigma": logsigma / 2}


def _moments(generator: torch.Generator, dtype: torch.dtype, batch: tuple[int, ...]) -> Case:
    shape = (*batch, size(generator, 4, 7))
    mu, logsigma = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    return {"mu": mu, "logsigma": logsigma / 2}


def _by_pixel(x: Tensor, mu: Tensor, logsigma: Tensor) -> Tensor:
    return Normal(mu, logsigma.exp()).log_prob(x)


def _by_latent(mu: Tensor, logsigma: Tensor) -> Tensor:
    standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return kl_divergence(Normal(mu, logsigma.exp()), standard)


log_likelihood = Exercise(
    "log_likelihood",
    right=lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).sum(-1),
    cases=batches(_data_and_moments),
    mistakes={
        "this is for log σ² in place of log σ: σ is exp(logsigma), not its square root": (
            lambda x, mu, logsigma: _by_pixel(x, mu, logsigma / 2).sum(-1)
        ),
        "this takes logsigma for σ itself: σ is exp(logsigma)": (
            lambda x, mu, logsigma: (
                -((x - mu) ** 2) / (2 * logsigma**2) - logsigma.abs().log() - _LOG_2_PI / 2
            ).sum(-1)
        ),
        "the sign is flipped: this is −log N(x; μ, σ²)": (
            lambda x, mu, logsigma: -_by_pixel(x, mu, logsigma).sum(-1)
        ),
        "the constant −½ log 2π of each entry is missing": (
            lambda x, mu, logsigma: (_by_pixel(x, mu, logsigma) + _LOG_2_PI / 2).sum(-1)
        ),
        "the constant −½ log 2π is there once; it belongs to each of the D entries": (
            lambda x, mu, logsigma: (
                (_by_pixel(x, mu, logsigma) + _LOG_2_PI / 2).sum(-1) - _LOG_2_PI / 2
            )
        ),
        "the term −log σ is missing: nothing would keep σ from growing": (
            lambda x, mu, logsigma: (_by_pixel(x, mu, logsigma) + logsigma).sum(-1)
        ),
        "the residual is not divided by σ before it is squared": (
            lambda x, mu, logsigma: (-((x - mu) ** 2) / 2 - logsigma - _LOG_2_PI / 2).sum(-1)
        ),
        "the square has lost its factor ½": (
            lambda x, mu, logsigma: (
                _by_pixel(x, mu, logsigma) - ((x - mu) / logsigma.exp()) ** 2 / 2
            ).sum(-1)
        ),
        "this is the mean over the entries of a datum: entries are independent, so their "
        "log-densities add up": lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).mean(-1),
        "this sums over the batch too: expected one number per datum": (
            lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).sum()
        ),
        "this is the mean over the batch: expected one number per datum": (
            lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).sum(-1).mean()
        ),
        "this sums over the data, entry by entry: sum over the last dimension": (
            lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).sum(0)
        ),
        "one log-density per entry: sum them over the last dimension": _by_pixel,
        "this is in bits (log to base 2): expected nats": (
            lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).sum(-1) / math.log(2)
        ),
        "σ is exp(logsigma), not exp(−logsigma)": (
            lambda x, mu, logsigma: _by_pixel(x, mu, -logsigma).sum(-1)
        ),
        "Normal takes the standard deviation exp(logsigma); this is the variance": (
            lambda x, mu, logsigma: _by_pixel(x, mu, 2 * logsigma).sum(-1)
        ),
        "σ comes from softplus: the argument is log σ, so σ is exp(logsigma)": (
            lambda x, mu, logsigma: _by_pixel(x, mu, F.softplus(logsigma).log()).sum(-1)
        ),
        "the squared residual is divided by σ: it is divided by σ² = exp(2 logsigma)": (
            lambda x, mu, logsigma: (
                -((x - mu) ** 2) / (2 * logsigma.exp()) - logsigma - _LOG_2_PI / 2
            ).sum(-1)
        ),
        "the residual is not squared": (
            lambda x, mu, logsigma: (
                -(x - mu).abs() / (2 * logsigma.exp()) - logsigma - _LOG_2_PI / 2
            ).sum(-1)
        ),
        "the square has the wrong sign: far from μ the density is small": (
            lambda x, mu, logsigma: (
                _by_pixel(x, mu, logsigma) + ((x - mu) / logsigma.exp()) ** 2
            ).sum(-1)
        ),
        "the term −log σ has the wrong sign": (
            lambda x, mu, logsigma: (_by_pixel(x, mu, logsigma) + 2 * logsigma).sum(-1)
        ),
        "the term −log σ is there twice: −½ log σ² is −logsigma": (
            lambda x, mu, logsigma: (_by_pixel(x, mu, logsigma) - logsigma).sum(-1)
        ),
        "the constant is −½ log 2π of each entry; its factor ½ is missing": (
            lambda x, mu, logsigma: (_by_pixel(x, mu, logsigma) - _LOG_2_PI / 2).sum(-1)
        ),
        "the constant −½ log 2π has the wrong sign": (
            lambda x, mu, logsigma: (_by_pixel(x, mu, logsigma) + _LOG_2_PI).sum(-1)
        ),
        "the constant is in another logarithm: nats take the natural one, math.log": (
            lambda x, mu, logsigma: (
                _by_pixel(x, mu, logsigma) + (_LOG_2_PI - math.log10(2 * math.pi)) / 2
            ).sum(-1)
        ),
        "this is the squared error alone, with its sign: σ and the constant are missing": (
            lambda x, mu, logsigma: -((x - mu) ** 2).sum(-1) + 0 * logsigma.sum(-1)
        ),
        "this is half the squared error alone, with its sign: σ and the constant are missing": (
            lambda x, mu, logsigma: -((x - mu) ** 2).sum(-1) / 2 + 0 * logsigma.sum(-1)
        ),
        "this adds up densities, not their logs": (
            lambda x, mu, logsigma: _by_pixel(x, mu, logsigma).exp().sum(-1)
        ),
    },
)

KL_divergence = Exercise(
    "KL_divergence",
    right=lambda mu, logsigma: _by_latent(mu, logsigma).sum(-1),
    cases=batches(_moments),
    mistakes={
        "this is the KL for log σ²; the argument is log σ, so σ² is exp(2 logsigma)": (
            lambda mu, logsigma: _by_latent(mu, logsigma / 2).sum(-1)
        ),
        "this takes logsigma for σ itself: σ is exp(logsigma)": (
            lambda mu, logsigma: ((logsigma**2 + mu**2 - 1) / 2 - logsigma.abs().log()).sum(-1)
        ),
        "the sign is flipped: a KL divergence is never negative": (
            lambda mu, logsigma: -_by_latent(mu, logsigma).sum(-1)
        ),
        "this is KL(N(0, I) ‖ q): the divergence of the ELBO is KL(q ‖ N(0, I))": (
            lambda mu, logsigma: (((1 + mu**2) * (-2 * logsigma).exp() - 1) / 2 + logsigma).sum(-1)
        ),
        "the factor ½ is missing": lambda mu, logsigma: 2 * _by_latent(mu, logsigma).sum(-1),
        "the term μ² is missing: a guide far from the prior would cost nothing": (
            lambda mu, logsigma: _by_latent(torch.zeros_like(mu), logsigma).sum(-1)
        ),
        "μ is not squared": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) - mu**2 / 2 + mu / 2).sum(-1)
        ),
        "the −1 of each latent is missing: q = N(0, I) must give 0": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) + 0.5).sum(-1)
        ),
        "the term −log σ is missing: q = N(0, I) is no minimum then": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) + logsigma).sum(-1)
        ),
        "the term −log σ has the wrong sign": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) + 2 * logsigma).sum(-1)
        ),
        "this has σ where it needs σ² = exp(2 logsigma)": (
            lambda mu, logsigma: (
                _by_latent(mu, logsigma) + (logsigma.exp() - (2 * logsigma).exp()) / 2
            ).sum(-1)
        ),
        "this is the mean over the latents; the KL is a sum": (
            lambda mu, logsigma: _by_latent(mu, logsigma).mean(-1)
        ),
        "this sums over the batch too: expected one number per datum": (
            lambda mu, logsigma: _by_latent(mu, logsigma).sum()
        ),
        "this is the mean over the batch: expected one number per datum": (
            lambda mu, logsigma: _by_latent(mu, logsigma).sum(-1).mean()
        ),
        "one number per latent: sum them over the last dimension": _by_latent,
        "this is in bits (log to base 2): expected nats": (
            lambda mu, logsigma: _by_latent(mu, logsigma).sum(-1) / math.log(2)
        ),
        "the term −log σ² is there by half: it is −2 logsigma": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) + logsigma / 2).sum(-1)
        ),
        "the factor ½ is there twice": lambda mu, logsigma: _by_latent(mu, logsigma).sum(-1) / 2,
        "+1 for −1: q = N(0, I) must give 0": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) + 1).sum(-1)
        ),
        "the −1 is there once; it belongs to each latent": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) + 0.5).sum(-1) - 0.5
        ),
        "the term μ² has the wrong sign": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) - mu**2).sum(-1)
        ),
        "the term σ² is missing: a wide guide would cost nothing": (
            lambda mu, logsigma: (_by_latent(mu, logsigma) - (2 * logsigma).exp() / 2).sum(-1)
        ),
        "this squares logsigma for σ²: σ² is exp(2 logsigma)": (
            lambda mu, logsigma: ((logsigma**2 + mu**2 - 1) / 2 - logsigma).sum(-1)
        ),
        "the log is to base 10: log σ is logsigma itself": (
            lambda mu, logsigma: (
                _by_latent(mu, logsigma) + logsigma - logsigma / math.log(10)
            ).sum(-1)
        ),
        "this sums over the data: sum over the last dimension": (
            lambda mu, logsigma: _by_latent(mu, logsigma).sum(0)
        ),
    },
)


def _terms(generator: torch.Generator, dtype: torch.dtype) -> Case:
    num_data = size(generator, 4, 12)
    log_p, kl = (torch.randn(num_data, generator=generator, dtype=dtype) for _ in range(2))
    return {"log_p_x": 40 * log_p - 5, "kl": 5 * kl.abs() + 1}


negative_elbo = Exercise(
    "negative_elbo",
    right=lambda log_p_x, kl: (kl - log_p_x).mean(),
    cases=_terms,
    mistakes={
        "this is the ELBO; an optimizer minimizes, so the loss is its negative": (
            lambda log_p_x, kl: (log_p_x - kl).mean()
        ),
        "the KL term is rewarded: the ELBO subtracts it": (
            lambda log_p_x, kl: -(log_p_x + kl).mean()
        ),
        "the log-likelihood is punished: its sign is flipped": (
            lambda log_p_x, kl: (log_p_x + kl).mean()
        ),
        "the KL term is missing": lambda log_p_x, kl: -log_p_x.mean(),
        "the log-likelihood is missing": lambda log_p_x, kl: kl.mean(),
        "this is the sum over the batch: expected the mean, so that the learning rate does not "
        "depend on the batch size": lambda log_p_x, kl: (kl - log_p_x).sum(),
        "one number per datum: expected their mean": lambda log_p_x, kl: kl - log_p_x,
        "the KL term is averaged over the batch once more": (
            lambda log_p_x, kl: kl.mean() / len(kl) - log_p_x.mean()
        ),
        "the KL term is summed over the batch, the log-likelihood averaged: average both": (
            lambda log_p_x, kl: kl.sum() - log_p_x.mean()
        ),
        "the log-likelihood is summed over the batch, the KL term averaged: average both": (
            lambda log_p_x, kl: kl.mean() - log_p_x.sum()
        ),
        "the KL term has a factor ½ (a β-VAE): the ELBO has it whole": (
            lambda log_p_x, kl: kl.mean() / 2 - log_p_x.mean()
        ),
        "this is the median over the batch: expected the mean": (
            lambda log_p_x, kl: (kl - log_p_x).median()
        ),
        "this is the absolute value of the ELBO of each datum: its sign matters": (
            lambda log_p_x, kl: (kl - log_p_x).abs().mean()
        ),
        "this is a logsumexp over the batch: logs of independent data are averaged": (
            lambda log_p_x, kl: (kl - log_p_x).logsumexp(0)
        ),
    },
)


reparameterize = Sampler(
    "reparameterize",
    cases=batches(_moments),
    mistakes={
        "the noise has the standard deviation exp(½ logsigma): the argument is log σ, not log σ²": (
            lambda mu, logsigma: Moments(mu, (logsigma / 2).exp())
        ),
        "the noise has the variance in place of the standard deviation: multiply ε by σ": (
            lambda mu, logsigma: Moments(mu, (2 * logsigma).exp())
        ),
        "logsigma is taken for σ: σ is exp(logsigma)": (
            lambda mu, logsigma: Moments(mu, logsigma.abs())
        ),
        "no noise: this returns μ": lambda mu, logsigma: Moments(mu, torch.zeros_like(mu)),
        "the noise is uniform on [0, 1], by rand: it has to be normal, by randn": (
            lambda mu, logsigma: Moments(mu + logsigma.exp() / 2, logsigma.exp() / math.sqrt(12))
        ),
        "the mean is missing": lambda mu, logsigma: Moments(torch.zeros_like(mu), logsigma.exp()),
        "the noise is not multiplied by σ": lambda mu, logsigma: Moments(mu, torch.ones_like(mu)),
        "σ is added to the noise, not multiplied by it": (
            lambda mu, logsigma: Moments(mu + logsigma.exp(), torch.ones_like(mu))
        ),
        "σ is exp(logsigma), not exp(−logsigma)": (
            lambda mu, logsigma: Moments(mu, (-logsigma).exp())
        ),
        "σ comes from softplus: the argument is log σ, so σ is exp(logsigma)": (
            lambda mu, logsigma: Moments(mu, F.softplus(logsigma))
        ),
        "μ is multiplied by the noise: it is added": (
            lambda mu, logsigma: Moments(torch.zeros_like(mu), mu.abs() * logsigma.exp())
        ),
        "the noise is never negative: draw it by torch.randn_like(mu), without abs()": (
            lambda mu, logsigma: Moments(
                mu + logsigma.exp() * math.sqrt(2 / math.pi),
                logsigma.exp() * math.sqrt(1 - 2 / math.pi),
            )
        ),
    },
)
