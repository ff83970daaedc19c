"""Draws from a guide by particle and datum, and what model and guide say about them."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import pyro
import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from inference.checks import check_data, check_support
from inference.evaluation import evaluation_mode
from inference.traces import (
    Layout,
    Program,
    Traces,
    layout_of,
    log_prob_per_datum,
    random_sites,
    trace_pair,
)
from inference.weights import DEFAULT_CHUNK_SIZE, LogProbs, slices, terms_of


@dataclass(frozen=True)
class Block:
    """One call of the pair: some particles of some data.

    Args:
        rows: which particles of all.
        columns: which data of all.
        x: these data `[b, *data_shape]`.
        guide: trace of the guide.
        model: trace of the model, replayed against it.
        layout: where data and particles are among the batch dimensions.
    """

    rows: slice
    columns: slice
    x: Tensor
    guide: Trace
    model: Trace
    layout: Layout

    @property
    def num_particles(self) -> int:
        """s, particles of this call."""
        return self.rows.stop - self.rows.start

    @property
    def terms(self) -> LogProbs:
        """The terms of log w, each `[s, b]`, in nats."""
        traces = Traces(self.guide, self.model)
        return terms_of(traces, self.num_particles, len(self.x), self.layout)

    @property
    def latents(self) -> dict[str, dict]:
        """The model's latent sites, by name."""
        return {n: s for n, s in random_sites(self.model).items() if not s["is_observed"]}

    @property
    def observed(self) -> dict[str, dict]:
        """The model's observed sites, by name."""
        return {n: s for n, s in random_sites(self.model).items() if s["is_observed"]}

    def sites(self, names: Iterable[str]) -> dict[str, dict]:
        """The model's sites of these names."""
        return {name: self.model.nodes[name] for name in names}

    def log_prob(self, site: dict) -> Tensor:
        """The site's log-probability in nats, summed over all but particles and data: `[s, b]`."""
        log_p = log_prob_per_datum(site, self.num_particles, len(self.x), self.layout)
        return log_p.expand(self.num_particles, len(self.x))

    def value(self, site: dict) -> Tensor:
        """The value at a site: `[s, b, *other plates, *event]`."""
        return self.lay_out(site, site["value"], site["fn"].event_dim)

    def lay_out(self, site: dict, tensor: Tensor, event_dim: int) -> Tensor:
        """A tensor in the batch dimensions of a site: `[s, b, *other plates, *event]`."""
        depth = -self.layout.particle_dim
        event = list(range(depth, depth + event_dim))
        tensor = tensor.reshape((1,) * (depth + event_dim - tensor.ndim) + tensor.shape)
        ours = [0, depth + self.layout.data_dim]
        plates = {depth + f.dim for f in site["cond_indep_stack"] if f.vectorized} - set(ours)
        none = [dim for dim in range(depth) if dim not in plates and dim not in ours]  # size 1
        shape = [tensor.shape[dim] for dim in (*sorted(plates), *event)]
        tensor = tensor.permute(*none, *ours, *sorted(plates), *event)
        tensor = tensor.reshape(*tensor.shape[len(none) : len(none) + 2], *shape)
        return tensor.expand(self.num_particles, len(self.x), *shape)

    def simulate(self, model: Program, latents: Trace | None = None) -> "Block":
        """Run the model forward, its data drawn anew: from the prior, or from given latents."""
        forward = poutine.uncondition(model)
        if latents is not None:
            forward = poutine.uncondition(poutine.replay(model, trace=latents))
        with self._particles():
            trace = poutine.trace(forward).get_trace(self.x)
        return Block(self.rows, self.columns, self.x, self.guide, trace, self.layout)

    def _particles(self) -> AbstractContextManager:
        if self.num_particles == 1:
            return nullcontext()
        return pyro.plate("_particles", self.num_particles, dim=self.layout.particle_dim)


@dataclass(frozen=True)
class Record:
    """Tensors `[S, B, ...]` by name, put together from blocks as they come."""

    num_particles: int
    num_data: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def put(self, name: str, block: Block, part: Tensor) -> None:
        """Take the part `[s, b, ...]` of a block."""
        if name not in self.tensors:
            shape = self.num_particles, self.num_data, *part.shape[2:]
            self.tensors[name] = torch.empty(shape, dtype=part.dtype, device=part.device)
        self.tensors[name][block.rows, block.columns] = part


@torch.no_grad()
def visit_draws(
    model: Program,
    guide: Program,
    x: Tensor,
    num_particles: int,
    visit: Callable[[Block], None],
    *,
    vectorize_particles: bool = True,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    progress: bool = False,
) -> Layout:
    """Draw `num_particles` latents per datum, some at a time, and hand over each block.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`.
        num_particles: S, draws per datum.
        visit: called with every block, in evaluation mode and without gradients.
        vectorize_particles: see `log_weights`.
        chunk_size: particles × data in one call.
        progress: show a progress bar.

    Returns:
        Where data and particles are among the batch dimensions.

    Raises:
        ValueError: as `log_weights`.
    """
    check_data(x)
    for name, number in (("num_particles", num_particles), ("chunk_size", chunk_size)):
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}")
    at_once = min(num_particles, chunk_size) if vectorize_particles else 1
    total = num_particles * len(x)
    with (
        evaluation_mode(model, guide) as refuse_new_parameters,
        tqdm(total=total, disable=not progress, unit="draw", unit_scale=True) as bar,
    ):
        layout = layout_of(model, guide, x[:chunk_size], require_density=True)
        refuse_new_parameters()
        for columns in slices(len(x), chunk_size // at_once):
            for rows in slices(num_particles, at_once):
                size, batch = rows.stop - rows.start, x[columns]
                traces = trace_pair(model, guide, batch, size, layout.particle_dim)
                check_support(traces.model)
                visit(Block(rows, columns, batch, traces.guide, traces.model, layout))
                bar.update(size * len(batch))
    return layout
