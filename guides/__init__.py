"""q(z | x): how the posterior is approximated, as amortized Pyro guides."""

from guides.base import AbstractGuide as AbstractGuide  # to subclass, not to pick
from guides.delta import Delta
from guides.full_rank import FullRank
from guides.mean_field import MeanField
from guides.planar import Planar

__all__ = ["Delta", "FullRank", "MeanField", "Planar"]
