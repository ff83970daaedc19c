"""ELBOs whose KL term is weighted or has a floor."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from pyro.distributions import Independent, TorchDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from evidence.inference.objectives.base import AbstractObjective, expect_number
from evidence.inference.objectives.draws import Draws, Pair
from evidence.inference.programs.masking import counted_inside, unmasked
from evidence.inference.programs.sites import Site, latent_sites
from evidence.inference.programs.traces import Traces


class BetaELBO(AbstractObjective):
    """The objective of the β-VAE: loss = −Σ_x E_q[log p(x | z)] + β KL(q(z | x) ‖ p(z)).

    The KL is sampled, as in `Trace_ELBO`, which is β = 1. With β > 1 it is still a lower bound on
    the evidence, and latents that are independent in the prior are pressed to be so in the guide.

    Reference: I. Higgins et al., "beta-VAE: Learning Basic Visual Concepts with a Constrained
    Variational Framework", 2017, https://openreview.net/forum?id=Sy2fzU9gl.

    Args:
        beta: the weight β ≥ 0 of the KL term.
        num_particles: K, draws per datum, averaged.
    """

    is_mean = True

    def __init__(self, beta: float = 4.0, *, num_particles: int | None = None) -> None:
        super().__init__(num_particles)
        self.beta = expect_number("beta", beta, at_least=0)

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ of the weighted ELBO in nats."""
        draws = pair.draw()
        log_ratio = draws.log_q_z - draws.log_p_z
        return -draws.total((draws.log_p_x - self.beta * log_ratio).mean(0))


class FreeBits(AbstractObjective):
    """The ELBO with a floor on the KL: loss = −Σ_x E_q[log p(x | z)] + N Σ_j max(λ, mean_x KL_j).

    A group j of latents may carry λ nats on average over the batch at no cost, which keeps it from
    collapsing to the prior. Groups are the entries of a latent where the distributions of model
    and guide both factorize, else whole latent sites.

    The KL is in closed form where there is one and the guide draws its latents in the model's
    order, else it is sampled; the floor of an average of few draws is then a little too high.

    Reference: D. P. Kingma et al., "Improving Variational Inference with Inverse Autoregressive
    Flow", 2016, https://arxiv.org/abs/1606.04934, appendix C.8.

    Args:
        free_bits: the floor λ ≥ 0 in nats per group.
        num_particles: K, draws per datum, averaged.
    """

    def __init__(self, free_bits: float = 0.25, *, num_particles: int | None = None) -> None:
        super().__init__(num_particles)
        self.free_bits = expect_number("free_bits", free_bits, at_least=0)

    def surrogate(self, pair: Pair) -> Tensor:
        """−Σ of the ELBO with a floored KL, in nats."""
        draws = pair.draw()
        floored = [
            torch.maximum(self.free_bits * group.num_data, group.kl).sum()
            for group in _averaged(draws)
        ]
        return sum(floored) - draws.total(draws.log_p_x.mean(0))


class _SiteKL(NamedTuple):
    """The KL of every group of a latent site, summed over the data: `[G]`, in nats.

    `num_data` counts these data, with their scale and masks: `[G]`.
    """

    kl: Tensor
    num_data: Tensor


def _averaged(draws: Draws) -> Iterator[_SiteKL]:
    """The KL of every latent site, averaged over the particles."""
    per_run = [_site_kls(run) for run in draws.runs]
    num_particles = draws.pair.num_particles
    for name in per_run[0]:
        parts = [kls[name] for kls in per_run]
        yield _SiteKL(
            sum((part.kl for part in parts), torch.zeros(())) / num_particles,
            sum((part.num_data for part in parts), torch.zeros(())) / num_particles,
        )


def _site_kls(run: Traces) -> dict[str, _SiteKL]:
    """The KL of every latent site, by name.

    Raises:
        ValueError: the guide has auxiliary draws for several latent sites.
    """
    latents, guided = latent_sites(run.model), latent_sites(run.guide)
    if latents.keys() == guided.keys():
        ordered = list(latents) == list(guided)
        return {n: _site_kl(site, guided[n], closed_form=ordered) for n, site in latents.items()}
    if len(latents) > 1:
        raise ValueError(
            "expected a guide that draws every latent site by itself, got auxiliary draws for "
            f"{sorted(latents)}, whose KL cannot be told apart"
        )
    log_q_z = sum(_scaled_log_prob(site).sum() for site in guided.values())
    return {
        name: _SiteKL(
            (log_q_z - _scaled_log_prob(site).sum()).reshape(1), _weight(site).sum().reshape(1)
        )
        for name, site in latents.items()
    }


def _site_kl(model_site: Site, guide_site: Site, *, closed_form: bool) -> _SiteKL:
    p, q, counts = model_site["fn"], guide_site["fn"], torch.tensor(True)
    if _factorizes(p) and _factorizes(q) and p.event_shape == q.event_shape:
        p, q, counts = _entries(p), _entries(q), counted_inside(p)
    kl = _kl(q, p, guide_site["value"], closed_form=closed_form)  # [*batch, *groups]
    weight = _weight(model_site)
    num_groups = kl.shape[weight.ndim :].numel()
    counts = counts.to(kl.device).expand(kl.shape).reshape(-1, num_groups)
    weights = weight.reshape(-1, 1) * counts
    return _SiteKL((kl.reshape(-1, num_groups) * weights).sum(0), weights.sum(0))


def _kl(q: TorchDistribution, p: TorchDistribution, z: Tensor, *, closed_form: bool) -> Tensor:
    if closed_form:
        try:
            return kl_divergence(q, p)
        except NotImplementedError:
            pass
    return q.log_prob(z) - p.log_prob(z)


def _factorizes(fn: TorchDistribution) -> bool:
    return _entries(fn).event_dim == 0


def _entries(fn: TorchDistribution) -> TorchDistribution:
    fn = unmasked(fn)
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return fn


def _scaled_log_prob(site: Site) -> Tensor:
    return scale_and_mask(site["fn"].log_prob(site["value"]), site["scale"], site["mask"])


def _weight(site: Site) -> Tensor:
    """Scale × mask of a site for each of its values, `[*batch]`."""
    value, event_dim = site["value"], site["fn"].event_dim
    # Of the value, for the distribution of a replayed site is not expanded over the particles.
    ones = torch.ones(value.shape[: value.ndim - event_dim]).to(value)
    return scale_and_mask(ones, site["scale"], site["mask"]).expand(ones.shape)
