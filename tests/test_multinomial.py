"""Counts of any total, as rows of a contingency table are: torch's `Multinomial` scores them."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import gammaln, logsumexp

from evidence.guides import FullRank
from evidence.inference import check, importance_weighted_evidence, smc
from evidence.inference.paths.log_joint import PriorPath, Way
from evidence.inference.programs import mapping
from evidence.inference.programs.random_state import isolated_rng

COUNTS = torch.tensor([[5, 1, 0], [3, 3, 2], [0, 2, 6], [4, 0, 1]]).double()


def tables(counts):
    """Shares of three answers in every group, and how alike they are."""
    alpha = pyro.sample("alpha", dist.Gamma(counts.new_tensor(2.0), 1.0))
    with pyro.plate("groups", len(counts)):
        shares = pyro.sample("shares", dist.Dirichlet(alpha * counts.new_ones(3)))
        likelihood = dist.Multinomial(probs=shares, validate_args=False)
        pyro.sample("counts", likelihood, obs=counts)


def tables_evidence():
    """Dirichlet-multinomial given α, whose logarithm is integrated by the trapezoidal rule."""
    log_alpha, counts = np.linspace(-12, 6, 2001), COUNTS.numpy()
    alpha = np.exp(log_alpha)[:, None, None]
    log_p = 2 * log_alpha - np.exp(log_alpha)
    log_p += (gammaln(alpha + counts) - gammaln(alpha)).sum((1, 2))
    totals = counts.sum(1)
    log_p += (gammaln(3 * alpha[..., 0]) - gammaln(3 * alpha[..., 0] + totals)).sum(1)
    choose = (gammaln(totals + 1) - gammaln(counts + 1).sum(1)).sum()
    return logsumexp(log_p) + choose + math.log(log_alpha[1] - log_alpha[0])


def test_counts_of_unequal_totals_are_no_data_outside_the_support():
    guide = FullRank.for_model(tables, COUNTS)
    assert check(tables, guide, COUNTS) == []
    with pytest.raises(ValueError, match="outside the support of site 'counts': Multinomial"):
        importance_weighted_evidence(tables, guide, COUNTS - 0.5, 10)


def test_they_are_scored_for_all_chains_at_once(monkeypatch):
    """By `torch.vmap`, which does not know the mask in its `log_prob`: one by one takes minutes."""
    with isolated_rng(0):
        assert PriorPath(tables, COUNTS).way is Way.VMAP
        monkeypatch.setattr(mapping, "_is_mask", lambda *_: False)
        assert PriorPath(tables, COUNTS).way is Way.ONE_BY_ONE
        monkeypatch.undo()
    found = smc(tables, COUNTS, num_islands=16, num_chains=4, num_steps=8).evidence
    assert found.not_reliable is None
    assert abs(found.mean - tables_evidence()) < 4 * found.mc_se
    assert abs(found.mean + 0.5 - tables_evidence()) > 4 * found.mc_se
