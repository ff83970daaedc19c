"""`evidence models`: what there is to assume about data."""

from experiments.catalogue import all_models, listing
from experiments.config import Models


def models(_: Models) -> None:
    """Print every model with its options and source."""
    print(listing(all_models()))
