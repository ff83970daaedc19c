"""Everything about a pair as one ArviZ object: draws, predictions, data and weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from evidence.inference.diagnostics.arviz_datasets import (
    Axes,
    Groups,
    Labels,
    Plates,
    arviz_object,
    library_attrs,
)
from evidence.inference.programs import estimators
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE, Block, Record, visit_draws
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import dim_of, plates_of
from evidence.inference.programs.traces import Program


def to_arviz(
    model: Program,
    guide: Program | Mapping[str, Program],
    x: Batch,
    *,
    num_draws: int = 250,
    num_chains: int = 4,
    prior: bool = True,
    predictive: bool = True,
    coords: Labels | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    """Draws from a guide and all that ArviZ can use of the pair, in ArviZ's own object.

    Every variable of a draw has the dims (chain, draw, datum, …), with (chain, draw, guide, datum,
    …) where several guides are given by name: `result.sel(guide="Planar")` is then the object of
    that one guide, and a plot shows all of them side by side. The groups:

        posterior             every latent site, drawn from the guide
        posterior_predictive  every observed site, given these latents
        log_likelihood        log p(x | z) of every observed site, per datum
        sample_stats          log_p_xz, log_q_z, log_weight = log_p_xz − log_q_z;
                              psis_log_weight, smoothed, its exp sums to 1 over chain and draw;
                              k_hat, per datum
        prior, prior_predictive, observed_data

    Where data share latents there is no dim `datum`: variables have the dims (chain, draw) and
    those of the plates that their site is in, by the plates' names; log_likelihood is that of every
    entry of an observed site, and sample_stats are of the data set.

    Draws of a guide are independent, and come in chains for ArviZ's sake only: r̂ near 1 and a
    large ESS in a summary say nothing about how close the guide is to the posterior; k_hat does.
    They are draws from q(z | x): for expectations under p(z | x) weight them by psis_log_weight.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model. Or several, by name.
        x: data `[B, *data_shape]`; or several tensors, as a tuple for `model(*x)` or as a mapping
            for `model(**x)`.
        num_draws: draws per chain and datum.
        num_chains: chains; S, the number of particles, is num_chains × num_draws.
        prior: whether to draw from the prior too (which not every model can).
        predictive: whether to draw data; they take S times the memory of `x` per group and guide.
        coords: labels of a dim, such as `{"datum": names, "factor": ["a", "b"]}`.
        dims: names of a site's own dims, such as `{"z": ["factor"]}`; `z_dim_0`, … otherwise.
        chunk_size: particles × data in one call.
        seed: decides all draws; every guide starts from it. The state outside is untouched.
        progress: show a progress bar.

    Returns:
        `arviz.InferenceData` with ArviZ 0.x, `xarray.DataTree` with ArviZ 1.x.

    Raises:
        ValueError: as `log_weights`; or dims and coords that do not fit.
    """
    if num_draws < 1 or num_chains < 1:
        raise ValueError(
            f"expected num_draws and num_chains of at least 1, got {num_draws} and {num_chains}"
        )
    guides = guide if isinstance(guide, Mapping) else {"": guide}
    if not guides:
        raise ValueError("expected at least one guide, got none")
    options = {"chunk_size": chunk_size, "progress": progress}
    x = as_data(x)
    collected: list[_Collector] = []
    for one in guides.values():  # the model's own draws are taken once
        collector = _Collector(
            takes(model, x), prior=prior and not collected, predictive=predictive
        )
        with isolated_rng(seed, x.device):
            collector.collect(takes(one, x), x, num_chains * num_draws, options)
        collected.append(collector)
    several = isinstance(guide, Mapping)
    labels = {**(coords or {}), **({"guide": list(guides)} if several else {})}
    axes = Axes(num_chains, num_draws, several, dims or {}, labels, collected[0].plates)
    attrs = {**library_attrs(), "seed": seed}
    return arviz_object(axes.datasets([c.groups for c in collected]), attrs)


class _Collector:
    """The groups of one guide: name of the group -> name of the variable -> tensor.

    Args:
        model: called with a batch; scores it.
        prior: whether to draw from the prior.
        predictive: whether to draw data.
    """

    def __init__(self, model: Program, *, prior: bool, predictive: bool) -> None:
        self.model, self.prior, self.predictive = model, prior, predictive
        self.groups: Groups = {}
        self.plates: Plates | None = None  # where data share latents

    def collect(self, guide: Program, x: Batch, num_particles: int, options: Any) -> None:
        """Draw; every variable is `[S, B, ...]`, but for the data and k̂, `[B, ...]`."""
        names = ["posterior", "log_likelihood", "sample_stats"]
        names += ["posterior_predictive"] * self.predictive + ["prior"] * self.prior
        names += ["prior_predictive"] * (self.prior and self.predictive)
        self._records = {name: Record(num_particles, len(x)) for name in names}
        self._data: dict[str, list[Tensor]] = {}
        self._plates = Plates({}, {})
        layout = visit_draws(self.model, guide, x, num_particles, self._visit, **options)
        if layout.is_joint:
            self.plates = self._plates
        self.groups = {name: record.tensors for name, record in self._records.items()}
        self.groups["observed_data"] = {n: torch.cat(parts) for n, parts in self._data.items()}
        stats = self.groups["sample_stats"]
        stats["log_weight"] = stats["log_p_xz"] - stats["log_q_z"]
        smoothed, k_hat = estimators.pareto_smoothed(stats["log_weight"])
        stats["psis_log_weight"] = smoothed - smoothed.logsumexp(0)  # normalized over the particles
        stats["k_hat"] = k_hat

    def _visit(self, block: Block) -> None:
        self._put("posterior", block, block.latents, block.value)
        self._put("log_likelihood", block, block.observed, partial(_log_likelihood, block))
        observed = block.site_by_site(self.model).observed
        self._plates.of_values.update(_plates_of(block.latents | observed, block))
        self._plates.of_likelihoods.update(_plates_of(block.observed, block))
        terms, stats = block.terms, self._records["sample_stats"]
        stats.put("log_p_xz", block, terms.log_p_x + terms.log_p_z)
        stats.put("log_q_z", block, terms.log_q_z)
        if block.rows.start == 0:
            for name, site in observed.items():
                self._data.setdefault(name, []).append(block.value(site)[0])
        if self.predictive:
            drawn = block.simulate(self.model, latents=block.guide)
            self._put("posterior_predictive", drawn, drawn.sites(observed), drawn.value)
        if self.prior:
            self._visit_prior(block, observed)

    def _visit_prior(self, block: Block, observed: Iterable[str]) -> None:
        try:
            drawn = block.simulate(self.model)
        except NotImplementedError as error:
            raise ValueError("the prior cannot be drawn from: pass prior=False") from error
        self._put("prior", drawn, drawn.sites(block.latents), drawn.value)
        if self.predictive:
            self._put("prior_predictive", drawn, drawn.sites(observed), drawn.value)

    def _put(
        self, group: str, block: Block, sites: Mapping[str, dict], of: Callable[[dict], Tensor]
    ) -> None:
        for name, site in sites.items():
            self._records[group].put(name, block, of(site))


def _log_likelihood(block: Block, site: dict) -> Tensor:
    """Per datum `[s, m]`; of data that share latents, that of every entry `[s, 1, *plates]`."""
    if not block.layout.is_joint:
        return block.log_prob(site)
    log_p = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return block.lay_out(site, log_p, 0)


def _plates_of(sites: Mapping[str, dict], block: Block) -> dict[str, list[str]]:
    """The names of the plates of each but that of the particles, from the left."""
    return {
        name: [
            f.name
            for f in sorted(plates_of(site), key=dim_of)
            if f.dim != block.layout.particle_dim
        ]
        for name, site in sites.items()
    }
