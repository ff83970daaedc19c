"""What the latents do: their KL, which of them are active, and their aggregate posterior."""

from dataclasses import dataclass

import torch
from scipy.stats import ks_2samp
from torch import Tensor
from torch.distributions import Independent

from evidence.inference.programs import estimators
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE, Block, Record, visit_draws
from evidence.inference.programs.masking import is_masked
from evidence.inference.programs.per_datum import expect_per_datum
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import Site, sites_of
from evidence.inference.programs.traces import Program, random_sites

ByName = dict[str, Tensor]


@dataclass(frozen=True)
class LatentDiagnostics:
    """Diagnostics of every latent site, of the shape `[*event]` of one value of it.

    Args:
        kl: KL(q(z | x) ‖ p(z)) in nats, averaged over the data: per entry where both
            distributions of the site are factorized, else one number per site, `[]`. Sites that
            a guide draws together have one number, by the name "z1, z2". All of them add up to
            the KL term of the ELBO.
        kl_se: Monte Carlo standard errors of `kl`.
        active: whether an entry tells data apart; see `estimators.active_units`.
        mean: mean of the aggregate posterior, the mixture of q(z | x) over the data.
        variance: its variance.
        prior_mean: mean of as many draws from the prior.
        prior_variance: their variance.
        ks: Kolmogorov–Smirnov distance between the two margins, 0 to 1. Finitely many data
            leave it at about 1/√B or less even for the exact posterior.
        threshold: of `active`, in the units of z².
    """

    kl: ByName
    kl_se: ByName
    active: ByName
    mean: ByName
    variance: ByName
    prior_mean: ByName
    prior_variance: ByName
    ks: ByName
    threshold: float

    @property
    def num_latents(self) -> int:
        """Entries of all sites."""
        return sum(active.numel() for active in self.active.values())

    @property
    def num_active(self) -> int:
        """Active entries of all sites."""
        return sum(int(active.sum()) for active in self.active.values())

    @property
    def collapse_warning(self) -> str | None:
        """Which latents do not depend on the data, and how many; None if all do."""
        idle = {name: _indices(~active) for name, active in self.active.items()}
        if self.num_active == self.num_latents:
            return None
        sites = "; ".join(f"{name}: {', '.join(found)}" for name, found in idle.items() if found)
        return (
            f"posterior collapse: {self.num_latents - self.num_active} of {self.num_latents} "
            f"latents are inactive, Var_x(E_q[z | x]) <= {self.threshold:g} ({sites}): warm the KL "
            "up (kl_warmup_epochs), weaken the decoder, or use fewer latents"
        )

    def __str__(self) -> str:
        total = sum(kl.sum().item() for kl in self.kl.values())
        ks = max(distances.max().item() for distances in self.ks.values())
        text = (
            f"KL {total:.3f} nats per datum; {self.num_active} of {self.num_latents} "
            f"latents active; aggregate posterior within KS {ks:.3f} of the prior"
        )
        return text if self.collapse_warning is None else f"{text}\n{self.collapse_warning}"


def latent_diagnostics(
    model: Program,
    guide: Program,
    x: Batch,
    *,
    num_draws: int = 100,
    threshold: float = 0.01,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    seed: int = 0,
) -> LatentDiagnostics:
    """Diagnose the latents of a pair on the data `x`.

    References: Y. Burda, R. Grosse, R. Salakhutdinov, "Importance Weighted Autoencoders", 2016,
    https://arxiv.org/abs/1509.00519, section 5.2 (active units); M. D. Hoffman, M. J. Johnson,
    "ELBO surgery: yet another way to carve up the variational evidence lower bound", 2016
    (aggregate posterior).

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`, at least two.
        num_draws: S, draws per datum, at least two.
        threshold: of an active latent, in the units of z².
        chunk_size: particles × data in one call.
        seed: decides all draws; the state outside is untouched.

    Raises:
        ValueError: as `log_weights`; fewer than two draws or data; a prior that cannot be drawn
            from.
    """
    x = as_data(x)
    model, guide = takes(model, x), takes(guide, x)
    if num_draws < 2 or len(x) < 2:
        raise ValueError(f"expected num_draws and data of at least 2, got {num_draws} and {len(x)}")
    expect_per_datum(model, guide, x[:64], "what latents do")
    posterior, prior, kl = (Record(num_draws, len(x)) for _ in range(3))

    def visit(block: Block) -> None:
        forward = block.simulate(model)
        for name, site in block.latents.items():
            posterior.put(name, block, block.value(site).double())
            prior.put(name, block, forward.value(sites_of(forward.model)[name]).double())
        for name, ratio in _log_ratios(block).items():
            kl.put(name, block, ratio.double())

    with isolated_rng(seed, x.device):
        visit_draws(model, guide, x, num_draws, visit, chunk_size=chunk_size)
    q, p = posterior.tensors, prior.tensors
    return LatentDiagnostics(
        kl={name: ratio.mean((0, 1)) for name, ratio in kl.tensors.items()},
        kl_se={name: _se(ratio) for name, ratio in kl.tensors.items()},
        active={name: _active(z, threshold) for name, z in q.items()},
        mean={name: z.mean((0, 1)) for name, z in q.items()},
        variance={name: z.flatten(0, 1).var(0) for name, z in q.items()},
        prior_mean={name: z.mean((0, 1)) for name, z in p.items()},
        prior_variance={name: z.flatten(0, 1).var(0) for name, z in p.items()},
        ks={name: _ks(z, p[name]) for name, z in q.items()},
        threshold=threshold,
    )


def _log_ratios(block: Block) -> ByName:
    """Log q(z | x) − log p(z) of every draw, as finely as the densities allow: `[s, b, ...]`."""
    drawn, latents = random_sites(block.guide), block.latents
    if drawn.keys() != latents.keys():  # through auxiliary sites: one density for all
        return {", ".join(latents): block.terms.log_q_z - block.terms.log_p_z}
    return {name: _site_log_ratio(block, drawn[name], site) for name, site in latents.items()}


def _site_log_ratio(block: Block, guide_site: Site, model_site: Site) -> Tensor:
    log_q, log_p = _entrywise(block, guide_site), _entrywise(block, model_site)
    if log_q is None or log_p is None or log_q.shape != log_p.shape:
        return block.log_prob(guide_site) - block.log_prob(model_site)
    return log_q - log_p


def _entrywise(block: Block, site: Site) -> Tensor | None:
    """The log-probability of every entry, `[s, b, ...]`, if the distribution is factorized."""
    fn = site["fn"]
    event_dim = fn.event_dim
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if fn.event_dim != 0 or is_masked(site):
        return None
    log_p = fn.log_prob(site["value"])
    return block.lay_out(site, log_p, event_dim)


def _active(z: Tensor, threshold: float) -> Tensor:
    """`[S, B, *event] -> [*event]`, bool."""
    means, variances, rows = z.mean(0), z.var(0) / len(z), z.shape[1]
    flat = estimators.active_units(
        means.reshape(rows, -1), variances.reshape(rows, -1), threshold=threshold
    )
    return flat.reshape(z.shape[2:])


def _se(ratio: Tensor) -> Tensor:
    """Of the mean over draws and data, the data held fixed: `[S, B, ...] -> [...]`."""
    num_draws, num_data = ratio.shape[:2]
    return (ratio.var(0) / num_draws).sum(0).sqrt() / num_data


def _ks(posterior: Tensor, prior: Tensor) -> Tensor:
    """`[S, B, *event], [S, B, *event] -> [*event]`."""
    q, p = (
        z.flatten(0, 1).reshape(z.shape[0] * z.shape[1], -1).T.cpu().numpy()
        for z in (posterior, prior)
    )
    distances = [ks_2samp(a, b, method="asymp").statistic for a, b in zip(q, p, strict=True)]
    return torch.tensor(distances, dtype=torch.float64).reshape(posterior.shape[2:])


def _indices(mask: Tensor) -> list[str]:
    """Where the mask is set: "3", "1,2", or "all" of a scalar."""
    if mask.ndim == 0:
        return ["all"] if mask else []
    return [",".join(map(str, index)) for index in mask.nonzero().tolist()]
