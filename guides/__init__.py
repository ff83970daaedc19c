"""q(z | x): how the posterior is approximated, as amortized Pyro guides."""

from guides.base import AbstractGuide as AbstractGuide  # to subclass, not to pick
from guides.base import AbstractPosterior as AbstractPosterior
from guides.delta import Delta
from guides.full_rank import FullRank
from guides.hierarchical import Hierarchical
from guides.householder import Householder
from guides.iaf import IAF
from guides.low_rank import LowRank
from guides.maf import MAF
from guides.mean_field import MeanField
from guides.mixture import Mixture
from guides.neural_spline import NeuralSpline
from guides.planar import Planar
from guides.radial import Radial
from guides.real_nvp import RealNVP
from guides.refined import Refined
from guides.sylvester import Sylvester
from guides.unamortized import Unamortized
from guides.unpacked import Unpacked as Unpacked  # applied where a model needs it

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
