"""Evidence by bridge sampling between draws from the posterior and a proposal."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from evidence.inference.bridging.checks import Bridged, caveat_of
from evidence.inference.bridging.posterior_draws import Draws, PosteriorDraws
from evidence.inference.bridging.proposals import Normal, fitted_guide
from evidence.inference.estimation.annealed import annealing_mode
from evidence.inference.estimation.evidence import Evidence
from evidence.inference.estimation.unknown import Unknown, unknown_beside
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.paths.log_joint import PriorPath
from evidence.inference.paths.reference import nuts_reference
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import Batch, Program, as_data, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE
from evidence.inference.programs.parameters import evaluation_store
from evidence.inference.programs.precision import in_double
from evidence.inference.soundness.pairs import expect_sound_model, expect_sound_pair

Fit = Literal["forward"]

_FEWEST = 16  # draws of a proposal
_MOST_NUMBERS = 2**21  # draws × data at a time, where the data share latents


class Proposal(Protocol):
    """A density to draw from, in the unconstrained coordinates of a path."""

    def sample(self, num_chains: int) -> Tensor:
        """Independent draws `[S, B, Z]`."""
        ...

    def __call__(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log q and log p(x, ·) at places `[S, B, Z]`, each `[S, M]`, in nats."""
        ...


def bridge_evidence(
    model: Program,
    guide: Program | None,
    x: Batch,
    *,
    draws: Draws | None = None,
    fit_guide: Fit | None = None,
    crossfit: bool = False,
    num_particles: int | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    seed: int = 0,
) -> Evidence:
    """Log p(x) by Meng and Wong's optimal bridge between posterior draws and a proposal.

    The proposal is the guide, as it is: then it must not have been fitted to these draws. Or it is
    fitted to the second half of every chain and bridged with the first: without a guide a
    multivariate normal in unconstrained space by its moments, and with `fit_guide="forward"` a copy
    of the guide by forward KL.

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
        draws: from p(z | x): a `Reference`, what `smc` returns, an ArviZ object, or values by site,
            `[chains, draws, ...]` or `[draws, ...]`, in the model's own space. None for those of
            `nuts_reference`.
        fit_guide: "forward" to fit a copy of the guide, a module, to half of the draws.
        crossfit: of a proposal that is fitted, fit another one to the first halves, bridge it with
            the second, and average. The error bar stays that of a single one, as good proposals
            make the same errors twice.
        num_particles: S, draws from a proposal; by default as many as are bridged of the posterior.
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
    how = How(fit_guide, crossfit, num_particles, chunk_size, is_given=guide is not None)
    x = as_data(x)
    model, guide = takes(model, x), None if guide is None else takes(guide, x)
    check_data(x)
    if guide is not None:
        expect_sound_pair(model, guide, x)
    # Draws that were made with the same seed must have nothing in common with the proposal's.
    with annealing_mode(model, guide, seed * 1_000_003 + 999_983, x.device) as refuse_new:
        path = PriorPath(model, x) if guide is None else GuidePath(model, guide, x)
        if guide is None:
            expect_sound_model(model, x)
        refuse_new()
        draws = nuts_reference(model, x, seed=seed) if draws is None else draws
        found = PosteriorDraws(draws, path)
        u = found.located(path)
        unknown = Unknown(path)
        parts = list(_bridges(path, found, u, how, unknown))
        before = path.num_evaluations
        caveat = unknown_beside(path, u.flatten(0, 1))
        num_looks = path.num_evaluations - before
        caveat = caveat or unknown.caveat(sum(len(part.of_proposal) for part in parts))
        caveat = caveat or caveat_of(parts, found.of_chains_that_mix(u))
    record = _record(path, found, parts, num_looks)
    return dataclasses.replace(record, caveat=caveat or record.caveat)


@dataclass(frozen=True)
class How:
    """The options of a bridge; see `bridge_evidence`."""

    fit_guide: Fit | None
    crossfit: bool
    num_particles: int | None
    chunk_size: int
    is_given: bool  # whether there is a guide

    def __post_init__(self) -> None:
        if self.fit_guide not in (None, "forward") or (self.fit_guide and not self.is_given):
            raise ValueError(
                f'expected fit_guide None, or "forward" with a guide, got {self.fit_guide!r}'
            )
        if self.crossfit and self.is_given and self.fit_guide is None:
            raise ValueError(
                'expected crossfit of a proposal that is fitted: no guide, or fit_guide="forward"'
            )
        if self.num_particles is not None and self.num_particles < _FEWEST:
            raise ValueError(
                f"expected num_particles of at least {_FEWEST}, got {self.num_particles}"
            )
        if self.chunk_size < 1:
            raise ValueError(f"expected chunk_size of at least 1, got {self.chunk_size}")

    def rows(self, path: PriorPath | GuidePath) -> int:
        """How many draws are scored at a time."""
        size = len(path.x)
        most = _MOST_NUMBERS if path.layout.is_joint else self.chunk_size
        return max(1, min(self.chunk_size, most // size))


def _bridges(
    path: PriorPath | GuidePath, draws: PosteriorDraws, u: Tensor, how: How, unknown: Unknown
) -> Iterator[Bridged]:
    """Of all draws with the guide; or of those halves that did not fit the proposal."""
    rows = how.rows(path)
    if isinstance(path, GuidePath) and how.fit_guide is None:
        yield _bridge(path, u, rows, how, unknown)
        return
    middle = draws.num_draws // 2
    halves = slice(0, middle), slice(middle, None)
    for bridged, fitted in (halves, halves[::-1])[: 1 + how.crossfit]:
        if isinstance(path, GuidePath):
            with evaluation_store():  # a copy of a Pyro module has the names of the first one
                proposal = fitted_guide(path, draws, fitted)
                yield _bridge(proposal, draws.located(proposal, bridged), rows, how, unknown)
        else:
            yield _bridge(Normal(path, u[:, fitted]), u[:, bridged], rows, how, unknown)


def _bridge(proposal: Proposal, u: Tensor, rows: int, how: How, unknown: Unknown) -> Bridged:
    """Between posterior draws `[C, N, B, Z]` and as many of the proposal as are wanted.

    Where the proposal alone comes the log joint may be NaN, and counts as zero; see `Unknown`.
    """
    of_posterior = u.flatten(0, 1)
    of_proposal = proposal.sample(how.num_particles or len(of_posterior))
    at_posterior = log_ratios(proposal, of_posterior, rows).unflatten(0, u.shape[:2])
    at_proposal = unknown.zeroed(_log_ratios(proposal, of_proposal, rows), of_proposal)
    return Bridged.between(u, at_posterior, of_proposal, at_proposal)


def log_ratios(proposal: Proposal, u: Tensor, rows: int) -> Tensor:
    """Log p(x, u) − log q(u) at draws `[S, B, Z]`, so many rows at a time: `[S, M]`.

    Raises:
        ValueError: one is NaN.
    """
    ratios = _log_ratios(proposal, u, rows)
    if share := ratios.isnan().double().mean().item():
        raise ValueError(
            f"the log joint, or the density of the proposal, is NaN at {share:.1%} of the draws: "
            f"{in_double(u.dtype)}"
        )
    return ratios


def _log_ratios(proposal: Proposal, u: Tensor, rows: int) -> Tensor:
    """The same, some of them NaN."""
    parts = [proposal(some) for some in u.split(rows)]
    return torch.cat([log_p.double() - log_q.double() for log_q, log_p in parts])


def _record(
    path: PriorPath | GuidePath, draws: PosteriorDraws, parts: Sequence[Bridged], num_looks: int
) -> Evidence:
    bridges = [part.bridge for part in parts]
    number = sum(part.of_posterior[..., 0].numel() + len(part.of_proposal) for part in parts)
    cost = None
    if draws.num_evaluations is not None:
        cost = draws.num_evaluations + number * draws.num_weights + num_looks
    return Evidence(
        "bridge",
        sum(len(bridge.at_proposal) for bridge in bridges),
        torch.stack([bridge.log_px for bridge in bridges]).mean(0),
        torch.stack([bridge.variance for bridge in bridges]).mean(0),
        torch.stack([bridge.ess for bridge in bridges]).amin(0),
        torch.stack([bridge.k_hat for bridge in bridges]).amax(0),
        dtype=parts[0].u_proposal.dtype,
        num_evaluations=cost,
    ).of(draws.share_on_edge, len(path.x) if path.layout.is_joint else None)
