"""p(z) that is learnt along with the decoder."""

from models.priors.choice import PRIORS, make_prior
from models.priors.flow import FlowPrior
from models.priors.mixture import MixturePrior
from models.priors.vampprior import VampPrior

__all__ = ["PRIORS", "FlowPrior", "MixturePrior", "VampPrior", "make_prior"]
