"""KL warm-up: the latent terms of the ELBO at a temperature."""

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample


class TemperLatents(Messenger):
    """Scale the log-probabilities of latent sites by β, in model and guide alike.

    Inside it the ELBO reads E_q[log p(x | z)] − β KL(q(z | x) ‖ p(z)); β rising from 0 to 1 keeps
    the posterior from collapsing to the prior early on.

    Reference: S. R. Bowman et al., "Generating Sentences from a Continuous Space", 2016,
    https://arxiv.org/abs/1511.06349, section 3.1.

    Args:
        beta: the temperature, 0 < β ≤ 1.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not msg["is_observed"] and not isinstance(msg["fn"], _Subsample):
            msg["scale"] = msg["scale"] * self.beta
