"""Draws from a guide by particle and weight, and what model and guide say about them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor
from tqdm import tqdm

from evidence.inference.programs.broadcasting import broadcasts, warn_one_by_one
from evidence.inference.programs.checks import check_data, check_support
from evidence.inference.programs.compiled_terms import CompiledTerms
from evidence.inference.programs.data import Batch, in_memory
from evidence.inference.programs.enumeration import sums_out
from evidence.inference.programs.evaluation import evaluation_mode
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.scoring import LogProbs, log_prob_per_datum, terms_of
from evidence.inference.programs.sites import Site, latent_sites, observed_sites, sites_of
from evidence.inference.programs.stored import StoredData
from evidence.inference.programs.traces import (
    Layout,
    Program,
    Traces,
    layout_of,
    particle_plate,
    trace_pair,
)

DEFAULT_CHUNK_SIZE = 2048


@dataclass(frozen=True)
class Block:
    """One call of the pair: some particles of some data, with b weights each, or one for all.

    Args:
        rows: which particles of all.
        columns: which weights of all.
        x: these data `[b, *data_shape]`.
        guide: trace of the guide.
        model: trace of the model, replayed against it.
        layout: where data and particles are among the batch dimensions.
        known_terms: of a block of terms alone, which has no traces.
    """

    rows: slice
    columns: slice
    x: Batch
    guide: Trace
    model: Trace
    layout: Layout
    known_terms: LogProbs | None = None

    @property
    def num_particles(self) -> int:
        """s, particles of this call."""
        return self.rows.stop - self.rows.start

    @property
    def num_weights(self) -> int:
        """m, weights per particle in this call: b, or one for all data."""
        return self.columns.stop - self.columns.start

    @property
    def terms(self) -> LogProbs:
        """The terms of log w, each `[s, m]`, in nats."""
        if self.known_terms is not None:
            return self.known_terms
        traces = Traces(self.guide, self.model)
        return terms_of(traces, self.num_particles, len(self.x), self.layout)

    @property
    def latents(self) -> dict[str, Site]:
        """The model's latent sites, by name."""
        return latent_sites(self.model)

    @property
    def observed(self) -> dict[str, Site]:
        """The model's observed sites, by name."""
        return observed_sites(self.model)

    def sites(self, names: Iterable[str]) -> dict[str, Site]:
        """The model's sites of these names."""
        return {name: sites_of(self.model)[name] for name in names}

    def log_prob(self, site: Site) -> Tensor:
        """The site's log-probability in nats, over all but particles and weights: `[s, m]`."""
        log_p = log_prob_per_datum(site, self.num_particles, len(self.x), self.layout)
        return log_p.expand(self.num_particles, self.num_weights)

    def value(self, site: Site) -> Tensor:
        """The value at a site: `[s, m, *other plates, *event]`."""
        return self.lay_out(site, site["value"], site["fn"].event_dim)

    def lay_out(self, site: Site, tensor: Tensor, event_dim: int) -> Tensor:
        """A tensor in the batch dimensions of a site: `[s, m, *other plates, *event]`."""
        depth = -self.layout.particle_dim
        tensor = tensor.reshape((1,) * (depth + event_dim - tensor.ndim) + tensor.shape)
        axis = self.layout.data_axis(depth)
        if axis is None:  # a dim of size one for the one weight
            tensor, axis, depth = tensor.unsqueeze(1), 1, depth + 1
        event = list(range(depth, depth + event_dim))
        plates = {depth + f.dim for f in site["cond_indep_stack"] if f.vectorized} - {0, axis}
        none = [dim for dim in range(depth) if dim not in plates and dim not in (0, axis)]  # size 1
        shape = [tensor.shape[dim] for dim in (*sorted(plates), *event)]
        tensor = tensor.permute(*none, 0, axis, *sorted(plates), *event)
        tensor = tensor.reshape(*tensor.shape[len(none) : len(none) + 2], *shape)
        return tensor.expand(self.num_particles, self.num_weights, *shape)

    def simulate(self, model: Program, latents: Trace | None = None) -> "Block":
        """Run the model forward, its data drawn anew: from the prior, or from given latents."""
        forward = poutine.uncondition(model)
        if latents is not None:
            forward = poutine.uncondition(poutine.replay(model, trace=latents))
        return self._with_run_of(forward)

    def site_by_site(self, model: Program) -> "Block":
        """Every observed site as the model has it, where the block's own stand for sums of several.

        Discrete latents that the model enumerates are drawn.
        """
        if not sums_out([self.model]):
            return self
        return self._with_run_of(poutine.replay(model, trace=self.guide))

    def _with_run_of(self, program: Program) -> "Block":
        dim = None if self.num_particles == 1 else self.layout.particle_dim
        with particle_plate(self.num_particles, dim):
            trace = poutine.trace(program).get_trace(self.x)
        return Block(self.rows, self.columns, self.x, self.guide, trace, self.layout)


@dataclass(frozen=True)
class Record:
    """Tensors `[S, M, ...]` by name, put together from blocks as they come."""

    num_particles: int
    num_data: int
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def put(self, name: str, block: Block, part: Tensor) -> None:
        """Take the part `[s, m, ...]` of a block."""
        if name not in self.tensors:
            num_weights = block.layout.num_weights(self.num_data)
            shape = self.num_particles, num_weights, *part.shape[2:]
            self.tensors[name] = torch.empty(shape, dtype=part.dtype, device=part.device)
        self.tensors[name][block.rows, block.columns] = part


@torch.no_grad()
def visit_draws(
    model: Program,
    guide: Program,
    x: Batch | StoredData,
    num_particles: int,
    visit: Callable[[Block], None],
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    require_density: bool = True,
    progress: bool = False,
    compiled: CompiledTerms | None = None,
) -> Layout:
    """Draw `num_particles` latents per weight, some at a time, and hand over each block.

    Particles of a call are a batch dimension left of the pair's plates, where a probe shows that
    the pair broadcasts over them rightly; else they are drawn one by one.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[B, *data_shape]`; rows of a dataset are read once, where they have weights.
        num_particles: S, draws per weight.
        visit: called with every block, in evaluation mode and without gradients.
        chunk_size: particles × data in one call; all data where they share latents.
        require_density: refuse a guide that is a point mass.
        progress: show a progress bar.
        compiled: what computes the terms, if they are all that is visited: blocks after the first
            then have no traces.

    Returns:
        Where data and particles are among the batch dimensions.

    Raises:
        ValueError: as `log_weights`.
    """
    if not isinstance(x, StoredData):
        check_data(x)
    for name, number in (("num_particles", num_particles), ("chunk_size", chunk_size)):
        if number < 1:
            raise ValueError(f"expected {name} of at least 1, got {number}")
    with (
        evaluation_mode(model, guide) as refuse_new_parameters,
        tqdm(
            total=num_particles * len(x), disable=not progress, unit="draw", unit_scale=True
        ) as bar,
    ):
        layout = layout_of(model, guide, x[:chunk_size], require_density=require_density)
        if layout.is_joint and chunk_size < len(x):
            x = in_memory(x)
            layout = layout_of(model, guide, x, require_density=require_density)
        refuse_new_parameters()
        engine = _Engine(model, guide, layout, compiled)
        if compiled is not None and compiled.pays(num_particles * len(x), chunk_size):
            engine.check_all(x, len(x) if layout.is_joint else chunk_size)
        for columns, batch in _batches(x, layout, num_particles, chunk_size, engine):
            at_once = _particles_per_call(len(batch), layout, num_particles, chunk_size)
            for block in engine.blocks(columns, batch, num_particles, at_once):
                visit(block)
                bar.update(block.num_particles * len(batch))
    return layout


def slices(total: int, size: int) -> Iterator[slice]:
    """`total` rows, `size` at a time."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _batches(
    x: Batch | StoredData, layout: Layout, num_particles: int, chunk_size: int, engine: "_Engine"
) -> Iterator[tuple[slice, Batch]]:
    """Which weights, and the data that they are of.

    Many particles of few data: each call encodes its data anew, and that costs least so.
    """
    if layout.is_joint:
        yield slice(0, 1), in_memory(x)
        return
    at_once = min(num_particles, chunk_size) if engine.may_broadcast else 1
    for columns in slices(len(x), chunk_size // at_once):
        batch = x[columns]
        if isinstance(x, StoredData):
            check_data(batch)
        yield columns, batch


def _particles_per_call(num_data: int, layout: Layout, num_particles: int, chunk_size: int) -> int:
    """As many as fit, and the same in every call where that takes few more calls."""
    fitting = max(1, chunk_size // num_data) if layout.is_joint else chunk_size
    fewest = -(-num_particles // fitting)
    even = (n for n in range(fewest, 2 * fewest) if num_particles % n == 0)
    return -(-num_particles // next(even, fewest))


class _Engine:
    """Runs the pair on blocks, particles broadcast or one by one."""

    def __init__(
        self, model: Program, guide: Program, layout: Layout, compiled: CompiledTerms | None
    ) -> None:
        self.model, self.guide, self.layout = model, guide, layout
        self.compiled = compiled
        self.is_checked = False
        self.may_broadcast = True
        self._probed: set[tuple[int, int]] = set()

    def check_all(self, x: Batch | StoredData, size: int) -> None:
        """Check all data against their support, so many at once: no first block has to be run."""
        with isolated_rng(device=x.device):
            for rows in slices(len(x), size):
                batch = x[rows]
                traces = trace_pair(self.model, self.guide, batch)
                again = partial(trace_pair, self.model, self.guide, batch)
                check_support(traces.model, lambda again=again: again().model)
        self.is_checked = True

    def blocks(self, columns: slice, x: Batch, num_particles: int, at_once: int) -> Iterator[Block]:
        """All particles of some data, the support of the data checked with the first."""
        done = 0
        while done < num_particles:
            size = min(at_once, num_particles - done) if self.may_broadcast else 1
            rows = slice(done, done + size)
            terms = self._terms(x, size) if done or self.is_checked else None
            if terms is not None:
                yield Block(rows, columns, x, Trace(), Trace(), self.layout, terms)
                done += size
                continue
            traces = self._run(x, size)
            if traces is None:  # from here on, one by one
                self.may_broadcast = False
                continue
            if done == 0 and not self.is_checked:
                check_support(traces.model, lambda: trace_pair(self.model, self.guide, x).model)
            yield Block(rows, columns, x, traces.guide, traces.model, self.layout)
            done += size

    def _terms(self, x: Batch, size: int) -> LogProbs | None:
        """The terms of a block from a compiled graph; None if there is none."""
        if self.compiled is None or (size > 1 and (size, len(x)) not in self._probed):
            return None
        return self.compiled(self.model, self.guide, x, size, self.layout)

    def _run(self, x: Batch, size: int) -> Traces | None:
        """The traces of a block; None if the pair does not broadcast over the particles."""
        shape = size, len(x)
        if size == 1 or shape in self._probed:
            return trace_pair(self.model, self.guide, x, size, self.layout.particle_dim)
        traces = broadcasts(self.model, self.guide, x, size, self.layout)
        if traces is None:
            warn_one_by_one()
        self._probed.add(shape)
        return traces
