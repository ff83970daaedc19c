"""Simulation-based calibration: whether a guide's posteriors are right on the model's own data."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.diagnostics.uniformity import (
    rank_counts,
    simultaneous_band,
    uniformity_p_value,
)
from evidence.inference.programs.data import Batch, as_data, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE, Block, Record, visit_draws
from evidence.inference.programs.enumeration import given, trace_summed_out
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.per_datum import expect_per_datum
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.simulation import device_of, simulate
from evidence.inference.programs.traces import Layout, Program, random_sites

LOG_P_X = "log p(x | z)"
LOG_Q_Z = "log q(z | x)"


@dataclass(frozen=True)
class Coverage:
    """How often the truth lies in the guide's regions of highest density.

    Args:
        nominal: the mass that the guide gives to the region `[K]`.
        estimate: the share of simulations whose truth lies inside `[K]`.
        se: standard error of `estimate` if the guide is calibrated `[K]`.
    """

    nominal: np.ndarray
    estimate: np.ndarray
    se: np.ndarray

    @property
    def z_scores(self) -> np.ndarray:
        """(estimate − nominal) / se: below −5 the guide is overconfident, above 5 too wide."""
        return (self.estimate - self.nominal) / self.se


@dataclass(frozen=True)
class Calibration:
    """Ranks of the truth among draws from the guide; uniform on 0..L if the guide is exact.

    Ranks piled up at both ends mean a guide too narrow, in the middle one too wide, to one side
    one that is biased.

    Args:
        ranks: for every quantity, such as "z[0]", the rank in each simulation, `[N]`.
        num_draws: L, draws per simulation.
    """

    ranks: dict[str, Tensor]
    num_draws: int

    @property
    def num_simulations(self) -> int:
        """N."""
        return len(next(iter(self.ranks.values())))

    @cached_property
    def p_values(self) -> dict[str, float]:
        """For every quantity, how often an exact guide's ranks would stray as far."""
        return {n: uniformity_p_value(r.numpy(), self.num_draws) for n, r in self.ranks.items()}

    def passed(self, level: float = 0.999) -> dict[str, bool]:
        """Whether each quantity's ranks are inside the simultaneous band of this level.

        An exact guide fails 1 − level of these checks: with many quantities, raise the level.
        """
        return {name: p_value >= 1 - level for name, p_value in self.p_values.items()}

    def ecdf(self, quantity: str) -> np.ndarray:
        """Share of ranks below k = 1 … L: `[L]`; k / (L + 1) in expectation."""
        return rank_counts(self.ranks[quantity].numpy(), self.num_draws) / self.num_simulations

    def band(self, level: float = 0.999) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the band around `ecdf` of any quantity, `[L]` each."""
        lower, upper = simultaneous_band(self.num_simulations, self.num_draws, level)
        return lower / self.num_simulations, upper / self.num_simulations

    def coverage(self, nominal: Sequence[float] | np.ndarray = (0.5, 0.8, 0.9, 0.95)) -> Coverage:
        """Expected coverage of the regions {z: log q(z | x) > c} of these masses.

        Masses are rounded to multiples of 1 / (L + 1), at which the check is exact.

        Reference: J. Hermans et al., "A Trust Crisis In Simulation-Based Inference? Your Posterior
        Approximations Can Be Unfaithful", 2022, https://arxiv.org/abs/2110.06581, section 2.

        Raises:
            ValueError: the guide could not be scored at the truth.
        """
        if LOG_Q_Z not in self.ranks:
            raise ValueError(
                "the guide cannot score a given z, so its regions of highest density are unknown: "
                "give it a posterior(x) with a log_prob of any z"
            )
        cells = self.num_draws + 1
        whole = np.clip(np.rint(np.asarray(nominal) * cells), 1, self.num_draws)
        denser = self.num_draws - self.ranks[LOG_Q_Z].numpy()  # draws of higher density
        estimate = (denser < whole[:, None]).mean(1)
        mass = whole / cells
        return Coverage(mass, estimate, np.sqrt(mass * (1 - mass) / self.num_simulations))

    def __str__(self) -> str:
        passed = self.passed()
        lines = [f"{self.num_simulations} simulations, {self.num_draws} draws each"]
        lines += [
            f"{name}: {'inside' if passed[name] else 'OUTSIDE'} the 99.9% band, p = {p:.2g}"
            for name, p in self.p_values.items()
        ]
        return "\n".join(lines)


def simulation_based_calibration(
    model: Program,
    guide: Program,
    *,
    num_simulations: int = 1000,
    num_draws: int = 99,
    x: Batch | None = None,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    seed: int = 0,
    progress: bool = False,
) -> Calibration:
    """Rank z* of (z*, x*) ~ p(z, x) among L draws from q(z | x*), over N simulations.

    Quantities are every entry of every latent, and two that depend on the data: log p(x* | z),
    which catches a guide that ignores the data (its latents' ranks are uniform, as the prior's
    are), and log q(z | x*), for `Calibration.coverage`.

    References: S. Talts et al., "Validating Bayesian Inference Algorithms with Simulation-Based
    Calibration", 2018, https://arxiv.org/abs/1804.06788, algorithm 1; M. Modrák et al.,
    "Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities
    Shapes Sensitivity", 2023, https://arxiv.org/abs/2211.02383.

    Args:
        model: called with a batch, scores it; called as `model(None, size=N)`, simulates one.
        guide: called with a batch; samples every latent of the model.
        num_simulations: N.
        num_draws: L.
        x: a batch `[B, *data_shape]` to simulate another one like, for a model that cannot be
            called with a size; its rows are used in turn.
        chunk_size: particles × data in one call.
        seed: decides all draws; the state outside is untouched.
        progress: show a progress bar.

    Raises:
        ValueError: as `log_weights`; or the model cannot be simulated.
    """
    for name, number in (("num_simulations", num_simulations), ("num_draws", num_draws)):
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}")
    if x is not None:
        x = as_data(x)
        model, guide = takes(model, x), takes(guide, x)
    with isolated_rng(seed, device_of(model, x)):
        truth, data = simulate(model, num_simulations, x)
        record = Record(num_draws, num_simulations)

        def visit(block: Block) -> None:
            for name, value in _quantities(block).items():
                record.put(name, block, value)

        expect_per_datum(model, guide, data[:64], "simulation-based calibration")
        layout = visit_draws(
            model, guide, data, num_draws, visit, progress=progress, chunk_size=chunk_size
        )
        values = _at_truth(model, guide, data, truth, layout)
        ranks = {n: _ranks(record.tensors[n], v) for n, v in values.items()}
    return Calibration(_by_entry(ranks), num_draws)


def _quantities(block: Block) -> dict[str, Tensor]:
    """All that is ranked, `[s, b, ...]` each."""
    terms, latents = block.terms, block.latents
    values = {name: block.value(site) for name, site in latents.items()}
    return {**values, LOG_P_X: terms.log_p_x, LOG_Q_Z: terms.log_q_z}


@torch.no_grad()
def _at_truth(
    model: Program, guide: Program, data: Batch, truth: Trace, layout: Layout
) -> dict[str, Tensor]:
    """All that is ranked, at the truth, `[N, ...]` each."""
    size = len(data)
    with evaluation_mode(model, guide):
        scored = trace_summed_out(model, data, given(truth))
        block = Block(slice(0, 1), slice(0, size), data, truth, scored, layout)
        values = {name: block.value(site)[0] for name, site in block.latents.items()}
        observed = (block.log_prob(site)[0] for site in block.observed.values())
        log_q_z = _guide_at(guide, truth, block, values)
    values[LOG_P_X] = sum(observed, torch.zeros(()))
    return values if log_q_z is None else {**values, LOG_Q_Z: log_q_z}


def _guide_at(
    guide: Program, truth: Trace, block: Block, values: dict[str, Tensor]
) -> Tensor | None:
    """Log q(z* | x*) `[N]`, or None from a guide that cannot score a given z."""
    try:
        trace = poutine.trace(poutine.replay(guide, trace=truth)).get_trace(block.x)
        sites = random_sites(trace)
        if sites.keys() == values.keys():
            return sum((block.log_prob(s)[0] for s in sites.values()), torch.zeros(()))
        return _packed_log_prob(guide, block.x, values)
    except (NotImplementedError, KeyError):  # what Pyro's flows without an inverse raise
        return None


def _packed_log_prob(guide: Program, x: Batch, values: dict[str, Tensor]) -> Tensor | None:
    """By `guide.posterior(x)`, over all sites side by side as `guide.site_values` splits them.

    Such a guide draws one auxiliary vector, and its sites only repeat its parts.
    """
    posterior, split = (getattr(guide, name, None) for name in ("posterior", "site_values"))
    if posterior is None or split is None:
        return None
    density = posterior(x)
    order = split(density.sample())
    return density.log_prob(torch.cat([values[name].flatten(1) for name in order], -1))


def _ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """How many draws are below the truth, ties broken at random: `[L, N, ...] -> [N, ...]`."""
    below, equal = (draws < truth).sum(0), (draws == truth).sum(0)
    return (below + (torch.rand(equal.shape).to(equal.device) * (equal + 1)).long()).cpu()


def _by_entry(ranks: dict[str, Tensor]) -> dict[str, Tensor]:
    """One name per entry of a site: `{"z": [N, 2]} -> {"z[0]": [N], "z[1]": [N]}`."""
    entries: dict[str, Tensor] = {}
    for name, rank in ranks.items():
        for index in np.ndindex(*rank.shape[1:]):
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            entries[label] = rank[(slice(None), *index)]
    return entries
