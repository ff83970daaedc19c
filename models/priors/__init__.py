"""p(z) that is learnt along with the decoder."""

from evidence.models.priors.choice import PRIORS, make_prior
from evidence.models.priors.flow import FlowPrior
from evidence.models.priors.mixture import MixturePrior
from evidence.models.priors.vampprior import VampPrior

__all__ = ["PRIORS", "FlowPrior", "MixturePrior", "VampPrior", "make_prior"]
