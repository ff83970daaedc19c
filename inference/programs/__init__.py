"""Any Pyro model and guide: their traces, draws, weights and parameters."""
