"""The weights of a pair that has been checked, and their terms, block by block."""

from torch import Tensor

from evidence.inference.programs.compiled_terms import CompiledTerms
from evidence.inference.programs.data import Batch, as_rows, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE, Block, Record, visit_draws
from evidence.inference.programs.precision import fast_matmul
from evidence.inference.programs.scoring import LogProbs
from evidence.inference.programs.stored import StoredData
from evidence.inference.programs.traces import Program


def unchecked_log_weights(
    model: Program,
    guide: Program,
    x: Batch | StoredData,
    num_particles: int = 1,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    compiled: CompiledTerms | None = None,
) -> Tensor:
    """Log-weights `[S, M]` in nats of a pair that has been checked, without gradients.

    `compiled` computes them for several calls that are alike; by default where it pays for this.
    """
    compiled = compiled or CompiledTerms("auto", num_particles * len(x))
    record = Record(num_particles, len(x))

    def visit(block: Block) -> None:
        record.put("log_w", block, block.terms.log_w)

    with fast_matmul(x.device):
        visit_draws(model, guide, x, num_particles, visit, chunk_size=chunk_size, compiled=compiled)
    return record.tensors["log_w"]


def log_prob_terms(
    model: Program,
    guide: Program,
    x: Batch | StoredData,
    num_particles: int = 1,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
) -> LogProbs:
    """The terms of `log_weights` one by one, each `[S, M]`; a point-mass guide is let through."""
    x = as_rows(x)
    model, guide = takes(model, x), takes(guide, x)
    record = Record(num_particles, len(x))

    def visit(block: Block) -> None:
        terms = block.terms
        for name in ("log_p_x", "log_p_z", "log_q_z"):
            record.put(name, block, getattr(terms, name))

    visit_draws(
        model,
        guide,
        x,
        num_particles,
        visit,
        chunk_size=chunk_size,
        require_density=False,
    )
    return LogProbs(**record.tensors)
