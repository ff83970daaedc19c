"""Checks of the exercises in the notebooks: each says what is wrong with an answer, by name.

A check takes a student's function, and prints one line if it is right:

    from evidence.notebooks import checks

    checks.KL_divergence(KL_divergence)

Else it raises `WrongAnswerError`, whose message names the mistake where it is a known one.
"""

from evidence.notebooks.checks.annealing import chain_log_weight, tempered, upper_bound
from evidence.notebooks.checks.autoencoder import fitted_gaussian, loss, pca_reconstruction, segment
from evidence.notebooks.checks.exercise import Exercise, WrongAnswerError
from evidence.notebooks.checks.guides import forward_kl, mass_level, reverse_kl, student_t
from evidence.notebooks.checks.importance import (
    data_se,
    effective_sample_size,
    log_mean_exp,
    mc_se,
)
from evidence.notebooks.checks.models import (
    log_bayes_factor,
    log_bf_of_a_mean,
    model_probabilities,
)
from evidence.notebooks.checks.planar_flows import bound, corrected, planar
from evidence.notebooks.checks.regression import regression
from evidence.notebooks.checks.report import coverage, gap_parts, rank
from evidence.notebooks.checks.sampling import Sampler
from evidence.notebooks.checks.vae import (
    KL_divergence,
    log_likelihood,
    negative_elbo,
    reparameterize,
)

__all__ = [
    "Exercise",
    "KL_divergence",
    "Sampler",
    "WrongAnswerError",
    "bound",
    "chain_log_weight",
    "corrected",
    "coverage",
    "data_se",
    "effective_sample_size",
    "fitted_gaussian",
    "forward_kl",
    "gap_parts",
    "log_bayes_factor",
    "log_bf_of_a_mean",
    "log_likelihood",
    "log_mean_exp",
    "loss",
    "mass_level",
    "mc_se",
    "model_probabilities",
    "negative_elbo",
    "pca_reconstruction",
    "planar",
    "rank",
    "regression",
    "reparameterize",
    "reverse_kl",
    "segment",
    "student_t",
    "tempered",
    "upper_bound",
]
