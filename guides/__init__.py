"""q(z | x): how the posterior is approximated, as amortized Pyro guides."""

from evidence.guides.base import AbstractGuide as AbstractGuide  # to subclass, not to pick
from evidence.guides.delta import Delta
from evidence.guides.full_rank import FullRank
from evidence.guides.hierarchical import Hierarchical
from evidence.guides.householder import Householder
from evidence.guides.iaf import IAF
from evidence.guides.low_rank import LowRank
from evidence.guides.maf import MAF
from evidence.guides.mean_field import MeanField
from evidence.guides.mixture import Mixture
from evidence.guides.model_guide import ModelGuide as ModelGuide  # what for_model makes
from evidence.guides.neural_spline import NeuralSpline
from evidence.guides.planar import Planar
from evidence.guides.posterior import AbstractPosterior as AbstractPosterior
from evidence.guides.radial import Radial
from evidence.guides.real_nvp import RealNVP
from evidence.guides.refined import Refined
from evidence.guides.sylvester import Sylvester
from evidence.guides.unamortized import Unamortized

__all__ = [
    "IAF",
    "MAF",
    "Delta",
    "FullRank",
    "Hierarchical",
    "Householder",
    "LowRank",
    "MeanField",
    "Mixture",
    "NeuralSpline",
    "Planar",
    "Radial",
    "RealNVP",
    "Refined",
    "Sylvester",
    "Unamortized",
]
