"""Objectives that cover modes, by latents that the guide did not draw itself."""

from evidence.inference.mode_covering.fab import FAB
from evidence.inference.mode_covering.forward_kl import ForwardKLOnDraws

__all__ = ["FAB", "ForwardKLOnDraws"]
