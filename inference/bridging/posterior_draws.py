"""Draws from a posterior, whoever made them, by site and as the model's trace has them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evidence.inference.estimation.sequential import Sampled
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.paths.log_joint import AbstractPath, PriorPath, latents_of
from evidence.inference.paths.reference import Reference, one_run, reference_of_chains
from evidence.inference.programs.data import Batch, tensors_in
from evidence.inference.programs.sites import Site
from evidence.inference.programs.supports import on_edge, support_of
from evidence.inference.programs.traces import Program

Draws = Reference | Sampled | Mapping[str, Any] | Any  # the last: an object of ArviZ
SMC = "SMC"  # the sampler of a reference
FEWEST = 40  # in a chain: it is halved, and the halves are halved


class PosteriorDraws:
    """Draws of every latent of a path's model, `[C, N, ...]` by chain and draw.

    Args:
        draws: a `Reference`; what `smc` returns, each of its islands a chain; an object of ArviZ
            with a group `posterior`; or values by site, `[chains, draws, ...]` or `[draws, ...]`,
            in the model's own space.
        path: of the model on its data.

    Raises:
        ValueError: a latent is missing, of another shape, not finite or outside its support;
            draws of other data; too few of them.
    """

    def __init__(self, draws: Draws, path: AbstractPath) -> None:
        self.sites = latents_of(path.model, path.x, path.layout)
        of_islands = isinstance(draws, Reference) and draws.sampler == SMC
        self._is_of_islands = of_islands or isinstance(draws, Sampled)
        has_cost = isinstance(draws, Reference | Sampled)
        self.num_evaluations = draws.num_evaluations if has_cost else None
        self.num_weights = path.layout.num_weights(len(path.x))
        given = _by_site(draws, path.x)
        if missing := sorted(self.sites.keys() - given.keys()):
            raise ValueError(
                f"expected draws of every latent of the model, got none of {missing}, but of "
                f"{sorted(given)}"
            )
        data_dim = path.layout.data_dim
        self.values = {n: _as_traced(n, given[n], s, data_dim) for n, s in self.sites.items()}
        sizes = {name: tuple(value.shape[:2]) for name, value in self.values.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"expected as many chains and draws of every latent, got {sizes}")
        self.num_chains, self.num_draws = next(iter(sizes.values()))
        if self.num_draws < FEWEST:
            raise ValueError(
                f"expected {FEWEST} or more draws in every chain, got {self.num_draws}"
            )

    @property
    def share_on_edge(self) -> Tensor:
        """About the share of draws on the edge of a support, where a dtype ends: `[1]`."""
        count = torch.zeros(1, dtype=torch.float64)
        for name, site in self.sites.items():
            value = self.values[name]
            count += on_edge(support_of(site["fn"]), value).sum().cpu()
        return (count / (self.num_chains * self.num_draws * self.num_weights)).clamp(max=1)

    def of_chains_that_mix(self, u: Tensor) -> Tensor:
        """Located draws `[C, N, M, Z]` as the chains whose R̂ counts: islands of SMC are none."""
        return u.flatten(0, 1).unsqueeze(0) if self._is_of_islands else u

    def located(self, path: AbstractPath, rows: slice = slice(None)) -> Tensor:
        """Their places in a path's coordinates, of some draws of every chain: `[C, N, M, Z]`."""
        some = {name: value[:, rows] for name, value in self.values.items()}
        shape = next(iter(some.values())).shape[:2]
        u = path.locate({name: value.flatten(0, 1) for name, value in some.items()})
        if not u.isfinite().all():
            raise ValueError(
                "draws of the latents lie outside their supports, or on the edge of them: expected "
                "draws in the model's own, constrained space"
            )
        return u.unflatten(0, shape)


def reference_of(model: Program, draws: Draws, x: Batch) -> Reference:
    """Draws of any form as a `Reference`, with the diagnostics of their chains.

    Args:
        model: called with a batch; scores it.
        draws: see `PosteriorDraws`.
        x: the data.

    Raises:
        ValueError: as `PosteriorDraws`.
    """
    if isinstance(draws, Reference):
        _expect_same_data(draws, x)
        return draws
    with annealing_mode(model, None, None, x.device):
        found = PosteriorDraws(draws, PriorPath(model, x))
    chains = [{n: v[number] for n, v in found.values.items()} for number in range(found.num_chains)]
    block = one_run(model, x)
    if not isinstance(draws, Sampled):
        return reference_of_chains(x, block, chains, sampler="draws")
    verdict = draws.evidence.not_reliable is None
    cost = draws.num_evaluations
    return reference_of_chains(x, block, chains, sampler=SMC, verdict=verdict, num_evaluations=cost)


def _expect_same_data(reference: Reference, x: Batch) -> None:
    ours, theirs = tensors_in(x), tensors_in(reference.x)
    same = len(ours) == len(theirs) and all(
        one.dtype == other.dtype and torch.equal(one, other)
        for one, other in zip(ours, theirs, strict=True)
    )
    if not same:
        raise ValueError("expected draws given these data, got a reference of others")


def draws_of_islands(sampled: Sampled) -> dict[str, Tensor]:
    """By island, about, `[R, N / R, ...]`: their spread shows what no autocorrelation does."""
    num_draws, num_islands = len(next(iter(sampled.draws.values()))), len(sampled.log_px)
    while num_islands > 1 and (num_draws % num_islands or num_draws // num_islands < FEWEST):
        num_islands -= 1
    return {name: value.unflatten(0, (num_islands, -1)) for name, value in sampled.draws.items()}


def _by_site(draws: Draws, x: Batch) -> dict[str, Any]:
    if isinstance(draws, Sampled):
        return draws_of_islands(draws)
    if isinstance(draws, Reference):
        _expect_same_data(draws, x)
        shape = draws.draws.shape[:2]
        return {name: value.unflatten(0, shape) for name, value in draws.site_values.items()}
    if isinstance(draws, Mapping) and not hasattr(draws, "posterior"):
        return dict(draws)
    posterior = getattr(draws, "posterior", None)
    if posterior is None:
        raise ValueError(
            "expected draws to be a Reference, an ArviZ object with a group posterior, what smc "
            f"returns or tensors by site, got {type(draws).__name__}"
        )
    return {str(name): posterior[name] for name in posterior.data_vars}


def _as_traced(name: str, given: Any, site: Site, data_dim: int | None) -> Tensor:
    """The draws of a site `[C, N, *as in the trace]`."""
    shape, like = site["value"].shape, site["value"]
    if hasattr(given, "dims"):  # a variable of ArviZ
        given = given.transpose("chain", "draw", ...)
        own = list(given.dims[2:])
        if "datum" in own and data_dim is not None:  # of `to_arviz`: before all other plates
            own.remove("datum")
            own.insert(len(site["fn"].batch_shape) + data_dim, "datum")
            given = given.transpose("chain", "draw", *own)
        given = given.values
    value = torch.as_tensor(given, dtype=like.dtype, device=like.device)
    if not value.isfinite().all():
        raise ValueError(f"draws of {name!r} have NaN or infinite values: remove or repair them")
    return _with_chains(name, value, shape)


def _with_chains(name: str, value: Tensor, shape: torch.Size) -> Tensor:
    """`[C, N, *shape]`, of draws with or without chains, whatever dims of size 1 they lack."""
    inner = [size for size in shape if size != 1]
    for num_lead in (2, 1):
        lead, own = value.shape[:num_lead], [s for s in value.shape[num_lead:] if s != 1]
        if len(lead) == num_lead and own == inner:
            if num_lead == 1 or lead[1] == 1:  # one long chain
                lead = torch.Size([1, lead[0]])
            return value.reshape(*lead, *shape)
    expected = ", ".join(map(str, ("chains", "draws", *shape)))
    raise ValueError(
        f"expected draws of {name!r} of shape ({expected}), with or without the dim of chains, got "
        f"{tuple(value.shape)}"
    )
