"""Weights of log-probabilities: below one in a warm-up, one wherever evidence is meant."""

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


class TemperLikelihood(Messenger):
    """Scale the log-probabilities of observed sites by β.

    Inside it the ELBO reads β E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)), the bound on the evidence of
    a flatter likelihood; β rising from 0 to 1 lets a guide spread over all modes of the posterior
    before it commits to one.

    Reference: D. J. Rezende, S. Mohamed, "Variational Inference with Normalizing Flows", 2015,
    https://arxiv.org/abs/1505.05770, eq. 20 (where the prior is tempered as well).

    Args:
        beta: the inverse temperature, 0 < β ≤ 1.
    """

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


class Unscaled(Messenger):
    """Take every log-probability once: neither `poutine.scale` nor subsampling changes it.

    Evidence is that of the model as it is, whatever it was trained with, and so is the posterior
    that a reference is drawn from.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        msg["scale"] = 1.0
