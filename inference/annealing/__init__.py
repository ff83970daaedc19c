"""Annealed importance sampling: paths from a start to p(x, z), HMC along them."""
