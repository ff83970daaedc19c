"""Log joints in unconstrained space, paths to them from a prior or guide, moves on both."""
