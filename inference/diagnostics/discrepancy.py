"""How far a guide is from a reference posterior: moments, distances, forward KL, a classifier."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.bridging.posterior_draws import (
    FEWEST,
    Draws,
    PosteriorDraws,
    reference_of,
)
from evidence.inference.bridging.upper_bound import Mean, UpperBound, upper_bound
from evidence.inference.diagnostics.mode_coverage import KnownModes, ModeCoverage, mode_coverage
from evidence.inference.diagnostics.two_samples import (
    Accuracy,
    Distance,
    classifier_accuracy,
    distance_and_floor,
    marginal_wasserstein,
)
from evidence.inference.estimation.evidence import Evidence
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.paths.reference import Reference, diagnostic
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.draws import Block, Record, visit_draws
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program
from evidence.inference.soundness.pairs import expect_sound_pair


@dataclass(frozen=True, kw_only=True)
class Discrepancy:
    """How far q(z | x) is from the reference, per datum, or for all data where they share latents.

    Args:
        mean_difference: E_q[z] − E_p[z], `[B, Z]`.
        mean_se: its Monte Carlo standard error, of both sides' draws, `[B, Z]`.
        sd_difference: sd_q[z] − sd_p[z], `[B, Z]`.
        sd_se: its Monte Carlo standard error, `[B, Z]`.
        sliced_wasserstein: distance of halves of the draws `[B]`, in the units of z.
        sliced_wasserstein_floor: what this distance is for as many draws of p on both sides,
            about, `[B]`; see `distance_and_floor`.
        wasserstein: 1-Wasserstein distance of every latent's marginal, of halves of the draws, in
            posterior standard deviations, `[B, Z]`.
        wasserstein_floor: what it is for as many draws of p on both sides, about, `[B, Z]`.
        worst_wasserstein: the largest of these distances, and what the largest is for as many draws
            of p on both sides, `[B]` each.
        accuracy: a classifier's accuracy in telling the draws apart, with its standard error.
        eubo: the evidence upper bound E_p[log p(x, z) − log q(z | x)] `[B]`, in nats. NaN, as the
            next two, if the guide cannot score what it did not draw.
        eubo_se: its Monte Carlo standard error `[B]`.
        forward_kl: KL(p(z | x) ‖ q(z | x)), the EUBO less log p(x), `[B]`, in nats.
        forward_kl_se: its Monte Carlo standard error, of both parts, `[B]`.
        log_q_z: the mean of log q(z | x) over the draws from p `[B]`, in nats.
        log_q_z_se: its Monte Carlo standard error `[B]`.
        modes: the shares of the guide and of the reference in modes that are known; None without.
        caveat: what speaks against the log p(x) that is in the forward KL, or None.
        converged: whether the reference is one.
    """

    mean_difference: Tensor
    mean_se: Tensor
    sd_difference: Tensor
    sd_se: Tensor
    sliced_wasserstein: Tensor
    sliced_wasserstein_floor: Tensor
    wasserstein: Tensor
    wasserstein_floor: Tensor
    worst_wasserstein: Distance
    accuracy: Accuracy
    eubo: Tensor
    eubo_se: Tensor
    forward_kl: Tensor
    forward_kl_se: Tensor
    log_q_z: Tensor
    log_q_z_se: Tensor
    modes: "ModesOfBoth | None"
    caveat: str | None
    converged: bool

    def __str__(self) -> str:
        worst_mean = (self.mean_difference / self.mean_se).abs().max()
        worst_sd = (self.sd_difference / self.sd_se).abs().max()
        kl = over_data(self.forward_kl, self.forward_kl_se)
        caveat = "" if self.caveat is None else f" (NOT RELIABLE: {self.caveat})"
        text = (
            f"means differ by up to {worst_mean:.1f} SE, sds by up to {worst_sd:.1f} SE; sliced "
            f"Wasserstein {self.sliced_wasserstein.mean():.3f} "
            f"(floor {self.sliced_wasserstein_floor.mean():.3f}); marginal Wasserstein up to "
            f"{self.worst_wasserstein.between.max():.3f} sd "
            f"(floor {self.worst_wasserstein.floor.mean():.3f}); C2ST accuracy "
            f"{self.accuracy.mean.mean():.3f} (± {self.accuracy.se.mean():.3f} per datum, 0.5 is "
            f"none); KL(p ‖ q) {kl.mean:.3f} ± {kl.se:.3f} nats{caveat}"
        )
        if self.modes is not None:
            text += f"; {self.modes.guide}"
        return text if self.converged else f"{text} (the reference has NOT CONVERGED)"


class ModesOfBoth(NamedTuple):
    """What a guide has of every known mode, and what the reference has."""

    guide: ModeCoverage
    reference: ModeCoverage


def over_data(values: Tensor, errors: Tensor) -> Mean:
    """The mean over the data, whose draws are independent, of `[B]` and `[B]`."""
    return Mean(values.mean(), errors.square().sum().sqrt() / len(errors))


def compare_to_reference(
    model: Program,
    guide: Program,
    reference: Draws,
    x: Batch | None = None,
    *,
    evidence: Evidence | None = None,
    modes: KnownModes | None = None,
    classifier: str = "knn",
    num_directions: int = 100,
    seed: int = 0,
) -> Discrepancy:
    """How far a guide is from draws of the posterior of the same data.

    A guide that sits on one mode, or is too narrow, can have an ELBO, and k̂, like any other. The
    posterior's draws see it: at those where the guide is not, log p(x, z) − log q(z | x) is large,
    and so are the EUBO and the forward KL. What the draws themselves miss, nothing here shows.

    Args:
        model: the model that the reference is of.
        guide: called with a batch; samples every latent of the model.
        reference: from `nuts_reference`; or draws from `smc`, an ArviZ object, or values by site,
            as `bridge_evidence` takes them. Draws that the guide was trained on flatter it.
        x: the data of the draws; those of a `Reference` are known.
        evidence: the best estimate of log p(x), of `smc_evidence` or exact (`Evidence.exact`), for
            the forward KL; None to bridge the draws with the guide's.
        modes: of the posterior, if they are known, for the guide's shares in them.
        classifier: see `classifier_accuracy`.
        num_directions: see `sliced_wasserstein`.
        seed: decides the guide's draws; the random state outside is untouched.

    Returns:
        The discrepancy, per datum.

    Raises:
        ValueError: as `log_weights`, `classifier_accuracy` or `bridge_evidence`; no data.
    """
    x = _data_of(reference, x)
    reference = reference_of(takes(model, x), reference, x)
    of_p = reference.independent_draws
    with isolated_rng(seed, of_p.device):
        sites = guide_draws(model, guide, x, len(of_p))
    of_q = side_by_side(sites)
    pair = takes(model, x), takes(guide, x)
    bound = _upper_bound(*pair, reference, evidence, seed)
    mean, sd = (
        _difference(of_q, reference.draws, statistic) for statistic in (torch.mean, torch.std)
    )
    scale = reference.draws.flatten(0, 1).std(0)

    def in_sds(first: Tensor, second: Tensor) -> Tensor:
        return marginal_wasserstein(first, second) / scale

    sliced = distance_and_floor(of_q, of_p, seed=seed, num_directions=num_directions)
    marginal = distance_and_floor(of_q, of_p, seed=seed, distance=in_sds)
    return Discrepancy(
        mean_difference=mean[0],
        mean_se=mean[1],
        sd_difference=sd[0],
        sd_se=sd[1],
        sliced_wasserstein=sliced.between,
        sliced_wasserstein_floor=sliced.floor,
        wasserstein=marginal.between,
        wasserstein_floor=marginal.floor,
        worst_wasserstein=distance_and_floor(
            of_q, of_p, seed=seed, distance=lambda *pair: in_sds(*pair).amax(-1)
        ),
        accuracy=classifier_accuracy(of_q, of_p, classifier=classifier, seed=seed),
        eubo=bound.eubo.mean,
        eubo_se=bound.eubo.se,
        forward_kl=bound.forward_kl.mean,
        forward_kl_se=bound.forward_kl.se,
        log_q_z=bound.log_q_z.mean,
        log_q_z_se=bound.log_q_z.se,
        caveat=bound.caveat,
        modes=None if modes is None else _modes_of_both(modes, sites, reference),
        converged=reference.converged,
    )


def _data_of(reference: Draws, x: Batch | None) -> Batch:
    if x is not None:
        return as_data(x)
    if not isinstance(reference, Reference):
        raise ValueError("expected the data that the draws are given, as x, got none")
    return reference.x


def _modes_of_both(
    modes: KnownModes, sites: dict[str, Tensor], reference: Reference
) -> ModesOfBoth:
    return ModesOfBoth(mode_coverage(modes, sites), mode_coverage(modes, reference))


def _upper_bound(
    model: Program, guide: Program, reference: Reference, evidence: Evidence | None, seed: int
) -> UpperBound:
    """At all draws; NaN where the guide has no density there that could be asked for."""
    x, num_draws = reference.x, reference.draws.shape[1]
    expect_sound_pair(model, guide, x)
    like = reference.r_hat[:, 0]
    if num_draws < FEWEST:
        return UpperBound.unknown(like, f"chains of {num_draws} draws, fewer than {FEWEST}")
    with annealing_mode(model, guide, seed * 1_000_003 + 999_979, x.device):
        try:
            path = GuidePath(model, guide, x)
            draws = PosteriorDraws(reference, path)
            u = draws.located(path)
        except ValueError as error:
            return UpperBound.unknown(like, str(error))
        return upper_bound(path, draws, u, evidence=evidence)


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
    x = as_data(x)
    record = Record(num_draws, len(x))

    def visit(block: Block) -> None:
        for name, site in block.latents.items():
            record.put(name, block, block.value(site))

    visit_draws(takes(model, x), takes(guide, x), x, num_draws, visit)
    return record.tensors


def side_by_side(sites: dict[str, Tensor]) -> Tensor:
    """Draws by site as one vector each, as in the reference: `[S, M, Z]`."""
    return torch.cat([value.reshape(*value.shape[:2], -1) for value in sites.values()], dim=-1)
