"""p(x | z): distributions of pixels, and how a decoder's outputs become one."""

from models.likelihoods.bernoulli import Bernoulli
from models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from models.likelihoods.discretized_logistic import DiscretizedLogistic
from models.likelihoods.labelled_images import LabelledImages
from models.likelihoods.normal import Normal
from models.likelihoods.pixels import PixelLikelihood

__all__ = [
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "LabelledImages",
    "Normal",
    "PixelLikelihood",
]
