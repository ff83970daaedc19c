"""Evidence by bridge sampling between draws from the posterior and a proposal."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from evidence.inference.annealing.guide_path import GuidePath, GuideTerms, path_of
from evidence.inference.annealing.log_joint import AbstractPath
from evidence.inference.annealing.reference import nuts_reference
from evidence.inference.estimation.annealed import annealing_mode
from evidence.inference.estimation.bridge_checks import Bridged, caveat_of
from evidence.inference.estimation.evidence import Evidence, check_log_weights
from evidence.inference.estimation.optimal_bridge import OptimalBridge
from evidence.inference.estimation.posterior_draws import Draws, PosteriorDraws
from evidence.inference.estimation.bridge_proposals import Normal, fitted_guide
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, Program, as_data, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE
from evidence.inference.soundness.pairs import expect_sound_model, expect_sound_pair

Fit = Literal["forward"]

_MOST_NUMBERS = 2**21  # draws × data at a time, where the data share latents


class Proposal(Protocol):
    """A density to draw from, in the unconstrained coordinates of a path."""

    def sample(self, num_draws: int, /) -> Tensor:
        """Draws `[S, B, Z]`."""
        ...

    def __call__(self, u: Tensor, /) -> GuideTerms:
        """Log q(u) and log p(x, u) at u `[S, B, Z]`, each `[S, M]`."""
        ...


def bridge_evidence(
    model: Program,
    guide: Program | None,
    x: Batch,
    *,
    draws: Draws | None = None,
    fit_guide: Fit | None = None,
    num_particles: int | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    seed: int = 0,
) -> Evidence:
    """Log p(x) by Meng and Wong's optimal bridge between posterior draws and a proposal.

    The proposal is the guide, as it is: then it must not have been fitted to these draws. Or it is
    fitted to them, without a guide a multivariate normal in unconstrained space by its moments, and
    with `fit_guide="forward"` a copy of the guide by forward KL: to the first half of every chain,
    to be bridged with the second, and the other way round; both estimates are averaged.

    The error bar knows the autocorrelation of the draws. What the draws never visit, though, no
    bridge reports unless the proposal goes there: then both sides disagree on where they overlap,
    and the record is not reliable. The same holds of chains that have not mixed, R̂ > 1.01.

    References: X.-L. Meng, W. H. Wong, "Simulating ratios of normalizing constants via a simple
    identity", 1996, https://www3.stat.sinica.edu.tw/statistica/oldpdf/A6n44.pdf; Q. F. Gronau et
    al., "A tutorial on bridge sampling", 2017, https://arxiv.org/abs/1703.05984.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model. None for a normal.
        x: data `[B, *data_shape]`; or several tensors, as a tuple or a mapping, see `fit`.
        draws: from p(z | x): a `Reference`, an ArviZ object, or values by site, `[chains, draws,
            ...]` or `[draws, ...]`, in the model's own space. None for those of `nuts_reference`.
        fit_guide: "forward" to fit copies of the guide, a module, to halves of the draws.
        num_particles: S, draws from the proposals; by default as many as from the posterior.
        chunk_size: draws × data at work at a time, draws alone where these share latents.
        seed: decides every random choice; the random state outside is untouched.

    Returns:
        The record "bridge", in nats per datum, or of the data set where the data share latents.
        Its `ess` and `k_hat` are those of the bridge's terms, of the worse side; see
        `OptimalBridge`.

    Raises:
        ValueError: as `log_weights`; a guide that cannot score what it did not draw; draws that
            are not of this model's latents; a bad option.
    """
    if fit_guide not in (None, "forward") or (fit_guide and guide is None):
        raise ValueError(f'expected fit_guide None, or "forward" with a guide, got {fit_guide!r}')
    if num_particles is not None and num_particles < 4:
        raise ValueError(f"expected num_particles of at least 4, got {num_particles}")
    x = as_data(x)
    model, guide = takes(model, x), None if guide is None else takes(guide, x)
    check_data(x)
    if guide is not None:
        expect_sound_pair(model, guide, x)
    with annealing_mode(model, guide, seed, x.device) as refuse_new_parameters:
        path = path_of(model, guide, x)
        if guide is None:
            expect_sound_model(model, x)
        refuse_new_parameters()
    draws = nuts_reference(model, x, seed=seed) if draws is None else draws
    with annealing_mode(model, guide, seed, x.device):
        found = PosteriorDraws(draws, path)
        size = num_particles or found.num_chains * found.num_draws
        u = found.located(path)
        parts = list(_bridged(path, found, u, fit_guide, size, _rows(path, chunk_size)))
    record = _record(path, found, parts)
    return dataclasses.replace(record, caveat=caveat_of(parts, u) or record.caveat)


def _rows(path: AbstractPath, chunk_size: int) -> int:
    """How many draws are scored at a time."""
    if chunk_size < 1:
        raise ValueError(f"expected chunk_size of at least 1, got {chunk_size}")
    size = len(path.x)
    most = _MOST_NUMBERS // size if path.layout.is_joint else chunk_size // size
    return max(1, min(chunk_size, most))


def _bridged(
    path: AbstractPath,
    draws: PosteriorDraws,
    u: Tensor,
    fit_guide: Fit | None,
    size: int,
    rows: int,
) -> Iterator[Bridged]:
    """One bridge of all draws, or two with proposals that the draws did not fit."""
    if isinstance(path, GuidePath) and fit_guide is None:
        yield _bridge(path, u, size, rows)
        return
    middle = draws.num_draws // 2
    halves = slice(0, middle), slice(middle, None)
    for bridged, fitted in (halves, halves[::-1]):
        if isinstance(path, GuidePath):
            proposal = fitted_guide(path, draws, fitted)
            yield _bridge(proposal, draws.located(proposal, bridged), size // 2, rows)
        else:
            yield _bridge(Normal(path, u[:, fitted]), u[:, bridged], size // 2, rows)


def _bridge(proposal: Proposal, u: Tensor, size: int, rows: int) -> Bridged:
    """Between posterior draws `[C, N, B, Z]` and as many of the proposal as are wanted."""
    at_proposal = proposal.sample(size)
    ratios = _log_ratios(proposal, u.flatten(0, 1), rows).unflatten(0, u.shape[:2])
    return Bridged.between(u, ratios, at_proposal, _log_ratios(proposal, at_proposal, rows))


def _log_ratios(proposal: Proposal, u: Tensor, rows: int) -> Tensor:
    """Log p(x, u) − log q(u) at `[S, B, Z]`, some at a time: `[S, M]`."""
    parts = [proposal(some) for some in u.split(rows)]
    ratios = torch.cat([part.log_p_xz.double() - part.log_q_z.double() for part in parts])
    check_log_weights(-ratios.nan_to_num(nan=torch.nan, posinf=0.0, neginf=0.0))
    return ratios


def _record(path: AbstractPath, draws: PosteriorDraws, parts: Sequence[Bridged]) -> Evidence:
    bridge = OptimalBridge.average([part.bridge for part in parts])
    return Evidence(
        "bridge",
        len(bridge.at_proposal),
        bridge.log_px,
        bridge.variance,
        bridge.ess,
        bridge.k_hat,
        dtype=parts[0].u_proposal.dtype,
    ).of(draws.share_on_edge, len(path.x) if path.layout.is_joint else None)
