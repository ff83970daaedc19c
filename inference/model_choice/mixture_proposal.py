"""A proposal fitted to draws from the posterior: a mixture of Gaussians, or of Student's t."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evidence.inference.estimation.unknown import Unknown
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.programs import estimators

_DEGREES = (5.0, 30.0, math.inf)
_COMPONENTS = (1, 2, 3, 4, 6, 8, 12, 18)
_DRAWS_PER_NUMBER = 4  # of a component's mean and covariance
_WORSE = 2  # so many numbers of components in a row without a gain end the search
_PILOT = 500
_WORTH_OF_TAILS = 1 / 3
PRIOR_SHARE = 0.05
_AT_ONCE = 10_000


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
        counts = torch.multinomial(self.log_shares.exp(), number, replacement=True)
        counts = counts.bincount(minlength=len(self.locs)).tolist()
        parts = zip(counts, self.locs, self.factors, strict=True)
        z = torch.cat([loc + self._noise(count) @ factor.mT for count, loc, factor in parts])
        return z[torch.randperm(number)]

    def _noise(self, number: int) -> Tensor:
        """Spherical draws `[number, Z]`."""
        noise = torch.randn(number, self.locs.shape[1]).to(self.locs)
        if math.isfinite(self.degrees):
            shape = torch.full((number, 1), self.degrees / 2).to(self.locs)
            noise = noise * (shape / torch._standard_gamma(shape)).sqrt()
        return noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density at z `[S, Z]`: `[S]`, in nats."""
        parts = zip(self.log_shares, self.locs, self.factors, strict=True)
        return torch.stack(
            [share + self._log_prob(z - loc, f) for share, loc, f in parts]
        ).logsumexp(0)

    def _log_prob(self, off: Tensor, factor: Tensor) -> Tensor:
        """Of one component, so far off its centre `[S, Z]`."""
        dim, nu = off.shape[1], self.degrees
        squares = torch.linalg.solve_triangular(factor, off.mT, upper=False).square().sum(0)
        log_det = factor.diagonal().log().sum()
        if math.isinf(nu):
            return -0.5 * (squares + dim * math.log(2 * math.pi)) - log_det
        log_norm = math.lgamma((nu + dim) / 2) - math.lgamma(nu / 2)
        log_norm -= dim / 2 * math.log(nu * math.pi)
        return log_norm - log_det - (nu + dim) / 2 * torch.log1p(squares / nu)


class MixtureProposal:
    """The mixture that fits draws best, and a share of the prior, in unconstrained coordinates.

    The number of components is that of the least BIC, as far as the draws allow. Tails are as heavy
    as they can be at the cost of two thirds of the ESS in a pilot run: what is too light there has
    weights without a variance, and does not show it. The prior has a share for the same reason, as
    a posterior often has the prior's tails (T. Hesterberg, "Weighted Average Importance Sampling
    and Defensive Mixture Distributions", 1995, https://doi.org/10.1080/00401706.1995.10484303).

    Args:
        path: in whose coordinates; of data that share latents.
        u: the draws `[S, 1, Z]`.
        seed: of the fit.
    """

    def __init__(self, path: PriorPath, u: Tensor, seed: int) -> None:
        self.path, self._dtype = path, u.dtype
        candidates = _fitted(u.squeeze(1), seed)
        self.num_evaluations = _PILOT * len(candidates)
        shares = [self._pilot_ess(mixture) for mixture in candidates]
        enough = max(shares) * _WORTH_OF_TAILS
        self.mixture = next(m for m, ess in zip(candidates, shares, strict=True) if ess >= enough)

    def log_weights(self, num_draws: int) -> tuple[Tensor, str | None]:
        """Log p(x, u) − log q(u) at draws `[S, 1]`, in nats, and what speaks against them, or None.

        Far out in heavy tails a log joint overflows, and is no number: it counts as zero there,
        which may not come about often; see `Unknown`.
        """
        unknown = Unknown(self.path)
        log_w = self._log_weights(self.mixture, num_draws, unknown)
        return log_w, unknown.caveat(num_draws)

    def _log_weights(self, mixture: Mixture, num_draws: int, unknown: Unknown) -> Tensor:
        """A share of the draws, not of a coin's throwing, is of the prior: that is as unbiased."""
        of_prior = max(1, round(PRIOR_SHARE * num_draws))
        own = mixture.sample(num_draws - of_prior).to(self._dtype).unsqueeze(1)
        u = torch.cat([self.path.sample(of_prior).to(own), own])
        share = of_prior / num_draws
        parts = [(self._weigh(mixture, some, share), some) for some in u.split(_AT_ONCE)]
        return torch.cat([unknown.zeroed(log_w, some) for log_w, some in parts])

    def _weigh(self, mixture: Mixture, u: Tensor, share: float) -> Tensor:
        terms: Any = self.path(u)
        log_q = mixture.log_prob(u.squeeze(1).double()).unsqueeze(1) + math.log1p(-share)
        log_q = torch.logaddexp(log_q, terms.log_p_z.double() + math.log(share))
        return terms.log_p_xz.double() - log_q

    def _pilot_ess(self, mixture: Mixture) -> float:
        log_w = self._log_weights(mixture, _PILOT, Unknown(self.path))
        return estimators.ess(log_w).nan_to_num(0.0).item()


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
