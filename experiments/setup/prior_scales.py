"""`SITE=FACTOR,FACTOR,…`: priors to stretch, and by how much."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class PriorScales:
    """The factors of the scale of one site's prior.

    Args:
        site: of the model.
        factors: in rising order; 1 is the model as it is written.
    """

    site: str
    factors: tuple[float, ...]

    @classmethod
    def parse(cls, text: str) -> "PriorScales":
        """Read `tau=0.5,1,2`.

        Raises:
            ValueError: the text is anything else.
        """
        site, _, listed = text.partition("=")
        try:
            factors = tuple(sorted({float(part) for part in listed.split(",")}))
        except ValueError:
            factors = ()
        if not site or not factors or not all(0 < factor < math.inf for factor in factors):
            raise ValueError(
                f"expected --prior_scale SITE=FACTOR,FACTOR,... with factors > 0, got {text!r}, "
                "for example tau=0.5,1,2"
            )
        return cls(site, factors)
