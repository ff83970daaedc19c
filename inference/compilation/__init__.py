"""Functions of tensors recorded as graphs, and the graphs compiled."""
