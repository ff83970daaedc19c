"""`evidence models`: what there is to assume about data."""

from evidence.experiments.config import Models
from evidence.experiments.setup.catalogue import all_models, listing


def models(_: Models) -> None:
    """Print every model with its options and source."""
    print(listing(all_models()))
