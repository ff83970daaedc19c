"""Where a distribution has a density: its support, as it is declared and as it is."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from pyro.distributions import TorchDistribution, VonMises, constraints
from pyro.distributions.transforms import Transform
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.distributions.mixture_same_family import MixtureSameFamilyConstraint

from evidence.inference.programs.checks import base_distribution, has_fixed_support
from evidence.inference.programs.sites import Site


class Circle(constraints.interval):
    """Where a latent angle lies, from −π to π; one that is observed is any that comes round to it.

    Torch has a von Mises density on all real numbers, which repeats itself from turn to turn: as a
    prior it would be improper, and an evidence would count as many turns as a proposal reaches.
    """

    def __init__(self) -> None:
        super().__init__(-math.pi, math.pi)

    def check(self, value: Tensor) -> Tensor:
        """Whether it is an angle."""
        return value.isfinite()


biject_to.register(Circle, lambda _: biject_to(constraints.interval(-math.pi, math.pi)))
transform_to.register(Circle, lambda _: transform_to(constraints.interval(-math.pi, math.pi)))
VonMises.support = Circle()


def support_of(fn: TorchDistribution) -> constraints.Constraint:
    """The support; all real numbers, of a distribution that does not say."""
    return declared_support(fn) or constraints.independent(constraints.real, fn.event_dim)


def declared_support(fn: TorchDistribution) -> constraints.Constraint | None:
    """The support, or None of a distribution that does not say."""
    try:
        return getattr(fn, "support", None)
    except NotImplementedError:
        return None


def entry_of(support: constraints.Constraint) -> constraints.Constraint:
    """The constraint on a single entry, or a single component."""
    while isinstance(support, constraints.independent | MixtureSameFamilyConstraint):
        support = support.base_constraint
    return support


def is_everywhere(fn: TorchDistribution) -> bool:
    """Whether the support is all real numbers, or not known."""
    return entry_of(support_of(fn)) in (constraints.real, constraints.real_vector)


def zero_outside(site: Site, log_p: Tensor) -> Tensor:
    """A log-probability `[...batch]`, −inf where the value is outside the support.

    Without validation a density outside its support is whatever its formula gives there: that of
    `Exponential` at a negative value is finite, that of `Gamma` NaN. Data were checked before
    against supports that do not move with the latents.
    """
    fn = site["fn"]
    if is_everywhere(fn):
        return log_p
    is_known = has_fixed_support(fn) if site["is_observed"] else support_of(fn).is_discrete
    if is_known:
        return log_p
    support, value = support_of(fn), site["value"]
    if isinstance(entry_of(support), Circle):
        inside = value.abs() <= math.pi
        inside = inside.flatten(-fn.event_dim).all(-1) if fn.event_dim else inside
    else:
        inside = support.check(value)
    return torch.where(inside, log_p, -torch.inf)


def has_narrow_image(fn: TorchDistribution) -> bool:
    """Whether a transformed distribution that claims all real numbers reaches a part of them.

    Of several transforms torch takes the last one's codomain for that of all, so that an affine
    map of an exponential, its own `biject_to(positive)`, is taken to reach everywhere.
    """
    parts = _parts(getattr(base_distribution(fn), "transforms", []))
    return is_everywhere(fn) and any(entry_of(p.codomain) is not constraints.real for p in parts)


def _parts(transforms: Iterable[Any]) -> Iterator[Transform]:
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
