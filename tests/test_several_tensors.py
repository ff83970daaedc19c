"""Data of several tensors, where every datum has latents of its own, in whatever takes data."""

import pyro
import pyro.distributions as dist
import torch

from evidence.inference import (
    latent_diagnostics,
    log_prob_terms,
    log_weights,
    simulation_based_calibration,
)
from evidence.inference.programs.random_state import isolated_rng

with isolated_rng(0):
    X, Y = torch.randn(40).double(), torch.randn(40).double()


def model(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
        pyro.sample("y", dist.Normal(z * x, 0.5), obs=y)


def guide(x, y, widen=1.0):
    """The exact posterior."""
    precision = 1 + 4 * x**2
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(4 * x * y / precision, widen * precision.rsqrt()))


def test_the_terms_of_the_weights_add_up_to_the_evidence():
    exact = dist.Normal(0.0, (X**2 + 0.25).sqrt()).log_prob(Y)
    terms = log_prob_terms(model, guide, (X, Y), 3)
    assert torch.allclose(terms.log_w, exact.expand(3, -1))
    assert torch.allclose(log_weights(model, guide, (X, Y), 3), exact.expand(3, -1))


def test_what_latents_do_of_several_tensors():
    kl = latent_diagnostics(model, guide, (X, Y), num_draws=4000).kl["z"].flatten()
    sd = (1 + 4 * X**2).rsqrt()
    exact = torch.distributions.kl_divergence(
        dist.Normal(4 * X * Y * sd**2, sd), dist.Normal(0.0, 1.0)
    )
    assert torch.allclose(kl.mean(), exact.mean(), atol=0.03)
    assert not torch.allclose(kl.mean(), exact.mean() + 0.2, atol=0.03)


def test_calibration_on_data_like_several_tensors():
    options = {"num_simulations": 400, "num_draws": 63, "x": (X, Y)}
    assert simulation_based_calibration(model, guide, **options).p_values["z"] > 1e-3
    wide = simulation_based_calibration(model, lambda x, y: guide(x, y, 2.0), **options)
    assert wide.p_values["z"] < 1e-3
