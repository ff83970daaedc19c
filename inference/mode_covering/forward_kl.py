"""A guide fitted to draws from the posterior, by the forward KL."""

import torch
from torch import Tensor

from evidence.inference.bridging.posterior_draws import Draws, PosteriorDraws
from evidence.inference.estimation.sequential import smc
from evidence.inference.mode_covering.base import AbstractPathObjective
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.isolation import annealing_mode


class ForwardKLOnDraws(AbstractPathObjective):
    """The guide minimizes KL(p(z | x) ‖ q(z | x)) over draws from the posterior; the model stays.

    Loss = E_p[log p(x, z) − log q(z | x)], the EUBO, at or above log p(x): of it the guide changes
    −E_p[log q(z | x)] alone. A guide that is zero where a draw is loses without end, so that it
    covers what the draws cover, where one that maximizes the ELBO may settle on a single mode.
    `ForwardKL` follows the same divergence by weights of the guide's own draws, which it must
    already have in every mode; it needs no draws, and trains amortized guides.

    Where data share latents. A flexible guide can overfit few draws: judge it, as by
    `compare_to_reference` or `bridge_evidence`, by others.

    References: C. Naesseth, F. Lindsten, D. Blei, "Markovian Score Climbing: Variational Inference
    with KL(p‖q)", 2020, https://arxiv.org/abs/2003.10374; D. Blessing et al., "Beyond ELBOs", 2024,
    https://arxiv.org/abs/2406.07423, for the EUBO.

    Args:
        draws: of `smc` or `nuts_reference`, an ArviZ object, or values by site, as
            `bridge_evidence` takes them; None for those of `smc` from the prior, once.
        num_particles: K, draws of a step, chosen at random; all if there are no more.
    """

    default_particles = 512

    def __init__(self, draws: Draws | None = None, *, num_particles: int | None = None) -> None:
        super().__init__(num_particles)
        self.draws = draws
        self._u: Tensor | None = None
        self._log_p_xz: Tensor | None = None

    def __repr__(self) -> str:
        kind = None if self.draws is None else type(self.draws).__name__
        return f"ForwardKLOnDraws(draws={kind}, num_particles={self.num_particles})"

    def enters(self, path: GuidePath) -> None:
        """Locate the draws, and score them by the model, which stays as it is."""
        if not path.layout.is_joint:
            raise ValueError(
                "ForwardKLOnDraws expected a model whose data share latents, got one with latents "
                "of each datum: use ForwardKL, or FAB"
            )
        with annealing_mode(path.model, path.guide, 0, path.x.device):
            draws = smc(path.model, path.x) if self.draws is None else self.draws
            self._u = PosteriorDraws(draws, path).located(path).flatten(0, 1)
            self._log_p_xz = torch.cat([path(some)[1] for some in self._u.split(4096)])

    def on_path(self, path: GuidePath) -> Tensor:
        """The EUBO in nats, `[1]`."""
        assert self._u is not None  # see `enters`
        assert self._log_p_xz is not None
        rows = slice(None)
        if self.num_particles < len(self._u):
            rows = torch.randint(len(self._u), (self.num_particles,)).to(self._u.device)
        return (self._log_p_xz[rows] - path.log_q(self._u[rows])).mean(0)
