"""Several starts of training, of which the best goes on: for posteriors with several modes."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from evidence.inference.objectives.interface import Objective
from evidence.inference.programs.data import Batch, as_data
from evidence.inference.programs.parameters import tensors_of
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.traces import Program
from evidence.inference.programs.weights import log_prob_terms
from evidence.inference.training.fit import fit
from evidence.inference.training.non_finite import NonFiniteLossError
from evidence.inference.training.snapshots import copy_into

GuideModule = TypeVar("GuideModule", bound=torch.nn.Module)

_NUM_DRAWS = 256  # with which the starts are judged


def best_start(
    model: Program,
    make_guide: Callable[[int], GuideModule],
    data: Any,
    *,
    num_starts: int = 8,
    num_steps: int = 200,
    lr: float = 0.03,
    batch_size: int | None = None,
    objective: Objective | None = None,
    seed: int = 0,
) -> GuideModule:
    """Make a guide several times, train each a little, and keep the one with the highest ELBO.

    A guide of one mode stays at that where it starts, which need not be the largest. `fit` takes
    the kept one on to the end:

        guide = best_start(
            model, lambda seed: FullRank.for_model(model, data, seed=seed, start=seed), data
        )
        fit(model, guide, data)

    One of Pyro's starts at a draw from the prior by
    `lambda seed: AutoNormal(model, init_loc_fn=pyro.infer.autoguide.init_to_sample)`. The mode
    that is kept is the best of those that were found: what no start is near stays unseen. The
    model is left as it was.

    Args:
        model: called with the data; scores them.
        make_guide: makes a guide, a module, from a seed that it has to itself; called inside an
            own random state of that seed.
        data: as `fit` takes them.
        num_starts: guides that are tried.
        num_steps: training steps of each.
        lr: learning rate.
        batch_size: data per step, as in `fit`.
        objective: that is trained; as in `fit`.
        seed: the starts have the seeds from `seed` on.

    Returns:
        The guide, as those steps have left it.

    Raises:
        ValueError: as `fit`; or no start has a finite ELBO.
    """
    if num_starts < 1:
        raise ValueError(f"expected num_starts of at least 1, got {num_starts}")
    x = as_data(data)
    best: tuple[float, GuideModule] | None = None
    for number in range(seed, seed + num_starts):
        with isolated_rng(number, x.device):
            guide = make_guide(number)
        if not isinstance(guide, torch.nn.Module):
            raise ValueError(
                f"expected make_guide(seed) to make a module with parameters of its own, got "
                f"{type(guide).__name__}: restart functions by hand"
            )
        state = {n: t.clone() for n, t in tensors_of(model, guide).items() if n[:6] == "model."}
        try:
            fit(
                model,
                guide,
                x,
                num_steps=num_steps,
                batch_size=batch_size,
                lr=lr,
                objective=objective,
                seed=number,
                progress=False,
            )
            elbo = _elbo(model, guide, x, seed)
        except NonFiniteLossError:
            continue
        finally:
            copy_into({n: t for n, t in tensors_of(model, guide).items() if n in state}, state)
        if elbo > (-torch.inf if best is None else best[0]):
            best = elbo, guide
    if best is None:
        raise ValueError(f"none of {num_starts} starts has a finite ELBO: choose other ones")
    return best[1]


def _elbo(model: Program, guide: Program, x: Batch, seed: int) -> float:
    """Of all data in nats, by the same draws for every start."""
    with isolated_rng(seed, x.device):
        terms = log_prob_terms(model, guide, x, _NUM_DRAWS)
    return terms.log_w.double().mean(0).sum().item()
