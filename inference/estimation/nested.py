"""Evidence by nested sampling: a second opinion, from a sampler that others keep."""

import bisect
import math
import warnings
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from evidence.inference.estimation.evidence import Evidence
from evidence.inference.paths.cube import CubePath
from evidence.inference.paths.isolation import annealing_mode
from evidence.inference.programs.checks import check_data
from evidence.inference.programs.data import as_data, takes
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program
from evidence.inference.soundness.pairs import expect_sound_model

Sample = Literal["auto", "unif", "rwalk", "slice", "rslice"]

# Chance of the ranks of new points, if they are drawn rightly, below which they are not.
_BY_CHANCE = 1e-3
_DRAWS = 100  # of the posterior, to see whether they are on the edge of a support
_LEFT = 0.01  # nats that the live points may hold of the evidence when it ends
_FEWEST = 20  # live points


def nested_evidence(
    model: Program,
    data: Any,
    *,
    num_live: int = 500,
    sample: Sample = "auto",
    max_evaluations: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Evidence:
    """Log p(x) by nested sampling, with dynesty: `pip install 'evidence[nested]'`.

    Live points are drawn from the prior; time and again that of the lowest likelihood is replaced
    by a draw of the prior above it, and the evidence is the integral of these likelihoods over the
    prior mass that is left, which shrinks by a known share. It knows neither gradients nor
    temperatures, so that its errors have little in common with those of the other estimators; it
    runs one point at a time, and the number of evaluations grows fast with the latents (20 or so).

    The error bar is dynesty's own: that of the prior masses. New points that are no draws above
    the likelihood of the one they replace bias the estimate, and no such error bar shows it: then
    their ranks among the live points are not uniform (Fowlie et al.), and the record is not
    reliable. A mode that no live point is in is found by nothing.

    References: J. Skilling, "Nested sampling for general Bayesian computation", 2006,
    https://doi.org/10.1214/06-BA127; J. S. Speagle, "dynesty", 2020,
    https://arxiv.org/abs/1904.02180; A. Fowlie, W. Handley, L. Su, "Nested sampling cross-checks
    using order statistics", 2020, https://arxiv.org/abs/2006.03371.

    Args:
        model: called with a batch; scores it. Its latents are continuous, or summed out, and their
            priors have quantiles: normals, gammas, betas, Student's t, Dirichlet, what is made of
            these by transforms, and all that have torch's `icdf`, given the latents before them.
        data: `[B, *data_shape]`; or several tensors, as a tuple or a mapping, see `fit`. Where each
            datum has latents of its own, it is sampled by itself, one after the other.
        num_live: live points; the error bar falls with their square root.
        sample: dynesty's way to draw new points: "unif" within ellipsoids, "rwalk" by random walks,
            "slice" or "rslice"; "auto" by the number of latents.
        max_evaluations: the most of the likelihood, of each datum; the record is then not reliable.
        seed: decides every random choice; the random state outside is untouched.
        progress: show a progress bar.

    Returns:
        The record "nested", in nats per datum, or of the data set where the data share latents.
        Its ESS is that of all points as draws from the posterior; it has no k̂.

    Raises:
        ValueError: bad options or data; a prior without quantiles; dynesty is not there.
    """
    dynesty = expect_dynesty()
    if num_live < _FEWEST:
        raise ValueError(f"expected num_live of at least {_FEWEST}, got {num_live}")
    x = as_data(data)
    model = takes(model, x)
    check_data(x)
    with (
        annealing_mode(model, None, seed, x.device) as refuse_new_parameters,
        tqdm(disable=not progress, unit="evaluation") as bar,
    ):
        whole = CubePath(model, x)
        expect_sound_model(model, x)
        refuse_new_parameters()
        is_joint = whole.layout.is_joint
        paths = [whole] if is_joint else [CubePath(model, row) for row in x.split(1)]
        found = [
            _Nested(dynesty, path, num_live, sample, max_evaluations, bar).run(seed + 7919 * number)
            for number, path in enumerate(paths)
        ]
    return Evidence.concatenate(found) if not is_joint else replace(found[0], data_set_size=len(x))


def expect_dynesty() -> ModuleType:
    """The package, which is an extra.

    Raises:
        ValueError: it is not there.
    """
    try:
        import dynesty  # noqa: PLC0415 (an extra, and slow to import)
    except ImportError:
        raise ValueError("nested sampling needs dynesty: pip install 'evidence[nested]'") from None
    return dynesty


@dataclass
class _Nested:
    """One run of dynesty."""

    dynesty: ModuleType
    path: CubePath
    num_live: int
    sample: Sample
    max_evaluations: int | None
    bar: Any

    def run(self, seed: int) -> Evidence:
        """The record of one path's data."""
        sampler = self.dynesty.NestedSampler(
            self._log_likelihood,
            np.copy,  # points of the cube are what the path takes
            self.path.dim,
            nlive=self.num_live,
            sample=self.sample,
            rstate=np.random.default_rng(seed),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bounds that are slow; ranks show what is wrong
            sampler.run_nested(
                dlogz=_LEFT, maxcall=self.max_evaluations, print_progress=False, save_bounds=False
            )
        found = sampler.results
        weights = torch.as_tensor(found.importance_weights())
        points = torch.as_tensor(found.samples_u)
        record = Evidence(
            "nested",
            len(weights),
            torch.tensor([found.logz[-1]]),
            torch.tensor([found.logzerr[-1] ** 2]),
            1 / weights.square().sum().reshape(1),
            torch.tensor([math.nan]),
            dtype=self.path.dtype,
            num_evaluations=self.path.num_evaluations,
        )
        record = record.of(self._share_on_edge(points, weights, seed), None)
        return replace(record, caveat=record.caveat or self._caveat(found))

    def _log_likelihood(self, v: np.ndarray) -> float:
        self.bar.update()
        z = torch.from_numpy(v).reshape(1, 1, -1).to(self.path.x.device)
        log_p = self.path(z)[1].item()
        if not log_p < math.inf:
            raise ValueError(
                f"the log-likelihood is {log_p} at a draw from the prior: the model is no density "
                "here, or float32 is too short for it: compute in double (x.double())"
            )
        return log_p

    def _share_on_edge(self, points: Tensor, weights: Tensor, seed: int) -> Tensor:
        with isolated_rng(seed):
            rows = weights.multinomial(_DRAWS, replacement=True)
        on_edge = self.path.on_edge(points[rows].unsqueeze(1).to(self.path.x.device))
        return on_edge.double().mean().reshape(1)

    def _caveat(self, found: Any) -> str | None:
        if self.max_evaluations is not None and found.ncall.sum() >= self.max_evaluations:
            return (
                f"it was stopped after {found.ncall.sum():,} evaluations, before the live points "
                "held a hundredth of the evidence: allow for more (max_evaluations)"
            )
        chance = insertion_chance(found.logl, found.samples_it, self.num_live)
        if chance < _BY_CHANCE:
            return (
                "new points are no draws of the prior above the likelihood of those they replace "
                f"(p = {chance:.0e} by their ranks): use more live points (num_live), or another "
                'way to draw them (sample="rslice")'
            )
        return None


def insertion_chance(log_likelihood: np.ndarray, born: np.ndarray, num_live: int) -> float:
    """How likely ranks of new among live points are to be as they are, by Kolmogorov and Smirnov.

    Args:
        log_likelihood: of all points `[N]`, in the order in which they went.
        born: in place of which of these, counted from 1, each point came `[N]`; 0 for the first.
        num_live: live points.

    Returns:
        A p-value; 1 where likelihoods are equal, as ranks then say nothing.
    """
    if len(np.unique(log_likelihood)) < len(log_likelihood):
        return 1.0
    live = [place for place, when in enumerate(born) if when == 0]
    ranks = []
    for place in np.argsort(born, kind="stable")[len(live) :]:
        while live and live[0] < born[place]:
            live.pop(0)
        ranks.append(bisect.bisect(live, place))
        live.insert(ranks[-1], int(place))
    return float(stats.kstest((np.array(ranks) + 0.5) / num_live, "uniform").pvalue)
