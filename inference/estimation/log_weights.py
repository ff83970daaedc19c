"""Importance weights of any Pyro pair: the one quantity behind every estimate."""

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evidence.inference.compilation.functions import Compile
from evidence.inference.programs.compiled_terms import CompiledTerms
from evidence.inference.programs.data import Batch, as_rows, takes
from evidence.inference.programs.draws import DEFAULT_CHUNK_SIZE
from evidence.inference.programs.traces import Program
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.inference.soundness.pairs import expect_sound_pair


def log_weights(
    model: Program,
    guide: Program,
    x: Batch | Dataset | DataLoader,
    num_particles: int = 1,
    *,
    chunk_size: int = DEFAULT_CHUNK_SIZE,
    compile: Compile = "auto",
) -> Tensor:
    """Log w = log p(x, z) − log q(z | x) with z ~ q(z | x), per particle and per weight.

    Any Pyro pair will do. Where all sites are inside one plate over the data there is a weight for
    each of them, M = N; where data share a latent there is one for the data set, M = 1.
    Log-probabilities are taken unscaled: neither subsampling nor `poutine.scale` changes them;
    masks do apply, but for those without effect, see `programs.masks`.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[N, *data_shape]`; or several tensors, as a tuple or a mapping, see `fit`.
        num_particles: S, draws per weight.
        chunk_size: particles × data in one call; bounds the memory beyond the result's.
        compile: whether to compile the pair with Torch's Inductor: True, False, or where that
            takes less time than it saves. The draws are the same.

    Returns:
        log w `[S, M]` in nats, without gradients.

    Raises:
        ValueError: bad data, data outside the likelihood's support, sites that do not match,
            a guide that is a point mass, or a pair whose weights do not average to p(x); see
            `soundness.pairs.expect_sound_pair`.
    """
    rows = as_rows(x)
    model, guide = takes(model, rows), takes(guide, rows)
    expect_sound_pair(model, guide, rows)
    compiled = CompiledTerms(compile, num_particles * len(rows))
    return unchecked_log_weights(
        model, guide, rows, num_particles, chunk_size=chunk_size, compiled=compiled
    )
