"""Pareto tails of many samples of weights at once, beside ArviZ's, one after another."""

import math
import warnings

import numpy as np
import pytest
import torch

from evidence.inference.programs import estimators, pareto


def arviz_psis(log_w):
    """Normalized smoothed log-weights and shapes, of whichever ArviZ is installed."""
    by_datum = (log_w - log_w.max(0).values).mT.contiguous().numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its import, and of overflows in a tail
        try:
            from arviz_stats.base import array_stats  # noqa: PLC0415 (1.x)
        except ImportError:
            from arviz import psislw  # noqa: PLC0415 (0.x)

            smoothed, shapes = psislw(by_datum)
        else:  # takes log-likelihoods, as leave-one-out has them, and negates them
            smoothed, shapes = array_stats.psislw(-by_datum)
    return torch.from_numpy(np.array(smoothed)).mT, torch.from_numpy(np.array(shapes))


def many_tails(num_particles):
    """Pareto tails of shapes 0.02 to 2, log-normal ones, bounded ones, and zeros among them."""
    generator = torch.Generator().manual_seed(num_particles)
    shape = num_particles, 12
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    shapes, spreads = torch.linspace(0.02, 2, 12), torch.linspace(0.01, 60, 12)
    with_zeros = torch.where(uniform < torch.linspace(0, 0.4, 12), -math.inf, normal)
    return torch.cat([-uniform.log() * shapes, normal * spreads, -(uniform**0.25), with_zeros], 1)


@pytest.mark.parametrize("num_particles", [30, 200, 5000])
def test_many_tails_at_once_are_those_of_arviz(num_particles):
    log_w = many_tails(num_particles) + torch.linspace(-900, 100, 48)
    smoothed, shapes = estimators.pareto_smoothed(log_w)
    theirs, their_shapes = arviz_psis(log_w)
    torch.testing.assert_close(shapes, their_shapes, rtol=1e-9, atol=1e-9)
    ours = smoothed - smoothed.logsumexp(0)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_tails_that_are_shifted_are_not_those_of_arviz(monkeypatch):
    log_w = many_tails(200)
    fit = pareto.fit_tails
    monkeypatch.setattr(pareto, "fit_tails", lambda tails: fit(tails[1:]))
    shapes = estimators.k_hat(log_w)
    assert not torch.allclose(shapes, arviz_psis(log_w)[1], rtol=1e-3)


def test_equal_weights_in_a_tail_get_its_quantiles_in_some_order():
    log_w = many_tails(200)[:, 12:24].round(decimals=1)
    smoothed, shapes = estimators.pareto_smoothed(log_w)
    theirs, their_shapes = arviz_psis(log_w)
    has_tail = shapes != 0  # where the largest are all equal there is none to fit
    torch.testing.assert_close(shapes[has_tail], their_shapes[has_tail])
    ours = (smoothed - smoothed.logsumexp(0)).sort(0).values
    torch.testing.assert_close(ours[:, has_tail], theirs.sort(0).values[:, has_tail])
