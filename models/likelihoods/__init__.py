"""p(x | z): distributions of pixels, and how a decoder's outputs become one."""

from evidence.models.likelihoods.bernoulli import Bernoulli
from evidence.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from evidence.models.likelihoods.discretized_logistic import DiscretizedLogistic
from evidence.models.likelihoods.labelled_images import LabelledImages
from evidence.models.likelihoods.normal import Normal
from evidence.models.likelihoods.pixels import LIKELIHOODS, PixelLikelihood

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "LabelledImages",
    "Normal",
    "PixelLikelihood",
]
