"""SVI training and evidence estimators, for any pair of Pyro callables."""

from inference.evidence import (
    Evidence,
    estimate_evidence,
    from_log_weights,
    importance_weighted_evidence,
)
from inference.history import EpochRecord, History
from inference.training import NonFiniteLossError, Snapshot, fit, restore_tensors
from inference.weights import log_prob_terms, log_weights

__all__ = [
    "EpochRecord",
    "Evidence",
    "History",
    "NonFiniteLossError",
    "Snapshot",
    "estimate_evidence",
    "fit",
    "from_log_weights",
    "importance_weighted_evidence",
    "log_prob_terms",
    "log_weights",
    "restore_tensors",
]
