"""Bounds from several importance weights, and lower-variance gradients of them."""

import math

from torch import Tensor

from evidence.inference.objectives.base import AbstractObjective, expect_number
from evidence.inference.objectives.draws import Draws, Pair
from evidence.inference.objectives.paths import PathScale, gradient_only
from evidence.inference.programs.estimators import iwae


class IWAE(AbstractObjective):
    """The importance-weighted bound: loss = −Σ_x log (1/K) Σ_k w_k, w = p(x, z) / q(z | x).

    Its gradient is Σ_k w̃_k ∇log w_k with normalized weights w̃. K = 1 is the ELBO; a larger K
    tightens the bound, while what the guide's gradient says drowns in its noise (see `DReG`).

    Reference: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, eqs. 8, 13 and 14.

    Args:
        num_particles: K, draws per datum.
    """

    default_particles = 8

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ L_K in nats."""
        draws = pair.draw()
        return -draws.total(iwae(draws.log_w))


class DReG(AbstractObjective):
    """The importance-weighted bound with doubly reparameterized gradients for the guide.

    The loss and the model's gradient are those of `IWAE`; the guide gets the unbiased
    Σ_k w̃_k² (∂log w_k / ∂z_k) (∂z_k / ∂φ), whose signal-to-noise ratio does not fall with K.

    Reference: G. Tucker, D. Lawson, S. Gu, C. J. Maddison, "Doubly Reparameterized Gradient
    Estimators for Monte Carlo Objectives", 2018, https://arxiv.org/abs/1810.04152.

    Args:
        num_particles: K, draws per datum.
    """

    default_particles = 8

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ L_K in nats.

        The model sees draws that scale gradients by w̃, so what reaches the guide through the
        model has w̃², and what stays in the model w̃.
        """
        paths = PathScale()
        draws = pair.draw(show=paths.show)
        log_w = draws.log_w.detach()
        share = log_w.softmax(0)
        paths.set_weights(share, draws.layout)
        signal = (share * draws.log_p_xz - share**2 * draws.path_log_q_z()).sum(0)
        return -draws.total(iwae(log_w) + gradient_only(signal))


class STL(AbstractObjective):
    """The ELBO with the path derivative alone ("sticking the landing"): loss = −Σ_x E_q[log w].

    The score of the guide, ∇_φ log q(z; φ) at fixed z, has mean zero and is left out: at the exact
    posterior every single gradient is zero.

    Reference: G. Roeder, Y. Wu, D. K. Duvenaud, "Sticking the Landing: Simple, Lower-Variance
    Gradient Estimators for Variational Inference", 2017, https://arxiv.org/abs/1703.09194.

    Args:
        num_particles: K, draws per datum, averaged.
    """

    is_mean = True

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ ELBO in nats."""
        draws = pair.draw()
        return -draws.total((draws.log_p_xz - draws.path_log_q_z()).mean(0))


class Renyi(AbstractObjective):
    """The variational Rényi bound: loss = −Σ_x 1/(1 − α) log (1/K) Σ_k w_k^(1 − α).

    α → 1 is the ELBO, α = 0 is `IWAE`, and α < 0 overestimates in the limit of many particles.
    It is computed per datum, where Pyro's `RenyiELBO` has one weight for all data of a batch that
    is scaled by N / B before it is exponentiated.

    Reference: Y. Li, R. E. Turner, "Rényi Divergence Variational Inference", 2016,
    https://arxiv.org/abs/1602.02311, section 4.

    Args:
        alpha: the order α, any finite number.
        num_particles: K, draws per datum.
    """

    default_particles = 8

    def __init__(self, alpha: float = 0.5, *, num_particles: int | None = None) -> None:
        super().__init__(num_particles)
        self.alpha = expect_number("alpha", alpha)

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ L_α in nats."""
        draws = pair.draw()
        return -draws.total(self._bound(draws))

    def _bound(self, draws: Draws) -> Tensor:
        """Per weight, `[M]`."""
        power = 1 - self.alpha
        if power == 0:
            return draws.log_w.mean(0)
        log_mean = (power * draws.log_w).logsumexp(0) - math.log(self.num_particles)
        return log_mean / power
