"""`evidence guides`: what there is to approximate a posterior with."""

from experiments.catalogue import all_guides, listing
from experiments.config import Guides


def guides(_: Guides) -> None:
    """Print every guide with its options and source."""
    print(listing(all_guides()))
