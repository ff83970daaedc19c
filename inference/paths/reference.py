"""Reference posteriors, by NUTS or given, with the diagnostics that say whether they are any."""

import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_median
from torch import Tensor

from evidence.inference.compilation.functions import Compile, expect_compile
from evidence.inference.paths.chains import in_halves
from evidence.inference.paths.nuts import RecordedNUTS
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.draws import Block, visit_draws
from evidence.inference.programs.enumeration import prior_of
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.masks import InFull, without_effect
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import advice_on_discrete
from evidence.inference.programs.supports import register_mixtures
from evidence.inference.programs.traces import Program
from evidence.inference.training.tempering import Unscaled

R_HAT_LIMIT = 1.01
_LARGEST_DENSE = 100  # latents
_DRAWS_PER_START = 15
_GRADIENTS_PER_DRAW = 7  # of most posteriors, or more


@dataclass(frozen=True)
class Reference:
    """Draws from p(z | x), all latent sites side by side in z.

    Args:
        x: the data `[B, *data_shape]`.
        draws: `[C, N, B, Z]`, by chain and draw; B is 1 where the data share latents.
        r_hat: rank-normalized R̂ of every latent `[B, Z]`.
        ess: the smaller one of bulk and tail ESS of every latent `[B, Z]`.
        num_divergences: draws whose trajectory diverged, over all chains.
        sites: the number of entries of every site, in the order in which they lie in z.
        site_values: the same draws by site, as the program has them, `[C·N, ...]`.
        num_evaluations: of the log joint and its gradient, the warm-up's counted, of one datum or
            of all that share latents; None where it is not known.
        sampler: what made the draws.
        verdict: whether the sampler itself says that they can be trusted; None to ask R̂.
    """

    x: Batch
    draws: Tensor
    r_hat: Tensor
    ess: Tensor
    num_divergences: int
    sites: dict[str, int]
    site_values: dict[str, Tensor]
    num_evaluations: int | None = None
    sampler: str = "NUTS"
    verdict: bool | None = None

    @property
    def converged(self) -> bool:
        """Whether every R̂ is below 1.01 and no trajectory diverged, or what the sampler says.

        Reference: A. Vehtari, A. Gelman, D. Simpson, B. Carpenter, P.-C. Bürkner,
        "Rank-Normalization, Folding, and Localization: An Improved R̂", 2021,
        https://doi.org/10.1214/20-BA1221.
        """
        if self.verdict is not None:
            return self.verdict
        return bool((self.r_hat < R_HAT_LIMIT).all()) and self.num_divergences == 0

    @property
    def independent_draws(self) -> Tensor:
        """Every k-th draw, k such that they are about independent: `[S, B, Z]`."""
        flat = self.draws.flatten(0, 1)
        return flat[:: max(1, math.ceil(len(flat) / self.ess.min().item()))]

    def __str__(self) -> str:
        chains, draws, num_data, dim = self.draws.shape
        text = (
            f"{self.sampler}: {chains} chains of {draws} draws for {num_data} data with {dim} "
            f"latents, R̂ up to {self.r_hat.max():.3f}, ESS from {self.ess.min():.0f}"
        )
        if self.converged:
            return text
        return f"{text}, {self.num_divergences} divergences: NOT CONVERGED, no reference"


def nuts_reference(
    model: Program,
    x: Batch,
    *,
    num_samples: int = 1000,
    num_warmup: int = 500,
    num_chains: int = 4,
    target_accept_prob: float = 0.8,
    seed: int = 0,
    compile: Compile = "auto",
    progress: bool = False,
) -> Reference:
    """Draws from p(z | x) by Pyro's NUTS, with the diagnostics that it needs.

    All data are sampled together, as one posterior; where each has latents of its own it has B·Z
    dimensions and factorizes: choose few data. Chains start at medians of a few draws from the
    prior, others in each. Where the data share latents, up to a hundred of them, the warm-up adapts
    a dense mass matrix, else a diagonal one. As for evidence, log-probabilities are taken unscaled:
    neither `poutine.scale` nor subsampling counts.

    Reference: M. D. Hoffman, A. Gelman, "The No-U-Turn Sampler", 2014,
    https://jmlr.org/papers/v15/hoffman14a.html.

    Args:
        model: called with a batch; scores it. Its latents are continuous, or summed out.
        x: data `[B, *data_shape]`.
        num_samples: N, draws per chain.
        num_warmup: steps per chain that adapt step size and masses, and are dropped.
        num_chains: C, run one after the other.
        target_accept_prob: nearer to 1 for smaller steps, against divergences.
        seed: decides all draws; the random state outside is untouched.
        compile: whether the log joint and its gradients are compiled; see `annealing.Options`.
        progress: show Pyro's progress bars.

    Returns:
        The draws; `converged` says whether they can be trusted.

    Raises:
        ValueError: a bad option, or as `log_weights`.
    """
    for name, value, least in (("num_chains", num_chains, 2), ("num_samples", num_samples, 4)):
        if value < least:
            raise ValueError(f"expected {name} of at least {least}, got {value}")
    x = as_data(x)
    model = takes(model, x)
    block = _moved_by_nuts(model, x)
    dim = sum(site["value"].numel() for site in block.latents.values())
    is_dense = block.layout.is_joint and dim <= _LARGEST_DENSE
    register_mixtures()
    expect_compile(compile)
    runs, num_gradients = [], 0
    with isolated_rng(device=x.device), evaluation_mode(model), torch.enable_grad():
        scored = Unscaled()(InFull(without_effect(model, x, block.model))(model))
        for chain in range(num_chains):
            pyro.set_rng_seed(seed * 1_000_003 + chain)
            kernel = RecordedNUTS(
                scored,
                num_calls=num_chains * (num_warmup + num_samples) * _GRADIENTS_PER_DRAW,
                compile=compile,
                target_accept_prob=target_accept_prob,
                full_mass=is_dense,
                init_strategy=init_to_median(num_samples=_DRAWS_PER_START),
            )
            run = MCMC(kernel, num_samples, num_warmup, disable_progbar=not progress)
            run.run(x)
            runs.append(run)
            num_gradients += kernel.num_gradients
    divergences = (run.diagnostics()["divergences"]["chain 0"] for run in runs)
    return reference_of_chains(
        x,
        block,
        [run.get_samples() for run in runs],
        num_divergences=sum(len(steps) for steps in divergences),
        num_evaluations=num_gradients * block.num_weights,
    )


def reference_of_chains(
    x: Batch,
    block: Block,
    chains: Sequence[Mapping[str, Tensor]],
    *,
    num_divergences: int = 0,
    **fields: Any,
) -> Reference:
    """The record of draws, with R̂ and ESS; of a single chain R̂ is that of its halves.

    Args:
        x: the data.
        block: of `one_run`.
        chains: draws of every latent by site, as the program has them, `[N, ...]` each.
        num_divergences: see `Reference`.
        fields: others of `Reference`.
    """
    packed = [_pack(block, chain) for chain in chains]
    draws = torch.stack([torch.cat(list(sites.values()), dim=-1) for sites in packed])
    ess = torch.minimum(
        diagnostic("ess", draws), diagnostic("ess", draws, method="tail", prob=(0.05, 0.95))
    )
    return Reference(
        x,
        draws,
        diagnostic("rhat", in_halves(draws) if len(draws) == 1 else draws),
        ess,
        num_divergences,
        {name: part.shape[2] for name, part in packed[0].items()},
        {name: torch.cat([chain[name] for chain in chains]) for name in block.latents},
        **fields,
    )


def one_run(model: Program, x: Batch) -> Block:
    """A run of the model: its latent sites, and where the data are among the plates."""
    blocks: list[Block] = []
    with isolated_rng(device=x.device):
        visit_draws(model, prior_of(model), x, 1, blocks.append, chunk_size=len(x))
    return blocks[0]


def _moved_by_nuts(model: Program, x: Batch) -> Block:
    block = one_run(model, x)
    if advice := advice_on_discrete(block.latents.values()):
        raise ValueError(f"NUTS moves latents along gradients{advice}")
    return block


def _pack(block: Block, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of the sites as the program has them, `[N, ...]`, each as `[N, B, entries]`."""
    num_draws = len(next(iter(values.values())))
    of_draws, depth = replace(block, rows=slice(0, num_draws)), -block.layout.particle_dim
    packed = {}
    for name, site in block.latents.items():
        value, event_dim = values[name], site["fn"].event_dim
        value = with_batch_dims(value, depth + event_dim)
        laid_out = of_draws.lay_out(site, value, event_dim)
        packed[name] = laid_out.reshape(*laid_out.shape[:2], -1)
    return packed


def with_batch_dims(value: Tensor, ndim: int) -> Tensor:
    """Dimensions of size 1 after the draws, for plates that the value has no part in."""
    return value.reshape(len(value), *(1,) * (ndim - value.ndim), *value.shape[1:])


def diagnostic(name: str, draws: Tensor, **options: Any) -> Tensor:
    """A diagnostic of ArviZ for every latent: `[C, N, B, Z] -> [B, Z]`."""
    values = draws.detach().cpu().double().numpy()
    result = np.empty(values.shape[2:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the 0.x line's import, and of chains that never move
        import arviz  # noqa: PLC0415

        for index in itertools.product(*map(range, result.shape)):
            result[index] = getattr(arviz, name)(values[:, :, *index], **options)
    return torch.from_numpy(result).to(draws.device)
