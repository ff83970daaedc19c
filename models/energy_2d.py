"""Four densities in the plane that are known up to a constant."""

import functools
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from evidence.models.base import AbstractModel, Latent
from evidence.models.densities import SquareDensity, Weight
from evidence.models.modes import Modes, nearest
from evidence.models.networks import expect_choice
from evidence.models.quadrature import log_integral

_LOW, _HIGH = -4.0, 4.0
_LOG_AREA = 2 * math.log(_HIGH - _LOW)
_ENTRY = constraints.interval(_LOW, _HIGH)


def _bell(d: Tensor, s: float) -> Tensor:
    """Log of a Gaussian bell of height one."""
    return -0.5 * (d / s) ** 2


def _u1(z1: Tensor, z2: Tensor) -> Tensor:
    radius = torch.stack([z1, z2], -1).norm(dim=-1)
    return -_bell(radius - 2, 0.4) - torch.logaddexp(_bell(z1 - 2, 0.6), _bell(z1 + 2, 0.6))


def _u2(z1: Tensor, z2: Tensor) -> Tensor:
    return -_bell(z2 - _w1(z1), 0.4)


def _u3(z1: Tensor, z2: Tensor) -> Tensor:
    off, w2 = z2 - _w1(z1), 3 * _bell(z1 - 1, 0.6).exp()
    return -torch.logaddexp(_bell(off, 0.35), _bell(off + w2, 0.35))


def _u4(z1: Tensor, z2: Tensor) -> Tensor:
    off, w3 = z2 - _w1(z1), 3 * torch.sigmoid((z1 - 1) / 0.3)
    return -torch.logaddexp(_bell(off, 0.4), _bell(off + w3, 0.35))


def _w1(z1: Tensor) -> Tensor:
    return torch.sin(0.5 * math.pi * z1)


ENERGIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "U1": _u1,
    "U2": _u2,
    "U3": _u3,
    "U4": _u4,
}


class Energy2D(AbstractModel):
    """p(x, z) = exp(−U(z)) on the square [−4, 4]²: rings and waves to fit a guide to, without data.

    x carries no information, and may be anything: its rows are as many copies of one problem. The
    evidence is ln Z, Z = ∫ exp(−U) over the square (in the plane, only U1 has a finite Z). As a
    program: z is uniform on the square, and the site "x" weighs it by 64 exp(−U(z)).

    Reference: D. J. Rezende, S. Mohamed, "Variational Inference with Normalizing Flows", 2015,
    https://arxiv.org/abs/1505.05770, table 1.

    Args:
        data_dim: D, the number of entries of a datum, which are not looked at.
        energy: "U1", "U2", "U3" or "U4".

    Raises:
        ValueError: an unknown energy.
    """

    plane = (_LOW, _HIGH)

    def __init__(self, data_dim: int, *, energy: str = "U1") -> None:
        super().__init__(data_dim, 2)
        self.energy = expect_choice("energy", energy, ENERGIES)

    @property
    def latents(self) -> dict[str, Latent]:
        """z, in the square."""
        return {"z": Latent(2, constraints.independent(_ENTRY, 1))}

    def potential(self, z: Tensor) -> Tensor:
        """U(z) for `z` of shape `[..., 2]`: `[...]`."""
        return ENERGIES[self.energy](*z.unbind(-1))

    def prior(self) -> TorchDistribution:
        """Uniform on the square, and −inf outside: event shape `[2]`."""
        sides = self._zero + _LOW, self._zero + _HIGH
        return dist.Uniform(*sides, validate_args=False).expand([2]).to_event(1)

    def likelihood(self, z: Tensor) -> TorchDistribution:
        """The weight 64 exp(−U(z)), of any x: batch shape `[...]`, event shape `[D]`."""
        return Weight(_LOG_AREA - self.potential(z), self.data_dim)

    def log_evidence(self, x: Tensor) -> Tensor:
        """Ln Z in nats for every row, by quadrature in float64: `[B, D] -> [B]`."""
        value = torch.tensor(_log_normalizer(self.energy), dtype=torch.float64, device=x.device)
        return value.expand(x.shape[:-1])

    def posterior(self, x: Tensor) -> TorchDistribution:
        """The density exp(−U)/Z, for every row: batch shape `[B]`, event shape `[2]`."""
        return self._density().expand(x.shape[:-1])

    def modes(self, x: Tensor) -> Modes | None:
        """Of U1 the left and the right one, equal by symmetry; waves have none."""
        if self.energy != "U1":
            return None
        return nearest(torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.tensor([0.5, 0.5]))

    def _density(self) -> SquareDensity:
        log_normalizer = _log_normalizer(self.energy)
        # exp(−U) is at most a sum of two bells of height one.
        return SquareDensity(
            lambda z: -self.potential(z),
            (_LOW, _HIGH),
            log_normalizer=log_normalizer,
            log_bound=math.log(2),
            like=self._zero,
        )

    def forward(self, x: Tensor | None = None, *, size: int | None = None) -> Tensor:
        """Score z for a batch `x` of shape `[B, D]`, or draw `size` z from exp(−U)/Z; x is zero.

        Raises:
            ValueError: as in `AbstractModel`.
        """
        if x is not None:
            return super().forward(x)
        with pyro.plate("data", self._batch_size(x, size)):
            z = pyro.sample("z", self._density())
            log_z = torch.full_like(z[..., 0], _log_normalizer(self.energy))
            return pyro.sample("x", Weight(log_z, self.data_dim))


@functools.cache
def _log_normalizer(energy: str) -> float:
    """Ln ∫ exp(−U) over the square."""
    half = 0.5 * (_HIGH - _LOW)

    def log_f(v: Tensor, _: Tensor) -> Tensor:
        z = 0.5 * (_LOW + _HIGH) + half * v
        return 2 * math.log(half) - ENERGIES[energy](*z.unbind(-1))

    return log_integral(log_f, 1, 2).item()
