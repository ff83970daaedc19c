"""Importance weights under a mixture of the guide and the prior."""

import math

import torch
from torch import Tensor

from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.draws import Block, Record, visit_draws
from evidence.inference.programs.enumeration import prior_of
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.weights import log_prob_terms


def defensive_log_weights(
    model: Program,
    guide: Program,
    x: Batch,
    num_particles: int,
    *,
    share: float,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Log p(x, z) − log[(1 − α) q(z | x) + α p(z)], a share α of the draws from the prior.

    A guide that is too narrow has weights without a bound, and of infinite variance where it is
    narrower by √2. These are at most max_z p(x | z)/α, whatever the guide: far from it the prior
    takes its place. With w = p(x, z)/q(z | x) the log-weight is −log[(1 − α)/w + α/p(x | z)],
    wherever z comes from, and as many draws come from either as the mixture has of them.

    Reference: T. Hesterberg, "Weighted Average Importance Sampling and Defensive Mixture
    Distributions", 1995, https://doi.org/10.1080/00401706.1995.10484303; A. Owen, Y. Zhou, "Safe
    and Effective Importance Sampling", 2000, https://doi.org/10.1080/01621459.2000.10473909.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model, scores any value of it.
        x: data `[B, *data_shape]`.
        num_particles: S, draws of both.
        share: α, between 0 and 1; at least one draw comes from either.
        chunk_size: see `log_weights`.

    Returns:
        The log-weights `[S, M]`, and log w of the guide's draws alone.

    Raises:
        ValueError: a share that is none; a guide that cannot score what it did not draw.
    """
    if not 0 < share < 1:
        raise ValueError(f"expected defensive between 0 and 1, got {share}")
    of_prior = min(max(1, round(share * num_particles)), num_particles - 1)
    if of_prior < 1:
        raise ValueError(f"expected two or more particles of a mixture, got {num_particles}")
    share = of_prior / num_particles
    ours = log_prob_terms(model, guide, x, num_particles - of_prior, chunk_size=chunk_size)
    theirs = _prior_terms(model, guide, x, of_prior, chunk_size)
    log_w = torch.cat([ours.log_w, theirs["log_w"]])
    log_p_x = torch.cat([ours.log_p_x, theirs["log_p_x"]])
    mixed = -torch.logaddexp(math.log1p(-share) - log_w, math.log(share) - log_p_x)
    return torch.where(log_p_x.isneginf(), log_p_x, mixed), ours.log_w


def _prior_terms(
    model: Program, guide: Program, x: Batch, num_draws: int, chunk_size: int
) -> dict[str, Tensor]:
    """Log p(x | z) and log w, the guide's, of draws from the prior, each `[S, M]`."""
    record = Record(num_draws, len(x))

    def visit(block: Block) -> None:
        path = GuidePath(model, guide, block.x)
        values = {name: site["value"] for name, site in block.latents.items()}
        u = path.locate(path.latents.without_chains(values, block.num_particles))
        log_q_z, log_p_xz = path(u)
        record.put("log_w", block, log_p_xz - log_q_z)
        record.put("log_p_x", block, block.terms.log_p_x)

    with evaluation_mode(model, guide):
        visit_draws(model, prior_of(model), x, num_draws, visit, chunk_size=chunk_size)
    return record.tensors
