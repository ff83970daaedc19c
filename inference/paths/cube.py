"""A Pyro model as a log-likelihood on the unit cube, on which its prior is uniform."""

import math

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evidence.inference.paths.log_joint import PriorPath, PriorTerms, Way, latents_of
from evidence.inference.paths.quantiles import draw_at, uniforms_shape
from evidence.inference.programs.checks import base_distribution
from evidence.inference.programs.data import Batch
from evidence.inference.programs.traces import Program
from evidence.inference.programs.unconstrained import Site


class CubePath(PriorPath):
    """From the prior to the posterior in the coordinates v of the unit cube.

    Sites become functions of v in the order of the program, each by the quantiles of its prior
    given those before it: uniform v are draws from the prior, and the integral of p(x | z(v)) over
    the cube is p(x). The log-density of the prior is that of v, zero. One point is run at a time.

    Args:
        model: called with a batch; scores it.
        x: data `[B, *data_shape]` that share latents, or a single datum.

    Raises:
        ValueError: as `PriorPath`; a prior whose quantiles are not known.
    """

    @torch.no_grad()
    def __init__(self, model: Program, x: Batch) -> None:
        super().__init__(model, x)
        self._way = Way.ONE_BY_ONE
        sites = latents_of(model, x, self.layout)
        self._parts = {
            name: (uniforms_shape(site["fn"]), site["value"].dtype) for name, site in sites.items()
        }
        for name, site in sites.items():
            _expect_quantiles(name, site)

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents; points of the cube are in float64."""
        return next(iter(self._parts.values()))[1]

    @property
    def dim(self) -> int:
        """Of the cube, which may have more dimensions than the latents have entries."""
        return sum(math.prod(shape) for shape, _ in self._parts.values())

    def _terms(self, z: Tensor, plate: int | None) -> PriorTerms:
        with FromCube(self._parts, z):
            sites = self._run(self.model, plate, sum_out=True)
        log_p_x = z.new_zeros(1, 1)
        for site in sites.values():
            if site["is_observed"]:
                log_p_x = log_p_x + self._log_prob(site, plate)
        return PriorTerms(torch.zeros_like(log_p_x), log_p_x)

    def _draw(self, plate: int | None) -> Tensor:
        return torch.rand(plate or 1, 1, self.dim, dtype=torch.float64, device=self.x.device)

    def _values(self, z: Tensor, plate: int | None) -> dict[str, Tensor]:
        with FromCube(self._parts, z):
            sites = self._run(self.model, plate)
        return self.packing.values(sites, plate or 1, len(self.x))


class FromCube(Messenger):
    """Gives latent sites the draws that a point of the unit cube makes.

    Args:
        parts: of each site the shape of its uniform numbers, and the dtype of its draws.
        v: the point `[1, 1, Z]`, in float64.
    """

    def __init__(self, parts: dict[str, tuple[torch.Size, torch.dtype]], v: Tensor) -> None:
        super().__init__()
        self.parts = parts
        pieces = v.flatten().split([math.prod(shape) for shape, _ in parts.values()])
        self.pieces = dict(zip(parts, pieces, strict=True))

    def _pyro_sample(self, msg: Site) -> None:
        name, fn = msg["name"], msg["fn"]
        if name not in self.parts or msg["is_observed"]:
            return
        shape, dtype = self.parts[name]
        msg["value"] = draw_at(fn, self.pieces[name].reshape(shape)).to(dtype)


def _expect_quantiles(name: str, site: Site) -> None:
    fn = site["fn"]
    try:
        draw_at(fn, site["value"].new_full(uniforms_shape(fn), 0.5, dtype=torch.float64))
    except NotImplementedError:
        raise ValueError(
            f"latent site {name!r} has the prior {type(base_distribution(fn)).__name__}, whose "
            "quantiles are not known, and nested sampling draws from a prior by them: use "
            "smc_evidence"
        ) from None
