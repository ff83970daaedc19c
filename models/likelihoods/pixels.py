"""From the outputs of a decoder to the distribution of pixels."""

import math
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.distributions.constraints import Constraint
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from evidence.models.choices import chosen
from evidence.models.likelihoods.bernoulli import Bernoulli
from evidence.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from evidence.models.likelihoods.discretized_logistic import DiscretizedLogistic
from evidence.models.likelihoods.normal import Normal

# What pixels each likelihood scores.
PIXELS = {
    "bernoulli": "binary",
    "continuous-bernoulli": "unit",
    "discretized-logistic": "levels",
    "gaussian": "real",
}

# The probability of a level is bounded; the floor only keeps 1/s finite (PixelCNN++ has -7 too, in
# units of twice the interval).
_LOG_SCALE_FLOOR_OF_LEVELS = -7.0


def _bernoulli(outputs: Tensor) -> TorchDistribution:
    return Bernoulli(logits=outputs).to_event(1)


def _continuous_bernoulli(outputs: Tensor) -> TorchDistribution:
    return ContinuousBernoulli(outputs).to_event(1)


def _discretized_logistic(outputs: Tensor, *, num_levels: int | None = None) -> TorchDistribution:
    if num_levels is None or num_levels < 2:
        raise ValueError(
            f"expected num_levels of at least 2, got {num_levels}: write discretized-logistic"
            "(num_levels=17) for digits, 256 for mnist"
        )
    loc, raw = outputs.chunk(2, dim=-1)  # each [..., D]
    log_scale = _above(_LOG_SCALE_FLOOR_OF_LEVELS, raw)
    return DiscretizedLogistic(loc, log_scale, num_levels).to_event(1)


def _gaussian(outputs: Tensor, *, scale_floor: float = 0.01) -> TorchDistribution:
    if scale_floor <= 0:
        raise ValueError(f"expected scale_floor > 0, got {scale_floor}")
    loc, raw = outputs.chunk(2, dim=-1)  # each [..., D]
    return Normal(loc, _above(math.log(scale_floor), raw)).to_event(1)


LIKELIHOODS: Mapping[str, Callable[..., TorchDistribution]] = {
    "bernoulli": _bernoulli,
    "continuous-bernoulli": _continuous_bernoulli,
    "discretized-logistic": _discretized_logistic,
    "gaussian": _gaussian,
}


class PixelLikelihood:
    """p(x | z) of pixels, out of a decoder's outputs.

    Args:
        text: one of `LIKELIHOODS`, with its options if need be: "gaussian(scale_floor=0.1)".

    Raises:
        ValueError: an unknown name or option, a floor that is not positive, fewer than two levels.
    """

    def __init__(self, text: str) -> None:
        self._of_outputs = chosen("likelihood", text, LIKELIHOODS)
        # What it scores: "binary", "unit" (interval), "levels" or "real" pixels.
        self.pixels = PIXELS[text.partition("(")[0]]
        # How many numbers it takes per pixel.
        self.outputs_per_pixel = 1 if self.pixels in ("binary", "unit") else 2
        support = self(torch.zeros(self.outputs_per_pixel)).support
        assert support is not None
        # Where an image, a vector of pixels, may lie.
        self.support: Constraint = support

    def __call__(self, outputs: Tensor) -> TorchDistribution:
        """Pixels from outputs `[..., outputs_per_pixel · D]`: batch `[...]`, event `[D]`."""
        return self._of_outputs(outputs)


def _above(floor: float, raw: Tensor) -> Tensor:
    """A smooth function of `raw` that stays above the floor, and is `raw` itself far above it."""
    off = raw - floor
    if get_proxy_mode() is None:
        return floor + F.softplus(off)
    # In a graph that is compiled `log1p` takes longer than all else; it is of use near zero alone.
    return floor + 0.5 * (off + off.abs()) + ((-off.abs()).exp() + 1).log()
