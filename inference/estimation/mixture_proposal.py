"""A proposal fitted to draws from the posterior: a mixture of Gaussians, or of Student's t."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.inference.annealing.log_joint import PriorPath
from evidence.inference.programs import estimators

_DEGREES = (5.0, 30.0, math.inf)
_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 18)
_DRAWS_PER_NUMBER = 4  # of a component's mean and covariance
_WORSE = 2  # so many numbers of components in a row without a gain end the search
_PILOT = 500


@dataclass(frozen=True)
class Mixture:
    """Σ_k w_k t_ν(z; μ_k, L_k L_kᵀ), a density on R^Z that can be drawn from; Gaussian for ν = ∞.

    Args:
        log_shares: log w `[K]`.
        locs: μ `[K, Z]`.
        factors: lower triangular L `[K, Z, Z]`.
        degrees: ν.
    """

    log_shares: Tensor
    locs: Tensor
    factors: Tensor
    degrees: float

    def sample(self, number: int) -> Tensor:
        """Draws `[number, Z]`."""
        which = torch.multinomial(self.log_shares.exp(), number, replacement=True)
        noise = torch.randn(number, self.locs.shape[1], 1).to(self.locs)
        if math.isfinite(self.degrees):
            shape = torch.full((number, 1, 1), self.degrees / 2).to(self.locs)
            noise = noise * (shape / torch._standard_gamma(shape)).sqrt()
        return self.locs[which] + (self.factors[which] @ noise).squeeze(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at z `[S, Z]`: `[S]`, in nats."""
        dim = z.shape[1]
        off = (z.unsqueeze(1) - self.locs).unsqueeze(-1)  # [S, K, Z, 1]
        solved = torch.linalg.solve_triangular(self.factors, off, upper=False)
        squares = solved.square().sum((-2, -1))
        log_det = self.factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if math.isfinite(nu := self.degrees):
            log_norm = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2)
            log_norm -= dim / 2 * math.log(nu * math.pi)
            log_p = log_norm - (nu + dim) / 2 * torch.log1p(squares / nu)
        else:
            log_p = -0.5 * (squares + dim * math.log(2 * math.pi))
        return (self.log_shares + log_p - log_det).logsumexp(1)


class MixtureProposal:
    """The mixture that fits draws best, in a path's unconstrained coordinates.

    The number of components is that of the least BIC, as far as the draws allow, and their tails
    are those whose weights have the largest ESS in a pilot run: a proposal with tails that are too
    light has weights without a variance.

    Args:
        path: in whose coordinates; of data that share latents.
        u: the draws `[S, 1, Z]`.
        seed: of the fit.
    """

    def __init__(self, path: PriorPath, u: Tensor, seed: int) -> None:
        self.path, self._dtype = path, u.dtype
        candidates = _fitted(u.squeeze(1), seed)
        self.num_evaluations = _PILOT * len(candidates)
        self.mixture = max(candidates, key=self._pilot_ess)

    def sample(self, num_draws: int) -> Tensor:
        """Draws `[S, 1, Z]`."""
        return self.mixture.sample(num_draws).to(self._dtype).unsqueeze(1)

    def log_weights(self, num_draws: int, rows: int = 10_000) -> Tensor:
        """Log p(x, u) − log q(u) at draws `[S, 1]`, in nats; some at a time."""
        parts = (self._log_weights(self.mixture, u) for u in self.sample(num_draws).split(rows))
        return torch.cat(list(parts))

    def _log_weights(self, mixture: Mixture, u: Tensor) -> Tensor:
        log_q = mixture.log_prob(u.squeeze(1).double()).unsqueeze(1)
        return self.path(u).log_p_xz.double() - log_q

    def _pilot_ess(self, mixture: Mixture) -> float:
        u = mixture.sample(_PILOT).to(self._dtype).unsqueeze(1)
        return estimators.ess(self._log_weights(mixture, u)).nan_to_num(0.0).item()


def _fitted(z: Tensor, seed: int) -> list[Mixture]:
    """The mixture of draws `[S, Z]`, with tails of several weights.

    Components are found by scikit-learn's EM, in coordinates in which all draws have unit
    covariance.
    """
    mean, factor = _moments(z)
    standard = torch.linalg.solve_triangular(factor, (z.double() - mean).mT, upper=False).mT
    shares, locs, factors = _best_mixture(standard, seed)
    return [
        Mixture(shares.log(), mean + locs @ factor.mT, factor @ factors, degrees)
        for degrees in _DEGREES
    ]


def _moments(z: Tensor) -> tuple[Tensor, Tensor]:
    """The mean `[Z]`, and a factor of the covariance `[Z, Z]`, of draws `[S, Z]`; in float64."""
    z = z.double()
    covariance = torch.atleast_2d(z.mT.cov())
    ridge = 1e-10 * covariance.diagonal().clamp(min=torch.finfo(z.dtype).tiny)
    return z.mean(0), torch.linalg.cholesky(covariance + torch.diag(ridge))


def _best_mixture(z: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Shares `[K]`, means and factors of the covariances of the mixture with the least BIC."""
    from sklearn.mixture import GaussianMixture  # noqa: PLC0415

    numbers = z.shape[1] * (z.shape[1] + 3) // 2
    best, worse = None, 0
    for count in _COMPONENTS:
        if count > 1 and count * numbers * _DRAWS_PER_NUMBER > len(z):
            break
        mixture = GaussianMixture(count, random_state=seed, reg_covar=1e-6, n_init=2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an EM that has not converged fits, if less well
            mixture.fit(z.cpu().numpy())
        bic = mixture.bic(z.cpu().numpy())
        if best is None or bic < best[0]:
            best, worse = (bic, mixture), 0
        else:
            worse += 1
        if worse == _WORSE:
            break
    assert best is not None
    found = best[1]
    covariances = torch.as_tensor(found.covariances_).to(z)
    parts = torch.as_tensor(found.weights_), torch.as_tensor(found.means_)
    return parts[0].to(z), parts[1].to(z), torch.linalg.cholesky(covariances)
