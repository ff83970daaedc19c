"""SVI training and evidence estimators, for any pair of Pyro callables."""

from inference.evidence import (
    Evidence,
    estimate_evidence,
    from_log_weights,
    importance_weighted_evidence,
)
from inference.gradient_noise import GradientNoise, gradient_signal_to_noise
from inference.history import EpochRecord, History
from inference.objectives import (
    IWAE,
    STL,
    AbstractObjective,
    BetaELBO,
    DReG,
    ForwardKL,
    FreeBits,
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)
from inference.training import NonFiniteLossError, Snapshot, fit, restore_tensors
from inference.weights import log_prob_terms, log_weights

__all__ = [
    "IWAE",
    "STL",
    "AbstractObjective",
    "BetaELBO",
    "DReG",
    "EpochRecord",
    "Evidence",
    "ForwardKL",
    "FreeBits",
    "GradientNoise",
    "History",
    "NonFiniteLossError",
    "Renyi",
    "ReweightedWakeSleep",
    "Snapshot",
    "WakeSleep",
    "estimate_evidence",
    "fit",
    "from_log_weights",
    "gradient_signal_to_noise",
    "importance_weighted_evidence",
    "log_prob_terms",
    "log_weights",
    "restore_tensors",
]
