"""SVI training, evidence estimators, and what tells whether to believe them; any Pyro pair."""

from evidence.inference.bridging.bridge import bridge_evidence
from evidence.inference.diagnostics.arviz_export import to_arviz
from evidence.inference.diagnostics.calibration import (
    Calibration,
    Coverage,
    simulation_based_calibration,
)
from evidence.inference.diagnostics.discrepancy import (
    Discrepancy,
    compare_to_reference,
    guide_draws,
)
from evidence.inference.diagnostics.divergences import Divergences, grid_divergences, square_grid
from evidence.inference.diagnostics.gradient_noise import GradientNoise, gradient_signal_to_noise
from evidence.inference.diagnostics.latent_diagnostics import LatentDiagnostics, latent_diagnostics
from evidence.inference.diagnostics.mode_coverage import ModeCoverage, mode_coverage
from evidence.inference.diagnostics.preflight import check
from evidence.inference.estimation.adaptive import adaptive_evidence
from evidence.inference.estimation.annealed import Annealed, anneal, annealed_evidence
from evidence.inference.estimation.bidirectional import Bracket, bidirectional_evidence
from evidence.inference.estimation.comparison import (
    Comparison,
    compare_elbos,
    compare_estimates,
    compare_evidences,
)
from evidence.inference.estimation.difference import Difference, paired_difference
from evidence.inference.estimation.evidence import (
    Evidence,
    estimate_evidence,
    from_log_weights,
    importance_weighted_evidence,
)
from evidence.inference.estimation.gaps import Gaps, inference_gaps
from evidence.inference.estimation.log_weights import log_weights
from evidence.inference.estimation.nested import nested_evidence
from evidence.inference.estimation.sequential import Sampled, smc, smc_evidence
from evidence.inference.mode_covering import FAB, ForwardKLOnDraws
from evidence.inference.model_choice.bayes_factors import (
    BayesFactor,
    ModelProbability,
    bayes_factor,
    model_probabilities,
)
from evidence.inference.model_choice.marginal_likelihood import (
    MarginalLikelihood,
    marginal_likelihood,
)
from evidence.inference.objectives import (
    IWAE,
    STL,
    AbstractObjective,
    BetaELBO,
    Compiled,
    DReG,
    ForwardKL,
    FreeBits,
    Renyi,
    ReweightedWakeSleep,
    WakeSleep,
)
from evidence.inference.paths.reference import Reference, nuts_reference
from evidence.inference.programs.scaled_prior import ScaledPrior
from evidence.inference.programs.weights import log_prob_terms
from evidence.inference.soundness.findings import Finding
from evidence.inference.training.averaging import UntilConverged
from evidence.inference.training.fit import fit
from evidence.inference.training.history import EpochRecord, History, NotConvergedWarning
from evidence.inference.training.non_finite import NonFiniteLossError
from evidence.inference.training.ranks import RankLostError, Ranks
from evidence.inference.training.restarts import best_start
from evidence.inference.training.snapshots import Snapshot, restore_tensors
from evidence.inference.training.stopping import UntilFlat

__all__ = [
    "FAB",
    "IWAE",
    "STL",
    "AbstractObjective",
    "Annealed",
    "BayesFactor",
    "BetaELBO",
    "Bracket",
    "Calibration",
    "Comparison",
    "Compiled",
    "Coverage",
    "DReG",
    "Difference",
    "Discrepancy",
    "Divergences",
    "EpochRecord",
    "Evidence",
    "Finding",
    "ForwardKL",
    "ForwardKLOnDraws",
    "FreeBits",
    "Gaps",
    "GradientNoise",
    "History",
    "LatentDiagnostics",
    "MarginalLikelihood",
    "ModeCoverage",
    "ModelProbability",
    "NonFiniteLossError",
    "NotConvergedWarning",
    "RankLostError",
    "Ranks",
    "Reference",
    "Renyi",
    "ReweightedWakeSleep",
    "Sampled",
    "ScaledPrior",
    "Snapshot",
    "UntilConverged",
    "UntilFlat",
    "WakeSleep",
    "adaptive_evidence",
    "anneal",
    "annealed_evidence",
    "bayes_factor",
    "best_start",
    "bidirectional_evidence",
    "bridge_evidence",
    "check",
    "compare_elbos",
    "compare_estimates",
    "compare_evidences",
    "compare_to_reference",
    "estimate_evidence",
    "fit",
    "from_log_weights",
    "gradient_signal_to_noise",
    "grid_divergences",
    "guide_draws",
    "importance_weighted_evidence",
    "inference_gaps",
    "latent_diagnostics",
    "log_prob_terms",
    "log_weights",
    "marginal_likelihood",
    "mode_coverage",
    "model_probabilities",
    "nested_evidence",
    "nuts_reference",
    "paired_difference",
    "restore_tensors",
    "simulation_based_calibration",
    "smc",
    "smc_evidence",
    "square_grid",
    "to_arviz",
]
