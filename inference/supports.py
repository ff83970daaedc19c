"""What torch's registry of smooth maps onto supports lacks, and NUTS needs."""

from torch.distributions import biject_to, transform_to
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint


def register_mixtures() -> None:
    """A mixture lies where its components lie; to torch its support is one it has never seen."""
    for registry in (biject_to, transform_to):
        registry.register(
            MixtureSameFamilyConstraint, lambda support, of=registry: of(support.base_constraint)
        )
