"""About how long a command will take, told before it starts: short timings, scaled up."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from evidence.experiments.config import Compare, Estimation, Experiment
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.catalogue import objective_of
from evidence.experiments.setup.estimators import num_chains
from evidence.inference import NotConvergedWarning, estimate_evidence, fit
from evidence.inference.annealing.pilot import NUM_WARMUP_STEPS
from evidence.inference.annealing.smc_options import SMCOptions
from evidence.inference.paths.guide_path import path_of
from evidence.inference.programs.data import Batch, Program, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.training.options import USUAL
from evidence.inference.training.stopping import UntilFlat

_SHORT = 10  # seconds that need no number
_TIMED_DATA = 9
_TIMED_BATCHES = 2
_FEWEST_STEPS = 11 * UntilFlat().steps_per_look  # ten looks without gain, after one
_FEWEST_AVERAGED = 400  # two averages of eight blocks of 25
_PILOT = 200  # temperatures of `anneal`'s pilot run
_FEWEST = 200  # particles of the first round of an adaptive number
_CHAINS = 4  # of NUTS
# Gradients at the least and at the most: of all chains of sequential Monte Carlo together, pilot
# run and temperatures, and of a step of NUTS.
_STEPS = {"smc": (300, 6000), "bridge": (3, 31)}


Span = tuple[float, float]


def told(what: str, seconds: Span) -> str:
    """A sentence with the least and the most that something will take."""
    least, most = (_rounded(value) for value in seconds)
    if seconds[1] < _SHORT:
        span = f"less than {_SHORT} seconds"
    elif least == most:
        span = f"about {most}"
    else:
        span = f"between about {least} and {most}, by how much it turns out to need"
    return f"{what} will take {span} (from a short timing on this machine)"


def _rounded(seconds: float) -> str:
    if seconds < 100:
        return f"{10 * max(1, round(seconds / 10))} seconds"
    if seconds < 100 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


def evaluation_seconds(
    model: nn.Module,
    guide: nn.Module,
    x: Batch,
    config: Estimation,
    *,
    is_joint: bool = False,
) -> Span:
    """The least and the most that an evaluation of `x` takes, as far as a short timing tells."""
    weigh = _weighting_at_once if is_joint else _weighting
    with isolated_rng(0, x.device):
        least = most = 0.0
        if config.target_se is None:
            least = most = weigh(model, guide, x, config.num_particles)
        elif config.estimator != "elbo":
            least = weigh(model, guide, x, _FEWEST)
            most = least * max(1.0, config.max_particles / _FEWEST)
        if config.estimator in ("ais", "bdmc"):
            per_step = _annealing(model, guide, x, config, at_once=is_joint)
            least, most = least + per_step, most + per_step * config.num_leapfrog_steps
        if config.estimator in _STEPS:
            few, many = _sampling(model, guide, x, config, at_once=is_joint)
            least, most = least + few, most + many
    return least, most


def _weighting(model: Any, guide: Any, x: Batch, num_particles: int) -> float:
    """Of all data, by one and by a few of them: checks of the pair take the same time for any."""

    def seconds(few: Batch) -> float:
        return _timed(lambda: estimate_evidence(model, guide, few, num_particles))

    few = x[:_TIMED_DATA]
    with torch.no_grad():
        one, several = seconds(x[:1]), seconds(few)
    per_datum = max(several - one, 0.0) / max(len(few) - 1, 1)
    return several + per_datum * (len(x) - len(few))


def _weighting_at_once(model: Any, guide: Any, x: Batch, num_particles: int) -> float:
    """Of a data set with one weight for all data."""
    with torch.no_grad():
        return _timed(lambda: estimate_evidence(model, guide, x, num_particles))


def _annealing(model: Any, guide: Any, x: Batch, config: Estimation, *, at_once: bool) -> float:
    """Of a gradient per step; a step takes up to L gradients."""
    start = takes(guide, x) if config.start == "guide" else None
    count = num_chains(config, is_joint=at_once)
    seconds = _gradient(takes(model, x), start, x, count, at_once=at_once)
    directions = 2 if config.estimator == "bdmc" else 1
    steps = NUM_WARMUP_STEPS + _PILOT + directions * config.num_temperatures
    return seconds * steps


def _sampling(model: Any, guide: Any, x: Batch, config: Estimation, *, at_once: bool) -> Span:
    """Of what finds out by itself how many gradients it takes."""
    takes_islands = config.estimator == "smc"
    start = takes(guide, x) if takes_islands and config.start == "guide" else None
    path = path_of(takes(model, x), start, x if at_once else x[:1])
    count = SMCOptions(num_chains=config.num_chains).chains(path) if takes_islands else 1
    seconds = _gradient(takes(model, x), start, x, count, at_once=at_once)
    steps = 1 if takes_islands else _CHAINS * (config.num_warmup + config.num_samples)
    few, many = _STEPS[config.estimator]
    return seconds * steps * few, seconds * steps * many


def _gradient(
    model: Program, start: Program | None, x: Batch, count: int, *, at_once: bool
) -> float:
    """Of so many chains of all data, by one block of data."""
    few = x if at_once else x[: max(1, DEFAULT_CHUNK_SIZE // count)]
    path = path_of(model, start, few)
    z = path.sample(count)
    return _timed(lambda: path.state(z)) * len(x) / len(few)


def fit_seconds(
    pairs: Mapping[str, Assembly], config: Compare
) -> dict[str, tuple[Span, Span]] | None:
    """Of every guide, the least and the most that its training, and its evaluation, takes.

    None where the timing itself fails: what is wrong shows soon, and in better words.
    """
    try:
        return {
            label: (_training(pair, config), _evaluation(pair, config))
            for label, pair in pairs.items()
        }
    except ValueError:
        return None


def _evaluation(pair: Assembly, config: Compare) -> Span:
    x = pair.x_test if config.num_data is None else pair.x_test[: config.num_data]
    return evaluation_seconds(pair.model, pair.guide, x, config, is_joint=pair.is_joint)


def _training(pair: Assembly, config: Experiment) -> Span:
    """Of all epochs, or until a rule ends training, by a few steps, which train the pair."""
    x, size = pair.x_train, config.batch_size or USUAL["batch_size"]
    is_guided = config.scheduler is not None or config.held_out > 0 or config.lr_decay != 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotConvergedWarning)  # these few steps are no training
        history = fit(
            pair.model,
            pair.guide,
            x if pair.is_joint else x[: _TIMED_BATCHES * size],
            num_epochs=None if config.num_epochs is None else 2,
            until=UntilFlat() if is_guided else None,
            max_steps=2 * _TIMED_BATCHES,
            batch_size=config.batch_size,
            lr=config.lr,
            objective=objective_of(config.objective),
            transform=pair.transform,
            progress=False,
        )
    per_step = history.epochs[-1].seconds / history.epochs[-1].num_steps
    if config.num_epochs is None:
        fewest = _FEWEST_AVERAGED if pair.is_joint and not is_guided else _FEWEST_STEPS
        return per_step * min(fewest, config.max_steps), per_step * config.max_steps
    steps = math.ceil(len(x) / size) * config.num_epochs
    return per_step * steps, per_step * steps


def _timed(call: Callable[[], Any]) -> float:
    """Seconds of a second call: the first one warms up."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
