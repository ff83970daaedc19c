"""Numbers as JSON takes them."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: None in their place, however deep."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
