"""Invertible maps of R^Z, for batches of parameters: the layers of the flows."""
