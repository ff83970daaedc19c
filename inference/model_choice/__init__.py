"""The marginal likelihood in one call, Bayes factors and model probabilities."""
