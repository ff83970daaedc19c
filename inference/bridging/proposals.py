"""Proposals that are fitted to draws from the posterior: by moments, or a guide by forward KL."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from evidence.inference.bridging.posterior_draws import PosteriorDraws
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.programs.data import takes, unwrapped

_MOST_STEPS = 300


class Normal:
    """A multivariate normal with the moments of draws, in a path's unconstrained coordinates.

    Widened as much as the covariance of few draws of many latents falls short of other draws; of
    fewer than twice as many draws as latents, it is not known, and latents are independent.

    Args:
        path: in whose coordinates.
        u: the draws `[C, N, B, Z]`.
    """

    def __init__(self, path: PriorPath, u: Tensor) -> None:
        self.path = path
        draws = u.flatten(0, 1).double()  # [S, B, Z]
        self._dtype = u.dtype
        num_draws, _, dim = draws.shape
        away = draws - draws.mean(0)
        if num_draws < 2 * dim + 2:
            covariance = torch.diag_embed(away.square().sum(0) / (num_draws - 1))
        else:
            covariance = torch.einsum("sbi,sbj->bij", away, away) / (num_draws - dim - 2)
        scale_tril, failed = torch.linalg.cholesky_ex(covariance)
        if failed.any():
            raise ValueError("a latent is the same in all draws of the posterior: expected others")
        self._normal = MultivariateNormal(draws.mean(0), scale_tril=scale_tril)

    def sample(self, num_chains: int) -> Tensor:
        """Independent draws `[S, B, Z]`."""
        draws = self._normal.sample(torch.Size([num_chains]))
        return draws.to(self._dtype)

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log q and log p(x, ·) at places `[S, B, Z]`, each `[S, M]`, in nats."""
        log_p_z, log_p_x = self.path(z)
        return self._normal.log_prob(z.double()), log_p_z + log_p_x


def fitted_guide(path: GuidePath, draws: PosteriorDraws, rows: slice) -> GuidePath:
    """The path from a copy of a path's guide, fitted by forward KL to some of the draws.

    It maximizes the mean of log q(u | x), that is, minimizes KL(p ‖ q), and so covers what the
    draws cover. Draws of other rows know nothing of the fit.

    Raises:
        ValueError: the guide is no module, or has no density at the draws.
    """
    module = unwrapped(path.guide)
    if not isinstance(module, nn.Module):
        raise ValueError(
            'expected a guide that is a module for fit_guide="forward", got '
            f"{type(module).__name__}: fit it beforehand, and leave fit_guide out"
        )
    guide = copy.deepcopy(module)
    twin = GuidePath(path.model, takes(guide, path.x), path.x)
    u = draws.located(twin, rows).flatten(0, 1)
    _maximize(
        lambda: twin.log_q(u).mean(), [p for p in guide.parameters() if p.is_floating_point()]
    )
    return GuidePath(path.model, twin.guide, path.x)


def _maximize(objective: Callable[[], Tensor], parameters: Sequence[nn.Parameter]) -> None:
    """By L-BFGS, on all draws at once; parameters stay the best that were found."""
    best, best_value = [p.detach().clone() for p in parameters], -math.inf

    def loss() -> float:
        nonlocal best, best_value
        optimizer.zero_grad()
        with torch.enable_grad():
            value = objective()
            (-value).backward()
        if best_value < value.item() < math.inf:
            best, best_value = [p.detach().clone() for p in parameters], value.item()
        return -value.item()

    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=_MOST_STEPS, history_size=20, line_search_fn="strong_wolfe"
    )
    optimizer.step(loss)
    if best_value == -math.inf:
        raise ValueError("the guide has no density at draws from the posterior: fit it beforehand")
    with torch.no_grad():
        for parameter, value in zip(parameters, best, strict=True):
            parameter.requires_grad_(False).copy_(value)
