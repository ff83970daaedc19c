"""Evidence records, every estimator that makes one, and what may be claimed of two."""
