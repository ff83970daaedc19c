"""Checks of the exercises in the notebooks: each says what is wrong with an answer, by name.

A check takes a student's function, and prints one line if it is right:

    from evidence.notebooks import checks

    checks.KL_divergence(KL_divergence)

Else it raises `WrongAnswerError`, whose message names the mistake where it is a known one.
"""

from evidence.notebooks.checks.autoencoder import fitted_gaussian, loss, pca_reconstruction, segment
from evidence.notebooks.checks.exercise import WrongAnswerError
from evidence.notebooks.checks.planar_flows import bound, corrected, planar
from evidence.notebooks.checks.vae import (
    KL_divergence,
    log_likelihood,
    negative_elbo,
    reparameterize,
)

__all__ = [
    "KL_divergence",
    "WrongAnswerError",
    "bound",
    "corrected",
    "fitted_gaussian",
    "log_likelihood",
    "loss",
    "negative_elbo",
    "pca_reconstruction",
    "planar",
    "reparameterize",
    "segment",
]
