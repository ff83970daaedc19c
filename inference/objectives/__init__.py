"""What training minimizes: bounds, divergences and their gradient estimators, as Pyro `ELBO`s."""

from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.compiled import Compiled
from evidence.inference.objectives.importance import IWAE, STL, DReG, Renyi
from evidence.inference.objectives.kl import BetaELBO, FreeBits
from evidence.inference.objectives.wake_sleep import ForwardKL, ReweightedWakeSleep, WakeSleep

__all__ = [
    "IWAE",
    "STL",
    "AbstractObjective",
    "BetaELBO",
    "Compiled",
    "DReG",
    "ForwardKL",
    "FreeBits",
    "Renyi",
    "ReweightedWakeSleep",
    "WakeSleep",
]
