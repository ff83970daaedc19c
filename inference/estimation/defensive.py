"""Importance weights under a mixture of the guide, the guide stretched, and the prior."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from evidence.inference.estimation.unknown import Unknown
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.draws import slices
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.precision import fast_matmul

_NUM_STRETCHED = 3
# Of the share: where a posterior has the prior's tails, as a funnel does, more of it makes those of
# the weights lighter; elsewhere more of the stretched guide does.
_OF_PRIOR = 1 / 3
_WIDEST_STEP = 1.5
_PILOT = 200  # draws of the guide, whose median is the centre that it is stretched about
_OTHERWISE = "leave the guide undefended (defensive=0)"


class Defended(NamedTuple):
    """Weights under the mixture, those of the guide's own draws first.

    Args:
        log_w: log p(x, z) − log of the mixture's density `[S, M]`, in nats.
        log_ratio: log p(x, z) − log q(z | x) at the same draws, as the guide alone is weighted.
        counts: draws of every component of the mixture, in their order; the first of the guide.
        caveat: what to say of draws at which the log joint is no number, or None.
    """

    log_w: Tensor
    log_ratio: Tensor
    counts: tuple[int, ...]
    caveat: str | None

    @property
    def of_guide(self) -> Tensor:
        """The plain log-weights of the guide's own draws."""
        return self.log_ratio[: self.counts[0]]


def defensive_log_weights(
    model: Program,
    guide: Program,
    x: Batch,
    num_particles: int,
    *,
    share: float,
    chunk_size: int,
) -> Defended:
    """Log p(x, z) less the log-density of a mixture with the guide, of which it is 1 − α.

    A third of α is the prior's. A guide that is too narrow has weights without a bound, and of
    infinite variance where it is narrower by √2; these are at most 3 max_z p(x | z)/α, whatever
    the guide. But where the posterior is far narrower than the prior, no draw of the prior comes
    near it. The rest are therefore draws u of the guide moved away from their centre m, to
    m + c (u − m), of density c^−D q(m + (u − m)/c): scales c > 1 mixed make tails as heavy as a
    Student's t. Stretching all of D dimensions by more than they need costs about D log²c nats, so
    that scales are powers of 1 + 1/√D, or of 1.5 where that is less. All in unconstrained
    coordinates, the guide's own; m is the median of other draws of the guide.

    As many draws come from every component as the mixture has of it: by the balance heuristic each
    has the weight p(x, z) over the mixture, wherever it comes from.

    Reference: D. Andrews, C. Mallows, "Scale Mixtures of Normal Distributions", 1974,
    https://doi.org/10.1111/j.2517-6161.1974.tb00989.x; T. Hesterberg, "Weighted Average Importance
    Sampling and Defensive Mixture Distributions", 1995,
    https://doi.org/10.1080/00401706.1995.10484303; A. Owen, Y. Zhou, "Safe and Effective Importance
    Sampling", 2000, https://doi.org/10.1080/01621459.2000.10473909.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model, scores any value of it.
        x: data `[B, *data_shape]`.
        num_particles: S, draws of all.
        share: α, between 0 and 1; at least one draw comes from every component.
        chunk_size: see `log_weights`.

    Raises:
        ValueError: a share that is none; a guide that cannot score what it did not draw.
    """
    counts = _counts(num_particles, share)
    with (
        evaluation_mode(model, guide) as refuse_new_parameters,
        fast_matmul(x.device),
        torch.no_grad(),
    ):
        path = GuidePath(model, guide, x, otherwise=_OTHERWISE)
        refuse_new_parameters()
        return _Mixture(path, counts, max(1, chunk_size // len(x))).weighed()


def stretches(dim: int) -> list[float]:
    """The scales c by which a guide of so many dimensions is stretched, from the least on."""
    step = min(1 + 1 / math.sqrt(dim), _WIDEST_STEP)
    return [step**power for power in range(1, _NUM_STRETCHED + 1)]


def _counts(num_particles: int, share: float) -> tuple[int, ...]:
    """Draws of the guide, of each of the stretched ones, and of the prior."""
    if not 0 < share < 1:
        raise ValueError(f"expected defensive between 0 and 1, got {share}")
    if num_particles < _NUM_STRETCHED + 2:
        raise ValueError(
            f"expected {_NUM_STRETCHED + 2} or more particles of a mixture, got {num_particles}"
        )
    of_prior = max(1, round(_OF_PRIOR * share * num_particles))
    of_each = max(1, round((1 - _OF_PRIOR) * share * num_particles / _NUM_STRETCHED))
    of_guide = num_particles - of_prior - _NUM_STRETCHED * of_each
    while of_guide < 1:  # by rounding, of a share near one
        of_each, of_guide = of_each - 1, of_guide + _NUM_STRETCHED
    return (of_guide, *[of_each] * _NUM_STRETCHED, of_prior)


class _Mixture:
    """Draws of the components, and their weights, so many rows at a time."""

    def __init__(self, path: GuidePath, counts: tuple[int, ...], rows: int) -> None:
        self.path, self.counts, self.rows = path, counts, rows
        self.scales, self.dims = stretches(path.dim), path.num_scored()
        pilot = [path.sample(some.stop - some.start) for some in slices(_PILOT, rows)]
        self.center = torch.cat(pilot).nanmedian(0, keepdim=True).values  # [1, B, Z]
        self.unknown = Unknown(path)

    def weighed(self) -> Defended:
        """The weights of all draws."""
        log_w, log_ratio = [], []
        for component, count in enumerate(self.counts):
            for some in slices(count, self.rows):
                u = self._sample(component, some.stop - some.start)
                weights = self._weights(u)
                # What the guide draws itself must be a number.
                log_w.append(self.unknown.zeroed(weights[0], u) if component else weights[0])
                log_ratio.append(weights[1])
        ratio = torch.cat(log_ratio)
        return Defended(torch.cat(log_w), ratio, self.counts, self.unknown.caveat(ratio.numel()))

    def _sample(self, component: int, number: int) -> Tensor:
        """So many draws `[C, B, Z]` of one component."""
        if component > _NUM_STRETCHED:
            return self.path.sample_prior(number)
        u = self.path.sample(number)
        return u if component == 0 else self._about(u, self.scales[component - 1])

    def _about(self, u: Tensor, scale: float) -> Tensor:
        return self.center + scale * (u - self.center)

    def _weights(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Log-weights under the mixture, and under the guide alone, at u `[C, B, Z]`: `[C, B]`.

        NaN where u is.
        """
        is_lost = u.isnan().any(-1)
        u = torch.where(is_lost.unsqueeze(-1), self.center, u)
        log_q, log_p_z, log_p_x = self.path.parts(u)
        log_p_xz = log_p_z.double() + log_p_x
        densities = [log_q.double(), *self._log_stretched(u), log_p_z.double()]
        shares = [math.log(count / sum(self.counts)) for count in self.counts]
        parts = [share + log_f for share, log_f in zip(shares, densities, strict=True)]
        mixed = torch.stack(parts).logsumexp(0)
        # A density of +inf would pass for a weight of zero.
        mixed = torch.where(mixed == math.inf, math.nan, mixed)
        log_w = torch.where(log_p_x.isneginf(), -math.inf, log_p_xz - mixed)
        log_w, log_ratio = log_w.to(log_q), (log_p_xz - log_q).to(log_q)
        return log_w.masked_fill(is_lost, math.nan), log_ratio.masked_fill(is_lost, math.nan)

    def _log_stretched(self, u: Tensor) -> list[Tensor]:
        """Log-densities of the stretched guides at u, each `[C, B]`."""
        behind = torch.cat([self._about(u, 1 / scale) for scale in self.scales])
        log_q = self.path.log_q(behind).double().split(len(u))
        return [part - self.dims * math.log(c) for part, c in zip(log_q, self.scales, strict=True)]
