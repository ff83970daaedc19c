"""Where a distribution has a density: its support, as it is declared and as it is."""

from collections.abc import Iterable, Iterator

import torch
from pyro.distributions import TorchDistribution, constraints
from pyro.distributions.transforms import Transform
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.sites import Site


def support_of(fn: TorchDistribution) -> constraints.Constraint | None:
    """The support, or None of a distribution that does not say."""
    try:
        return getattr(fn, "support", None)
    except NotImplementedError:
        return None


def entry_of(support: constraints.Constraint | None) -> constraints.Constraint | None:
    """The constraint on a single entry, or a single component."""
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def is_everywhere(fn: TorchDistribution) -> bool:
    """Whether the support is all real numbers, or not known."""
    entry = entry_of(support_of(fn))
    return entry is None or entry in (constraints.real, constraints.real_vector)


def zero_outside(site: Site, log_p: Tensor) -> Tensor:
    """A latent's log-probability `[...batch]`, −inf where its value is outside the support.

    Without validation a density outside its support is whatever its formula gives there: that of
    `Exponential` at a negative value is finite, that of `Gamma` NaN.
    """
    fn = site["fn"]
    if site["is_observed"] or is_everywhere(fn) or support_of(fn).is_discrete:
        return log_p
    inside = support_of(fn).check(site["value"])
    return torch.where(inside, log_p, -torch.inf)


def has_narrow_image(fn: TorchDistribution) -> bool:
    """Whether a transformed distribution that claims all real numbers reaches a part of them.

    Of several transforms torch takes the last one's codomain for that of all, so that an affine
    map of an exponential, its own `biject_to(positive)`, is taken to reach everywhere.
    """
    parts = _parts(getattr(base_distribution(fn), "transforms", []))
    return is_everywhere(fn) and any(entry_of(p.codomain) is not constraints.real for p in parts)


def _parts(transforms: Iterable[Transform]) -> Iterator[Transform]:
    """The transforms that others are made of."""
    for transform in transforms:
        inside = getattr(transform, "parts", None) or getattr(transform, "transforms", None)
        if inside is None and hasattr(transform, "base_transform"):
            inside = [transform.base_transform]
        if inside is None:
            yield transform
        else:
            yield from _parts(inside)


def reaches_beyond(fn: TorchDistribution, support: constraints.Constraint) -> bool:
    """Whether a transformed distribution draws values below or above an interval.

    Asked of draws whose base is three times as wide.
    """
    entry, base = entry_of(support), base_distribution(fn)
    value = base.base_dist.sample(torch.Size([100]))
    value = 3 * value if is_everywhere(base.base_dist) else value
    for transform in base.transforms:
        value = transform(value)
    for name, sign in (("lower_bound", 1), ("upper_bound", -1)):
        end = getattr(entry, name, None)
        if end is not None:
            end = torch.as_tensor(end).to(value)
            if (sign * (value - end) < -1e-6 * (1 + end.abs())).any():
                return True
    return False


def on_edge(support: constraints.Constraint, value: Tensor, *, num_steps: float = 2) -> Tensor:
    """Whether entries lie on the last numbers of their dtype inside a support: as `value`, bool.

    What is closer to the edge is rounded or clamped onto them, and its density lost.

    Args:
        support: with an edge.
        value: inside of it, or not.
        num_steps: how many of these numbers to each side.
    """
    entry, precision = entry_of(support), torch.finfo(value.dtype)
    lower, upper = getattr(entry, "lower_bound", None), getattr(entry, "upper_bound", None)
    if entry is constraints.simplex:
        lower, upper = 0.0, 1.0
    found = torch.zeros_like(value, dtype=torch.bool)
    for bound, sign in ((lower, 1), (upper, -1)):
        if bound is not None:
            end = torch.as_tensor(bound).to(value)
            inside = sign * (value - end)  # negative for draws that are beyond
            step = precision.eps * end.abs() + precision.tiny
            found |= (inside >= 0) & (inside <= num_steps * step)
    return found


def register_mixtures() -> None:
    """A mixture lies where its components lie; to torch its support is one it has never seen."""
    for registry in (biject_to, transform_to):
        registry.register(
            MixtureSameFamilyConstraint, lambda support, of=registry: of(support.base_constraint)
        )
