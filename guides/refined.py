"""Semi-amortized inference: the encoder's answer, improved for each datum."""

from collections.abc import Callable
from typing import Any, Self

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from evidence.guides.base import AbstractGuide
from evidence.guides.common_noise import CommonNoise
from evidence.guides.full_rank import FullRank
from evidence.guides.per_datum import per_datum
from evidence.guides.posterior import AbstractPosterior
from evidence.inference.programs.random_state import seed_torch


class Refined(AbstractPosterior):
    """Any guide whose local parameters are improved per datum by a few steps of gradient ascent.

    λ₀ = encoder(x),  λ_{t+1} = λ_t + Adam(∇_λ L(λ_t; x)),  q(z | x) = q(z; λ_T),

    with L the ELBO of the datum, estimated with `num_particles` noise draws: new ones at every
    step, as a few draws that stay are soon overfitted, but the same ones at every call and for
    every datum, so that q(z | x) is a function of x, whatever else is in the batch. Training takes
    λ_T − λ₀ as a constant: the encoder learns by the gradient at λ_T, without second derivatives of
    the model.

    Reference: Y. Kim, S. Wiseman, A. C. Miller, D. Sontag, A. M. Rush, "Semi-Amortized Variational
    Autoencoders", 2018, https://arxiv.org/abs/1802.02550, algorithm 1.

    Args:
        guide: the guide to refine.
        model: the Pyro model, called with a batch; it is no part of the guide's parameters.
        num_steps: gradient steps per datum.
        lr: Adam's learning rate.
        num_particles: draws of the ELBO's estimate.
    """

    def __init__(
        self,
        guide: AbstractPosterior,
        model: Callable[..., Any],
        *,
        num_steps: int = 10,
        lr: float = 0.05,
        num_particles: int = 8,
    ) -> None:
        super().__init__(guide.latent_dim, guide.data_dim, site=guide.site)
        for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
            if value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}")
        if lr <= 0:
            raise ValueError(f"expected lr > 0, got {lr}")
        self.guide, self.is_amortized = guide, guide.is_amortized
        self._model = (model,)  # in a tuple, where torch does not take it for a part of the guide
        self.num_steps, self.lr, self.num_particles = num_steps, lr, num_particles

    @classmethod
    def for_model(
        cls,
        model: Callable[..., Any],
        data: Any,
        *,
        guide: AbstractPosterior | type[AbstractGuide] = FullRank,
        **options: Any,
    ) -> Self:
        """A family's guide of the model, refined.

        Args:
            model: called with a batch; scores it.
            data: one tensor `[N, D]`.
            guide: the guide to refine, or its family.
            options: of the constructor.

        Raises:
            ValueError: the data share a latent, or are not one tensor.
        """
        return cls(per_datum(guide, model, data, cls.__name__), model, **options)

    def forward(self, x: Tensor) -> Any:
        """Sample every latent given the batch `x`, as the guide inside does."""
        self.register()
        return self.given(self.local_parameters(x))(x)

    def posterior(self, x: Tensor) -> TorchDistribution:
        """q(z | x) at the refined parameters: batch shape `[B]`, event shape `[Z]`."""
        return self.given(self.local_parameters(x)).posterior(x)

    def local_parameters(self, x: Tensor) -> Tensor:
        """The refined parameters λ_T: `[B, P]`."""
        start = self.guide.local_parameters(x)
        return start + self._improvement(x, start.detach())

    def given(self, local_parameters: Tensor) -> AbstractPosterior:
        """The guide inside for one batch whose local parameters, `[B, P]`, are given."""
        return self.guide.given(local_parameters)

    def site_values(self, z: Tensor) -> dict[str, Tensor]:
        """As the guide inside does."""
        return self.guide.site_values(z)

    @torch.enable_grad()
    def _improvement(self, x: Tensor, start: Tensor) -> Tensor:
        """λ_T − λ₀ without gradients: `[B, P]`."""
        refined = start.clone().requires_grad_()
        adam = torch.optim.Adam([refined], lr=self.lr)  # acts on each entry by itself
        devices = [x.device] if x.is_cuda else []
        noise = CommonNoise(self.num_particles, len(x))
        for step in range(self.num_steps):
            with torch.random.fork_rng(devices), poutine.block(), noise:
                seed_torch(step)
                loss = -self._elbo_sum(x, refined)
            (refined.grad,) = torch.autograd.grad(loss, refined)
            adam.step()
        return refined.detach() - start

    def _elbo_sum(self, x: Tensor, local_parameters: Tensor) -> Tensor:
        """Σ of the ELBOs of the batch: each λ gets the gradient of its own datum."""
        posterior = self.given(local_parameters).posterior(x)
        z = posterior.rsample(torch.Size([self.num_particles]))  # [S, B, Z]
        conditioned = poutine.condition(self._model[0], data=self.site_values(z))
        log_p_xz = poutine.trace(conditioned).get_trace(x).log_prob_sum()
        return (log_p_xz - posterior.log_prob(z).sum()) / self.num_particles
