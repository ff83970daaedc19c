"""SVI training, evidence estimators, and what tells whether to believe them; any Pyro pair."""

from inference.adaptive import adaptive_evidence
from inference.annealing import Annealed, anneal, annealed_evidence
from inference.arviz_export import to_arviz
from inference.bidirectional import Bracket, bidirectional_evidence
from inference.calibration import Calibration, Coverage, simulation_based_calibration
from inference.comparison import Comparison, compare_elbos, compare_evidences
from inference.difference import Difference, paired_difference
from inference.discrepancy import Discrepancy, compare_to_reference
from inference.divergences import Divergences, grid_divergences, square_grid
from inference.evidence import (
    Evidence,
    estimate_evidence,
    from_log_weights,
    importance_weighted_evidence,
)
from inference.findings import Finding
from inference.gaps import Gaps, inference_gaps
from inference.gradient_noise import GradientNoise, gradient_signal_to_noise
from inference.history import EpochRecord, History
from inference.latent_diagnostics import LatentDiagnostics, latent_diagnostics
from inference.non_finite import NonFiniteLossError
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
from inference.preflight import check
from inference.reference import Reference, nuts_reference
from inference.snapshots import Snapshot, restore_tensors
from inference.stopping import UntilFlat
from inference.training import fit
from inference.weights import log_prob_terms, log_weights

__all__ = [
    "IWAE",
    "STL",
    "AbstractObjective",
    "Annealed",
    "BetaELBO",
    "Bracket",
    "Calibration",
    "Comparison",
    "Coverage",
    "DReG",
    "Difference",
    "Discrepancy",
    "Divergences",
    "EpochRecord",
    "Evidence",
    "Finding",
    "ForwardKL",
    "FreeBits",
    "Gaps",
    "GradientNoise",
    "History",
    "LatentDiagnostics",
    "NonFiniteLossError",
    "Reference",
    "Renyi",
    "ReweightedWakeSleep",
    "Snapshot",
    "UntilFlat",
    "WakeSleep",
    "adaptive_evidence",
    "anneal",
    "annealed_evidence",
    "bidirectional_evidence",
    "check",
    "compare_elbos",
    "compare_evidences",
    "compare_to_reference",
    "estimate_evidence",
    "fit",
    "from_log_weights",
    "gradient_signal_to_noise",
    "grid_divergences",
    "importance_weighted_evidence",
    "inference_gaps",
    "latent_diagnostics",
    "log_prob_terms",
    "log_weights",
    "nuts_reference",
    "paired_difference",
    "restore_tensors",
    "simulation_based_calibration",
    "square_grid",
    "to_arviz",
]
