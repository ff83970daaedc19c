"""KL per latent against the closed form, active units, collapse, the aggregate posterior."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from evidence.guides import FullRank, Hierarchical, MeanField
from evidence.inference import log_prob_terms
from evidence.inference.diagnostics.latent_diagnostics import latent_diagnostics
from evidence.models import VAE, EightSchools, HierarchicalVAE
from tests.conftest import make_oracle
from tests.test_weights import exact_guide, layered_guide, layered_model


def independent_gaussians(loc, scale):
    """A factorized guide; `loc` is a function of x or a vector."""

    def guide(x):
        with pyro.plate("data", len(x)):
            where = loc(x) if callable(loc) else loc
            pyro.sample("z", dist.Normal(where.expand(len(x), 3), scale).to_event(1))

    return guide


def first_entries(x):
    return x[:, :3]


def one_active(x):
    return torch.stack([x[:, 0], 0 * x[:, 0], 0 * x[:, 0]], -1)


SCALE = torch.tensor([0.4, 1.0, 1.0]).double()


@pytest.fixture
def data(oracle):
    return oracle(None, size=200)


@pytest.mark.parametrize("seed", range(3))
def test_kl_per_latent_is_the_closed_form(oracle, data, seed):
    """|z| < 5 for every latent; the twin compares with the KL of a scale that is 8% larger."""
    loc, scale = data[:, :3], torch.tensor([0.4, 1.3, 0.7]).double()
    got = latent_diagnostics(oracle, independent_gaussians(first_entries, scale), data, seed=seed)
    exact = kl_divergence(dist.Normal(loc, scale), dist.Normal(0.0, 1.0)).mean(0)
    assert got.kl["z"].shape == (3,)
    assert ((got.kl["z"] - exact) / got.kl_se["z"]).abs().max() < 5
    planted = kl_divergence(dist.Normal(loc, 1.08 * scale), dist.Normal(0.0, 1.0)).mean(0)
    assert ((got.kl["z"] - planted) / got.kl_se["z"]).abs().max() > 5


def test_a_guide_that_is_not_factorized_has_one_number_per_site(oracle, data):
    got = latent_diagnostics(oracle, exact_guide(oracle), data)
    prior = dist.MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    exact = kl_divergence(oracle.posterior(data), prior).mean()
    assert got.kl["z"].shape == ()
    assert abs(got.kl["z"] - exact) < 5 * got.kl_se["z"]


@pytest.mark.parametrize("seed", range(3))
def test_kl_adds_up_to_the_term_of_the_elbo(seed):
    """Layers, sites drawn through an auxiliary one, and plates inside of the data's."""
    layered = HierarchicalVAE(8, latent_dims=(3, 2), hidden_dims=(8,), layer_hidden_dims=(8,))
    schools, effects = EightSchools(8), torch.randn(9, 8)
    pairs = {
        "layers": (layered, Hierarchical(5, 8, latents=layered.latents), torch.ones(9, 8), 2),
        "constrained": (schools, FullRank.for_model(schools, effects), effects, 1),
        "functions": (layered_model, layered_guide, torch.randn(9, 4).double(), 2),
    }
    for model, guide, x, num_entries in pairs.values():
        got = latent_diagnostics(model, guide, x, num_draws=2000, seed=seed)
        assert len(got.kl) == num_entries
        total = sum(kl.sum() for kl in got.kl.values()).item()
        terms = log_prob_terms(model, guide, x, 2000)
        ratios = (terms.log_q_z - terms.log_p_z).double()
        se = (2 * ratios.var(0).sum() / 2000).sqrt().item() / 9
        assert abs(total - ratios.mean().item()) < 5 * se
        assert abs(total + 20 * se - ratios.mean().item()) > 5 * se


def test_active_units_and_the_warning_name_the_collapsed_latents(oracle, data):
    got = latent_diagnostics(oracle, independent_gaussians(one_active, SCALE), data)
    assert got.active["z"].tolist() == [True, False, False]
    assert (got.num_active, got.num_latents) == (1, 3)
    assert "2 of 3 latents are inactive" in got.collapse_warning
    assert "z: 1, 2" in got.collapse_warning
    assert got.collapse_warning in str(got)
    # No latent is collapsed in the exact posterior.
    exact = latent_diagnostics(oracle, exact_guide(oracle), data)
    assert exact.num_active == 3
    assert exact.collapse_warning is None
    assert "\n" not in str(exact)


def test_a_scalar_site_collapses_too():
    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("top", dist.Normal(0.0, 1.0).expand([len(x), 1]))
            pyro.sample("bottom", dist.Normal(x.mean(-1, keepdim=True), 0.2))

    x = 2 * torch.randn(50, 4).double()
    got = latent_diagnostics(layered_model, guide, x)
    assert {name: bool(active) for name, active in got.active.items()} == {
        "top": False,
        "bottom": True,
    }
    assert "1 of 2 latents are inactive" in got.collapse_warning
    assert "top: all" in got.collapse_warning


def test_the_aggregate_posterior_has_the_moments_of_the_mixture(oracle, data):
    """Law of total variance, in closed form: |z| < 5; the mean of the variances alone fails."""
    loc, scale = data[:, :3], torch.tensor([0.4, 1.3, 0.7]).double()
    got = latent_diagnostics(
        oracle, independent_gaussians(first_entries, scale), data, num_draws=500
    )
    se = scale / math.sqrt(500 * 200)
    assert ((got.mean["z"] - loc.mean(0)) / se).abs().max() < 5
    variance = scale**2 + loc.var(0, correction=0)
    assert torch.allclose(got.variance["z"], variance, rtol=0.02)
    assert not torch.allclose(got.variance["z"], scale**2, rtol=0.02)
    assert got.prior_mean["z"].abs().max() < 5 / math.sqrt(500 * 200)
    assert torch.allclose(got.prior_variance["z"], torch.ones(3).double(), rtol=0.03)


def test_the_exact_aggregate_posterior_is_the_prior():
    """On data of the model's own the margins agree to 5/√B; shifted ones do not."""
    model = make_oracle()
    x = model(None, size=2000)
    got = latent_diagnostics(model, exact_guide(model), x, num_draws=20)
    assert got.ks["z"].max() < 1.95 / math.sqrt(2000)  # Kolmogorov's 99.9% point for B data

    def shifted(x):
        with pyro.plate("data", len(x)):
            exact = model.posterior(x)
            pyro.sample("z", dist.MultivariateNormal(exact.loc + 0.2, exact.covariance_matrix))

    twin = latent_diagnostics(model, shifted, x, num_draws=20)
    assert twin.ks["z"].min() > 1.95 / math.sqrt(2000)


def test_ks_is_the_known_distance_of_two_gaussians(oracle, data):
    """Φ(δ/2) − Φ(−δ/2) between unit Gaussians δ apart."""
    got = latent_diagnostics(
        oracle, independent_gaussians(torch.tensor([0.0, 0.5, 2.0]).double(), 1.0), data
    )
    expected = torch.erf(torch.tensor([0.0, 0.25, 1.0]).double() / math.sqrt(2))
    assert torch.allclose(got.ks["z"], expected, atol=0.02)


def test_chunks_and_seeds(oracle, data):
    guide = independent_gaussians(one_active, SCALE)
    state = torch.get_rng_state()
    first = latent_diagnostics(oracle, guide, data[:20], seed=1)
    again = latent_diagnostics(oracle, guide, data[:20], seed=1)
    assert torch.equal(first.kl["z"], again.kl["z"])
    assert torch.equal(torch.get_rng_state(), state)
    guide = MeanField(3, 10, hidden_dims=()).double()
    whole = latent_diagnostics(oracle, guide, data, seed=1)
    parts = latent_diagnostics(oracle, guide, data, seed=1, chunk_size=70)
    se = whole.kl_se["z"].hypot(parts.kl_se["z"])
    assert ((whole.kl["z"] - parts.kl["z"]) / se).abs().max() < 5


@pytest.mark.parametrize(
    ("options", "rows", "message"),
    [({"num_draws": 1}, 4, "at least 2, got 1 and 4"), ({}, 1, "at least 2, got 100 and 1")],
)
def test_bad_input_is_named(options, rows, message):
    with pytest.raises(ValueError, match=message):
        latent_diagnostics(VAE(10, 3), MeanField(3, 10), torch.ones(rows, 10), **options)
