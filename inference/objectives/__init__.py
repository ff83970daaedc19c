"""What training minimizes: bounds, divergences and their gradient estimators, as Pyro `ELBO`s."""

from inference.objectives.base import AbstractObjective
from inference.objectives.importance import IWAE, STL, DReG, Renyi
from inference.objectives.kl import BetaELBO, FreeBits
from inference.objectives.wake_sleep import ForwardKL, ReweightedWakeSleep, WakeSleep

__all__ = [
    "IWAE",
    "STL",
    "AbstractObjective",
    "BetaELBO",
    "DReG",
    "ForwardKL",
    "FreeBits",
    "Renyi",
    "ReweightedWakeSleep",
    "WakeSleep",
]
