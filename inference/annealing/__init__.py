"""Annealed importance sampling and sequential Monte Carlo along a path."""
