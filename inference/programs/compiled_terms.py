"""The terms of log w from compiled graphs, for blocks of many draws that are alike."""

import warnings
from collections.abc import Hashable

import torch
from torch import Tensor

from evidence.inference.compilation.functions import (
    Backend,
    Compile,
    CompiledFunction,
    NotWorthCompilingError,
    expect_compile,
)
from evidence.inference.compilation.recording import NotRecordableError
from evidence.inference.programs.data import Batch, tensors_in, with_replaced
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.scoring import LogProbs, terms_of
from evidence.inference.programs.traces import Layout, Program, trace_pair

_FEWEST_CALLS = 500  # that are worth a look at what they would cost
_MOST_GRAPHS = 2  # full blocks, and the last ones


class CompiledTerms:
    """Computes the terms of log w of blocks of one pair, compiled where that pays.

    From the same state of the generator come the same draws, and the same terms to the rounding of
    their dtype, as without: a first block is held against the pair itself. What cannot be compiled
    is not, and one line says why.

    Args:
        compile: True, False, or "auto": where it can be, and takes less time than it saves.
        num_draws: how many draws of a latent there will be, over all data.
        backend: see `CompiledFunction`.
    """

    def __init__(self, compile: Compile, num_draws: int, *, backend: Backend = "inductor") -> None:
        expect_compile(compile)
        self.compile, self.num_draws, self.backend = compile, num_draws, backend
        self._graphs: dict[Hashable, CompiledFunction | None] = {}

    def pays(self, num_draws: int, chunk_size: int) -> bool:
        """Whether it may be that so many draws, in such chunks, are compiled."""
        num_calls = self.num_draws // min(num_draws, chunk_size)
        return self.compile is True or (self.compile == "auto" and num_calls >= _FEWEST_CALLS)

    def __call__(
        self, model: Program, guide: Program, x: Batch, size: int, layout: Layout
    ) -> LogProbs | None:
        """The terms of so many draws for these data, each `[size, M]`; None if not compiled."""
        num_calls = self.num_draws // (size * len(x))
        if not self.pays(size * len(x), size * len(x)):
            return None
        key = size, layout, tuple((t.shape, t.dtype, t.device) for t in tensors_in(x))
        if key not in self._graphs and len(self._graphs) < _MOST_GRAPHS:
            self._graphs[key] = self._made(model, guide, x, size, layout, num_calls)
        graph = self._graphs.get(key)
        return None if graph is None else LogProbs(*graph(*tensors_in(x)))

    def _made(
        self, model: Program, guide: Program, x: Batch, size: int, layout: Layout, num_calls: int
    ) -> CompiledFunction | None:
        ours = tensors_in(x)

        def terms(*tensors: Tensor) -> tuple[Tensor, ...]:
            data = with_replaced(x, {id(t): new for t, new in zip(ours, tensors, strict=True)})
            traces = trace_pair(model, guide, data, size, layout.particle_dim)
            found = terms_of(traces, size, len(x), layout)
            return found.log_p_x, found.log_p_z, found.log_q_z

        enough = num_calls if self.compile == "auto" else None
        try:
            with isolated_rng(device=x.device):
                graph = CompiledFunction(terms, ours, backend=self.backend, num_calls=enough)
            with isolated_rng(device=x.device):
                expected = terms(*ours)
            with isolated_rng(device=x.device):
                returned = graph(*ours)
            if not all(map(_agree, returned, expected)):
                raise NotRecordableError("the recorded graph does not return what the pair does")
        except NotWorthCompilingError:
            return None
        except NotRecordableError as error:
            if self.compile is True:
                warnings.warn(f"the pair is not compiled: {error}", stacklevel=2)
            self.compile = False
            return None
        return graph


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    """Whether log-probabilities are the same to the rounding of sums of many terms."""
    tolerance = 100 * torch.finfo(theirs.dtype).eps
    finite = theirs[theirs.isfinite()].abs()
    largest = finite.max().item() if len(finite) else 1.0
    return torch.allclose(ours, theirs, rtol=0, atol=tolerance * (1 + largest), equal_nan=True)
