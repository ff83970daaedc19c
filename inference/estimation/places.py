"""Where draws are, in words."""

from torch import Tensor

from evidence.inference.paths.log_joint import AbstractPath

_FEW = 3  # numbers of a latent that are told, and latents


def place(path: AbstractPath, z: Tensor) -> str:
    """Where `z` `[Z]` is among the latents that the data share, as far as it has few numbers."""
    values = path.site_values(z.reshape(1, 1, -1))
    few = {name: value.flatten() for name, value in values.items() if value.numel() <= _FEW}
    words = [f"{name} = {', '.join(f'{v:.3g}' for v in value)}" for name, value in few.items()]
    return f"near {'; '.join(words[:_FEW])}" if words else f"of {', '.join(values)}"
