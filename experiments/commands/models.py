"""`evidence models`: what there is to assume about data."""

from evidence.experiments.config import Models
from evidence.experiments.setup.catalogue import PARTS, all_models, listing, part_listing


def models(_: Models) -> None:
    """Print every model with its options and source."""
    print("\n\n".join([listing(all_models()), *map(part_listing, PARTS)]))
