"""Numbers as JSON takes them."""

import math


def json_number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
