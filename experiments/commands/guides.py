"""`evidence guides`: what there is to approximate a posterior with."""

from evidence.experiments.config import Guides
from evidence.experiments.setup.catalogue import all_guides, listing


def guides(_: Guides) -> None:
    """Print every guide with its options and source."""
    print(listing(all_guides()))
