"""From the outputs of a decoder to the distribution of pixels."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pyro.distributions import TorchDistribution
from pyro.distributions.constraints import Constraint
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from evidence.models.likelihoods.bernoulli import Bernoulli
from evidence.models.likelihoods.continuous_bernoulli import ContinuousBernoulli
from evidence.models.likelihoods.discretized_logistic import DiscretizedLogistic
from evidence.models.likelihoods.normal import Normal
from evidence.models.networks import expect_choice

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


@dataclass(frozen=True)
class PixelLikelihood:
    """p(x | z) of pixels by name, out of a decoder's outputs.

    Args:
        name: "bernoulli", "continuous-bernoulli", "discretized-logistic" or "gaussian".
        scale_floor: smallest σ of a Gaussian pixel, in units of x.
        num_levels: number of grey levels, for "discretized-logistic".

    Raises:
        ValueError: an unknown name, a floor that is not positive, or fewer than two levels.
    """

    name: str
    scale_floor: float = 0.01
    num_levels: int | None = None

    def __post_init__(self) -> None:
        expect_choice("likelihood", self.name, PIXELS)
        if self.scale_floor <= 0:
            raise ValueError(f"expected scale_floor > 0, got {self.scale_floor}")
        if self.pixels == "levels" and (self.num_levels is None or self.num_levels < 2):
            raise ValueError(
                f"expected num_levels of at least 2 with likelihood {self.name!r} (17 for digits, "
                f"256 for mnist), got {self.num_levels}"
            )

    @property
    def pixels(self) -> str:
        """What it scores: "binary", "unit" (interval), "levels" or "real" pixels."""
        return PIXELS[self.name]

    @property
    def outputs_per_pixel(self) -> int:
        """How many numbers it takes per pixel."""
        return 1 if self.pixels in ("binary", "unit") else 2

    @property
    def support(self) -> Constraint:
        """Where an image, a vector of pixels, may lie."""
        support = self(torch.zeros(self.outputs_per_pixel)).support
        assert support is not None
        return support

    def __call__(self, outputs: Tensor) -> TorchDistribution:
        """Pixels from outputs `[..., outputs_per_pixel · D]`: batch `[...]`, event `[D]`."""
        if self.pixels == "binary":
            return Bernoulli(logits=outputs).to_event(1)
        if self.pixels == "unit":
            return ContinuousBernoulli(outputs).to_event(1)
        loc, raw = outputs.chunk(2, dim=-1)  # each [..., D]
        if self.num_levels is not None and self.pixels == "levels":
            log_scale = _above(_LOG_SCALE_FLOOR_OF_LEVELS, raw)
            return DiscretizedLogistic(loc, log_scale, self.num_levels).to_event(1)
        return Normal(loc, _above(math.log(self.scale_floor), raw)).to_event(1)


def _above(floor: float, raw: Tensor) -> Tensor:
    """A smooth function of `raw` that stays above the floor, and is `raw` itself far above it."""
    off = raw - floor
    if get_proxy_mode() is None:
        return floor + F.softplus(off)
    # In a graph that is compiled `log1p` takes longer than all else; it is of use near zero alone.
    return floor + 0.5 * (off + off.abs()) + ((-off.abs()).exp() + 1).log()
