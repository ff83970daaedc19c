"""Signal and noise of gradients, where both are known, and as the number of particles grows."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO

from evidence.inference import IWAE, DReG, gradient_signal_to_noise
from tests.conftest import make_oracle


class Known(ELBO):
    """A gradient of mean (1, −2, 0) and standard deviation (0.5, 2, 1)."""

    def __init__(self, parameter, scale=1.0):
        super().__init__()
        self.parameter, self.scale = parameter, scale

    def _get_trace(self, *_):
        raise NotImplementedError

    def differentiable_loss(self, model, guide, x):
        del model, guide, x
        mean = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
        std = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
        return (self.parameter * (mean + self.scale * std * torch.randn(3).double())).sum()


def measure(objective, parameters, num_draws=4000):
    return gradient_signal_to_noise(
        objective, None, None, torch.zeros(1), parameters=parameters, num_draws=num_draws
    )


def test_a_known_ratio_is_found():
    """|z| < 5 for every entry; the twin, whose noise is half as large again, has |z| > 5."""
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    exact = torch.tensor([2.0, 1.0], dtype=torch.float64)
    for scale, is_right in ((1.0, True), (1.5, False)):
        noise = measure(Known(parameter, scale), [parameter])
        z = (noise.snr[:2] - exact) / noise.snr_se[:2]
        assert bool((z.abs() < 5).all()) == is_right
        assert (noise.mean[2] / noise.mean_se[2]).abs() < 5
    assert parameter.grad is None


def test_the_standard_error_is_calibrated():
    """Spread of 100 measured ratios within 35% of the error they claim (its own SE is 7%)."""
    parameter = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    runs = [measure(Known(parameter), [parameter], 100) for _ in range(100)]
    spread = torch.stack([run.snr for run in runs]).std(0)
    claimed = torch.stack([run.snr_se for run in runs]).mean(0)
    assert ((spread / claimed)[:2] - 1).abs().max() < 0.35


def test_parameters_that_are_not_reached_have_zero_gradient():
    reached, other = (torch.zeros(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    noise = measure(Known(reached), [reached, other], 3)
    assert noise.mean.shape == (6,)
    assert not noise.std[3:].any()
    assert noise.snr[3:].isnan().all()


def test_iwae_drowns_in_noise_with_more_particles_and_dreg_does_not():
    """Ratios of K = 1 and K = 64 for a guide beside the posterior, 200 draws each."""
    model = make_oracle()
    x = model(None, size=40)
    exact = model.posterior(x)
    scale = exact.stddev.mean(0)
    shift = (0.1 * torch.ones(3, dtype=torch.float64)).requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(exact.loc + shift, scale).to_event(1))

    def ratio(kind, num_particles):
        noise = gradient_signal_to_noise(
            kind(num_particles), model, guide, x, parameters=[shift], num_draws=200
        )
        return noise.snr.mean().item()

    se = math.sqrt(1 / 200)  # of one entry, so too large for the mean of three
    assert ratio(IWAE, 1) - ratio(IWAE, 64) > 5 * se
    assert ratio(DReG, 64) > ratio(DReG, 1)


def test_objectives_of_pyro_are_measured_too():
    model = make_oracle()
    x = model(None, size=4)
    loc = model.posterior(x).loc.clone().requires_grad_()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5).to_event(1))

    noise = gradient_signal_to_noise(Trace_ELBO(), model, guide, x, parameters=[loc], num_draws=5)
    assert noise.snr.shape == (12,)
    assert noise.num_draws == 5


LEAF = torch.zeros(3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(RenyiELBO(), [LEAF]), "differentiable_loss, got RenyiELBO"),
        (lambda: measure(Known(LEAF), [LEAF], 1), "num_draws of at least 2, got 1"),
        (lambda: measure(Known(LEAF), []), "leaf tensors that require gradients, got 0"),
        (lambda: measure(Known(LEAF), [2 * LEAF]), "leaf tensors that require gradients"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
