"""Minibatches of data that share latents: each stands for all N data."""

from typing import Any

from pyro.poutine import Trace
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger

from evidence.inference.programs.data import Batch, Program
from evidence.inference.programs.traces import Traces, common_dims, random_sites, trace_of_one_more


class ScaleData(Messenger):
    """Scale the log-probabilities of sites inside the plate over the data by N/B.

    The ELBO of a minibatch then has the mean of that of all data: what they share is counted once,
    and what is of each datum N times on average.

    Reference: M. D. Hoffman, D. M. Blei, C. Wang, J. Paisley, "Stochastic Variational Inference",
    2013, https://jmlr.org/papers/v14/hoffman13a.html.

    Args:
        dims: of the plates over the data.
        size: B.
        total: N.
    """

    def __init__(self, dims: frozenset[int], size: int, total: int) -> None:
        super().__init__()
        self.dims, self.size, self.factor = dims, size, total / size
        self.does = "scales", dims, size, self.factor  # all that there is to it, see `Compiled`

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        frames = msg["cond_indep_stack"]
        if any(f.dim in self.dims and _size(f) == self.size for f in frames):
            msg["scale"] = msg["scale"] * self.factor


def data_dims(model: Program, total: int, batch: Batch, traces: Traces) -> frozenset:
    """The dims of the plates to scale: those over the data, where all data share a latent.

    Args:
        model: called with a batch; scores it.
        total: N.
        batch: the first of them, as many as in a step.
        traces: of the pair on the batch.

    Raises:
        ValueError: data share latents, and there is no plate to scale.
    """
    if len(batch) >= total or not shares_latents(traces, len(batch)):
        return frozenset()
    dims = dims_of_data(model, batch, traces)
    if not dims:
        raise ValueError(
            f"the data share latents, and no plate over the {len(batch)} data of a batch tells "
            f"what to scale by {total}/{len(batch)}: put what is of each datum inside `with "
            f'pyro.plate("data", len(x)):`, or train on all data at once (batch_size={total})'
        )
    return dims


def dims_of_data(model: Program, batch: Batch, traces: Traces) -> frozenset[int]:
    """The dims of the model's plates over the data, of which a batch is some.

    Args:
        model: called with a batch; scores it.
        batch: of data.
        traces: of the pair on the batch.
    """
    dims = _dims_of(traces.model, len(batch))
    larger = trace_of_one_more(model, batch)
    if larger is not None:
        dims &= _dims_of(larger, len(batch) + 1)  # plates of another kind do not grow along
    return frozenset(dims)


def shares_latents(traces: Traces, size: int) -> bool:
    """Whether the data share a latent, of a program that does not scale by itself."""
    return not common_dims(traces, size) and not _is_subsampled(traces, size)


def _dims_of(trace: Trace, size: int) -> set[int]:
    sites = random_sites(trace).values()
    return {f.dim for site in sites for f in site["cond_indep_stack"] if _size(f) == size}


def _size(frame: CondIndepStackFrame) -> int:
    """Of what the plate stands for, all of which it may not use."""
    return frame.full_size or frame.size


def _is_subsampled(traces: Traces, size: int) -> bool:
    """Whether the program scales by itself, by a plate of N of which the batch is a part."""
    sites = random_sites(traces.model).values()
    frames = [frame for site in sites for frame in site["cond_indep_stack"]]
    return any(f.full_size not in (None, f.size) and f.size == size for f in frames)
