"""What objectives have in common whose latents come from elsewhere than from the guide."""

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor

from evidence.inference.objectives.base import AbstractObjective
from evidence.inference.objectives.draws import Pair
from evidence.inference.paths.guide_path import GuidePath
from evidence.inference.programs.data import Batch, tensors_in, unwrapped
from evidence.inference.programs.evaluation import no_training
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.scoring import full_share
from evidence.inference.programs.traces import Program, common_plate, random_sites, trace_pair
from evidence.inference.programs.validation import Unvalidated

_OTHERWISE = "train with an objective of the guide's own draws, such as ForwardKL"


class AbstractPathObjective(AbstractObjective):
    """A loss of log q(u | x) at places u on the path from the guide to the posterior.

    The model stays as it is. Log-probabilities are taken in full, so that neither minibatches of
    data that share latents nor warm-ups are possible.
    """

    trains_model = False
    draws_particles = False

    def __init__(self, num_particles: int | None = None) -> None:
        super().__init__(num_particles)
        self._path: GuidePath | None = None
        self._path_of: tuple[Program, Program, int] | None = None

    def surrogate(self, pair: Pair) -> Tensor:
        """The loss in nats, summed over the data."""
        with _scoring(pair):
            share = self._share_of_data(pair)
            return self.on_path(self._renewed_path(pair)).sum() * share

    @abstractmethod
    def on_path(self, path: GuidePath) -> Tensor:
        """The loss of every weight `[M]`, in nats, to be differentiated with autograd."""

    def enters(self, path: GuidePath) -> None:
        """Take notice of a path of another pair, or of another posterior."""

    def _renewed_path(self, pair: Pair) -> GuidePath:
        """The path from the guide as it is now; what does not change with it is kept."""
        of = unwrapped(pair.model), unwrapped(pair.guide), len(pair.data)
        if self._path is None or of != self._path_of or _moved_on(self._path, pair.data):
            with isolated_rng(device=pair.data.device):  # or a resumed run would go on otherwise
                self._path, self._path_of = self._new_path(pair), of
        self._path = self._path.renewed(pair.data)
        return self._path

    def _new_path(self, pair: Pair) -> GuidePath:
        """The path, once it is known to be one.

        Raises:
            ValueError: as `GuidePath`; a guide whose draws move with its parameters.
        """
        path = GuidePath(pair.model, pair.guide, pair.data, otherwise=_OTHERWISE)
        if path.has_learned_map:
            raise ValueError(
                f"{type(self).__name__} expected a guide that samples the model's latents, or "
                "makes them of auxiliary draws by a fixed map, got one whose map is learned: "
                f"{_OTHERWISE}"
            )
        self.enters(path)
        return path

    def _share_of_data(self, pair: Pair) -> float:
        """N/B of a plate over the data that stands for N of them.

        Raises:
            ValueError: something else scales log-probabilities.
        """
        traces = trace_pair(pair.model, pair.guide, pair.data)
        plate = common_plate(traces)
        share = 1.0 if plate is None else full_share(plate)
        for name, site in random_sites(traces.model).items():
            if site["scale"] != share:
                raise ValueError(
                    f"{type(self).__name__} needs the posterior as it is, and site {name!r} is "
                    "scaled: train on all data at once (batch_size at least their number), "
                    "without warm-ups or poutine.scale"
                )
        return share


def _moved_on(path: GuidePath, data: Batch) -> bool:
    """Whether the one posterior of all data has become another one."""
    ours, theirs = tensors_in(path.x), tensors_in(data)
    return path.layout.is_joint and not all(map(torch.equal, ours, theirs))


@contextmanager
def _scoring(pair: Pair) -> Generator[None]:
    """As in evaluation: no dropout, and no validation, which `torch.vmap` refuses."""
    with (
        no_training(pair.model, pair.guide),
        pyro.validation_enabled(False),
        Unvalidated(),
    ):
        yield
