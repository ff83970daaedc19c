"""How far a guide is from a reference posterior: moments, distances, and a classifier."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from evidence.inference.diagnostics.two_samples import (
    Accuracy,
    classifier_accuracy,
    distance_and_floor,
)
from evidence.inference.paths.reference import Reference, diagnostic, with_batch_dims
from evidence.inference.programs.broadcasting import agree
from evidence.inference.programs.data import Batch, takes, unwrapped
from evidence.inference.programs.draws import Block, Record, visit_draws
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program, random_sites
from evidence.inference.programs.unconstrained import Given, log_prob_of, trace_of


@dataclass(frozen=True)
class Discrepancy:
    """How far q(z | x) is from the reference, per datum.

    Args:
        mean_difference: E_q[z] − E_p[z], `[B, Z]`.
        mean_se: its Monte Carlo standard error, of both sides' draws, `[B, Z]`.
        sd_difference: sd_q[z] − sd_p[z], `[B, Z]`.
        sd_se: its Monte Carlo standard error, `[B, Z]`.
        sliced_wasserstein: distance of halves of the draws `[B]`, in the units of z.
        sliced_wasserstein_floor: what this distance is for as many draws of p on both sides,
            about, `[B]`; see `distance_and_floor`.
        accuracy: a classifier's accuracy in telling the draws apart, with its standard error.
        log_q_z: mean of log q(z | x) over the draws from p, `[B]`, in nats: −KL(p ‖ q) up to a
            constant of the posterior, so larger is better, and guides can be compared by it. NaN
            if the guide scores no latents but its own.
        log_q_z_se: its Monte Carlo standard error `[B]`.
        converged: whether the reference is one.
    """

    mean_difference: Tensor
    mean_se: Tensor
    sd_difference: Tensor
    sd_se: Tensor
    sliced_wasserstein: Tensor
    sliced_wasserstein_floor: Tensor
    accuracy: Accuracy
    log_q_z: Tensor
    log_q_z_se: Tensor
    converged: bool

    def __str__(self) -> str:
        worst_mean = (self.mean_difference / self.mean_se).abs().max()
        worst_sd = (self.sd_difference / self.sd_se).abs().max()
        text = (
            f"means differ by up to {worst_mean:.1f} SE, sds by up to {worst_sd:.1f} SE; sliced "
            f"Wasserstein {self.sliced_wasserstein.mean():.3f} "
            f"(floor {self.sliced_wasserstein_floor.mean():.3f}); C2ST accuracy "
            f"{self.accuracy.mean.mean():.3f} (± {self.accuracy.se.mean():.3f} per datum, 0.5 is "
            f"none); log q at draws of p {self.log_q_z.mean():.3f} nats"
        )
        return text if self.converged else f"{text} (the reference has NOT CONVERGED)"


def compare_to_reference(
    model: Program,
    guide: Program,
    reference: Reference,
    *,
    classifier: str = "knn",
    num_directions: int = 100,
    seed: int = 0,
) -> Discrepancy:
    """How far a guide is from the reference posterior of the same data.

    Args:
        model: the model that the reference is of.
        guide: called with a batch; samples every latent of the model.
        reference: from `nuts_reference`.
        classifier: see `classifier_accuracy`.
        num_directions: see `sliced_wasserstein`.
        seed: decides the guide's draws; the random state outside is untouched.

    Returns:
        The discrepancy, per datum.

    Raises:
        ValueError: as `log_weights`, or as `classifier_accuracy`.
    """
    of_p, x = reference.independent_draws, reference.x
    with isolated_rng(seed, of_p.device):
        of_q = side_by_side(guide_draws(model, guide, x, len(of_p)))
        log_q_z = _log_q_z(takes(model, x), takes(guide, x), reference)  # [C, N, B]
    mean, sd = (
        _difference(of_q, reference.draws, statistic) for statistic in (torch.mean, torch.std)
    )
    return Discrepancy(
        *mean,
        *sd,
        *distance_and_floor(of_q, of_p, num_directions=num_directions, seed=seed),
        classifier_accuracy(of_q, of_p, classifier=classifier, seed=seed),
        log_q_z.flatten(0, 1).mean(0),
        _mean_se(log_q_z),
        reference.converged,
    )


def _mean_se(values: Tensor) -> Tensor:
    """Standard error of the mean of draws `[C, N, B]`, NaN where these are: `[B]`."""
    if values.isnan().any():
        return torch.full_like(values[0, 0], math.nan)
    return diagnostic("mcse", values.unsqueeze(-1)).squeeze(-1)


def _difference(
    of_q: Tensor, of_p: Tensor, statistic: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Of the draws `[S, B, Z]` from the draws `[C, N, B, Z]`, with its standard error: `[B, Z]`."""
    method = "mean" if statistic is torch.mean else "sd"
    difference = statistic(of_q, 0) - statistic(of_p.flatten(0, 1), 0)
    errors = (diagnostic("mcse", draws, method=method) for draws in (of_q.unsqueeze(0), of_p))
    return difference, torch.hypot(*errors)


def guide_draws(model: Program, guide: Program, x: Batch, num_draws: int) -> dict[str, Tensor]:
    """Draws from q(z | x) at the model's sites, `[S, M, *other plates, *event]`.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`; M is B, or 1 where they share latents.
        num_draws: S.
    """
    record = Record(num_draws, len(x))

    def visit(block: Block) -> None:
        for name, site in block.latents.items():
            record.put(name, block, block.value(site))

    visit_draws(takes(model, x), takes(guide, x), x, num_draws, visit)
    return record.tensors


def side_by_side(sites: dict[str, Tensor]) -> Tensor:
    """Draws by site as one vector each, as in the reference: `[S, M, Z]`."""
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in sites.values()], dim=-1)


@torch.no_grad()
def _log_q_z(model: Program, guide: Program, reference: Reference) -> Tensor:
    """Log q(z | x) at the draws of the reference, NaN where the guide cannot say: `[C, N, B]`."""
    x, (num_chains, num_draws) = reference.x, reference.draws.shape[:2]
    blocks: list[Block] = []
    visit_draws(model, guide, x, 1, blocks.append, chunk_size=len(x))
    sites = random_sites(blocks[0].guide)
    try:
        with evaluation_mode(model, guide):
            if not any(site["infer"].get("is_auxiliary") for site in sites.values()):
                log_q = _score(guide, blocks[0], reference)
            elif (over_all := getattr(unwrapped(guide), "posterior", None)) is not None:
                posterior = takes(over_all, x)(x)  # of all sites side by side
                log_q = posterior.log_prob(reference.draws.flatten(0, 1))
            else:
                raise NotImplementedError
    except (KeyError, NotImplementedError):  # a transform without an inverse
        return torch.full_like(reference.draws[..., 0], math.nan)
    return log_q.unflatten(0, (num_chains, num_draws))


def _score(guide: Program, block: Block, reference: Reference) -> Tensor:
    """Log q of given latents: `[C·N, B]`; one by one where it is not the same in one call."""
    x, layout = reference.x, block.layout

    def log_prob(values: dict[str, Tensor], num_draws: int | None) -> Tensor:
        with Given(values):
            sites = random_sites(trace_of(guide, x, num_draws, layout)).values()
        size = num_draws or 1
        parts = (log_prob_of(site, size, len(x), layout) for site in sites)
        return sum(parts, torch.zeros(())).expand(size, layout.num_weights(len(x)))

    num_draws = math.prod(reference.draws.shape[:2])

    def alone(row: int) -> Tensor:
        return log_prob({n: v[row] for n, v in reference.site_values.items()}, None)

    values = {
        name: with_batch_dims(value, block.latents[name]["fn"].event_dim - layout.particle_dim)
        for name, value in reference.site_values.items()
    }
    try:
        together = log_prob(values, num_draws)
        if all(agree(together[row], alone(row)[0]) for row in (0, num_draws // 2, num_draws - 1)):
            return together
    except Exception:
        pass
    return torch.cat([alone(row) for row in range(num_draws)])
