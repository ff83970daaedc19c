"""Averages of the iterates at ever smaller learning rates: training of latents that data share.

At a fixed learning rate the parameters do not come to rest: they wander about the optimum. Their
average is much nearer to it, and what is left is known: a noise, from how far the averages of two
halves are apart, and a bias, from how far the averages at two learning rates are apart.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

_LARGEST_R_HAT = 1.1  # on average: some directions of some guides mean nothing
_LOOKS_AT_REST = 3
_RATIO = 0.3  # of a learning rate to the one before
_STEPS_PER_BLOCK = 25  # at least, in whole epochs: over one, what minibatches add cancels
_FEWEST_BLOCKS, _MOST_BLOCKS = 8, 32
_STARTS = (0.0, 0.1, 0.2, 0.35, 0.5)  # shares of the iterates that an average may leave out
_GROWTH = 1.2  # of the iterates from one look to the next


class Nats(NamedTuple):
    """A difference of losses in nats of the data set, and its standard error."""

    value: float
    se: float

    def is_below(self, limit: float) -> bool:
        """Whether it is that small, or too small to be told; a NaN is neither."""
        return self.value <= max(limit, 2 * self.se)


@dataclass(frozen=True)
class UntilConverged:
    """Average the iterates at ever smaller learning rates, until no smaller one would gain.

    At each learning rate: once the iterates are stationary they are averaged until the noise of the
    average costs less than `tolerance`. Then the rate falls to 30%, until two averages in a row are
    less than four times as much apart. The last average becomes the parameters. All costs are in
    nats of the ELBO, so that no scale of any parameter matters, by second differences of the
    objective under common random numbers.

    Stationary are iterates whose R̂, of the halves of a window, is below 1.1 on average over the
    parameters; or, as weights of networks wander where the objective does not change, a loss that
    falls by less than `tolerance` from the average of one half to that of the other, three times
    in a row.

    References: M. Welandawe, M. R. Andersen, A. Vehtari, J. H. Huggins, "A Framework for Improving
    the Reliability of Black-box Variational Inference", 2024,
    https://arxiv.org/abs/2203.15945; A. K. Dhaka et al., "Robust, Accurate Stochastic
    Optimization for Variational Inference", 2020, https://arxiv.org/abs/2009.00666.

    Args:
        tolerance: nats per parameter; 1e-4 leaves scales with an error of 1%.
        most: nats of all parameters together.
    """

    tolerance: float = 1e-4
    most: float = 0.05

    def __post_init__(self) -> None:
        for name in ("tolerance", "most"):
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)}")


class IterateAverages:
    """Follows the iterates of a run, step by step.

    Args:
        rule: what is small enough.
        parameters: the leaf tensors, changed in place when a learning rate ends.
        losses: the objective of all data in nats under several fixed seeds, `[R]`.
        steps_per_epoch: training steps of an epoch.
        warmup_epochs: epochs before the first iterate that counts.
    """

    def __init__(
        self,
        rule: UntilConverged,
        parameters: Iterable[Tensor],
        losses: Callable[[], Tensor],
        *,
        steps_per_epoch: int,
        warmup_epochs: float,
    ) -> None:
        self._parameters, self._losses = list(parameters), losses
        self._epochs_per_block = -(-_STEPS_PER_BLOCK // steps_per_epoch)
        size = sum(p.numel() for p in self._parameters)
        self._tolerance = min(rule.tolerance * size, rule.most)
        self._counts = {"skip": warmup_epochs, "epochs": 0.0, "steps": 0.0, "next_look": 0.0}
        self._counts |= {"stage": 0.0, "has_ended": 0.0, "at_rest": 0.0}
        start = self._now()
        self._tensors = {"origin": start, "previous": start, "sum": torch.zeros_like(start)}
        self._tensors |= {"square": torch.zeros_like(start), "blocks": start.new_zeros(0, 2, size)}
        self._tensors["lengths"] = start.new_zeros(0)

    @property
    def has_ended(self) -> bool:
        """Whether to stop: the parameters are the last average."""
        return bool(self._counts["has_ended"])

    @property
    def lr_factor(self) -> float:
        """By what to multiply the learning rate."""
        return _RATIO ** self._counts["stage"]

    def get_state(self) -> dict[str, Tensor]:
        """All that it knows, for a snapshot."""
        counts = {n: torch.tensor(v, dtype=torch.float64) for n, v in self._counts.items()}
        return self._tensors | counts

    def set_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned.

        Raises:
            ValueError: the state is of other parameters.
        """
        expected = self.get_state()
        for name, like in expected.items():
            is_like = name in state and state[name].dtype == like.dtype
            if not is_like or state[name].shape[1:] != like.shape[1:]:
                raise ValueError(f"the snapshot has no averages of these parameters: {name}")
        self._tensors = {n: state[n].to(t.device).clone() for n, t in self._tensors.items()}
        self._counts = {name: state[name].item() for name in self._counts}

    @torch.no_grad()
    def after_step(self) -> None:
        """Take the parameters as a step has left them."""
        if self._counts["skip"] > 0:
            return
        off = self._now() - self._tensors["origin"]
        self._tensors["sum"] += off
        self._tensors["square"] += off.square()
        self._counts["steps"] += 1

    @torch.no_grad()
    def after_epoch(self) -> None:
        """Close a block of whole epochs, and look at them all now and then."""
        counts, tensors = self._counts, self._tensors
        if counts["skip"] > 0:
            counts["skip"] -= 1
            if counts["skip"] <= 0:
                tensors["origin"] = self._now()
            return
        counts["epochs"] += 1
        if counts["epochs"] % self._epochs_per_block:
            return
        block = torch.stack([tensors["sum"], tensors["square"]]).unsqueeze(0)
        tensors["blocks"] = torch.cat([tensors["blocks"], block])
        length = tensors["lengths"].new_tensor([counts["steps"]])
        tensors["lengths"] = torch.cat([tensors["lengths"], length])
        self._open_block()
        total = tensors["lengths"].sum().item()
        if len(tensors["blocks"]) >= _FEWEST_BLOCKS and total >= counts["next_look"]:
            counts["next_look"] = _GROWTH * total
            self._look()

    def _open_block(self) -> None:
        self._counts["steps"] = 0.0
        for name in ("sum", "square"):
            self._tensors[name] = torch.zeros_like(self._tensors[name])

    def _look(self) -> None:
        """End the learning rate, or training, if the average is good enough."""
        r_hat, *halves = self._steadiest_halves()
        if not (r_hat <= _LARGEST_R_HAT or self._loss_rests(*halves)):
            return
        average, difference = (halves[0] + halves[1]) / 2, (halves[0] - halves[1]) / 2
        if not self._curvature(average, difference).is_below(self._tolerance):
            return
        if self._counts["stage"] > 0:
            apart = self._curvature(average, self._tensors["previous"] - average)
            self._counts["has_ended"] = float(apart.is_below(4 * self._tolerance))
        self._counts["stage"] += 0.0 if self.has_ended else 1.0
        self._counts["next_look"] = self._counts["epochs"] = self._counts["at_rest"] = 0.0
        self._tensors |= {"origin": average, "previous": average}
        for name in ("blocks", "lengths"):
            self._tensors[name] = self._tensors[name][:0]
        self._put(average)

    @torch.no_grad()
    def settle(self) -> None:
        """Make an average the parameters after all, where training was ended by something else."""
        if len(self._tensors["blocks"]) < 2:
            return
        _, *halves = self._steadiest_halves()
        average = (halves[0] + halves[1]) / 2
        if self._gain(self._now(), average) > 0:
            self._put(average)

    def _loss_rests(self, first: Tensor, second: Tensor) -> bool:
        """Whether the later average is no better, three looks in a row.

        R̂ does not fall where directions mean nothing to the objective, as in networks.
        """
        rests = self._gain(first, second) <= self._tolerance
        self._counts["at_rest"] = self._counts["at_rest"] + 1 if rests else 0.0
        return self._counts["at_rest"] >= _LOOKS_AT_REST

    def _steadiest_halves(self) -> tuple[float, Tensor, Tensor]:
        """The least R̂ of a window, and the averages of its halves."""
        blocks, lengths = self._merged()
        windows = []
        for share in _STARTS:
            first = int(share * len(blocks))
            first += (len(blocks) - first) % 2
            half = (len(blocks) - first) // 2
            parts = [slice(first, first + half), slice(first + half, len(blocks))]
            counts = [lengths[part].sum() for part in parts]
            means = [blocks[p, 0].sum(0) / n for p, n in zip(parts, counts, strict=True)]
            squares = [blocks[p, 1].sum(0) / n for p, n in zip(parts, counts, strict=True)]
            within = (squares[0] - means[0].square() + squares[1] - means[1].square()) / 2
            between = (means[0] - means[1]).square() / 2
            r_hat = (1 + between / within.clamp(min=torch.finfo(within.dtype).tiny)).sqrt()
            windows.append((r_hat.mean().item(), *means))
        least, *halves = min(windows, key=lambda window: window[0])
        return least, self._tensors["origin"] + halves[0], self._tensors["origin"] + halves[1]

    def _merged(self) -> tuple[Tensor, Tensor]:
        """The blocks, joined in twos where there are too many."""
        tensors = self._tensors
        while len(tensors["blocks"]) > _MOST_BLOCKS:
            for name in ("blocks", "lengths"):
                whole = tensors[name]
                even = whole[len(whole) % 2 :]
                tensors[name] = torch.cat([whole[: len(whole) % 2], even[0::2] + even[1::2]])
        return tensors["blocks"], tensors["lengths"]

    def _curvature(self, center: Tensor, off: Tensor) -> Nats:
        """The mean loss at center ± off, above that at the center: ½ off·H·off near an optimum."""
        here = self._now()
        ends = [self._losses_at(center + off), self._losses_at(center - off)]
        excess = (ends[0] + ends[1]) / 2 - self._losses_at(center)
        self._put(here)
        return Nats(excess.mean().item(), excess.std().item() / len(excess) ** 0.5)

    def _gain(self, before: Tensor, after: Tensor) -> float:
        """By how much the loss falls from one to the other: the median, as its tails are heavy."""
        here = self._now()
        gain = self._losses_at(before) - self._losses_at(after)
        self._put(here)
        return gain.median().item()

    def _losses_at(self, values: Tensor) -> Tensor:
        self._put(values)
        return self._losses().double()

    def _now(self) -> Tensor:
        return torch.cat([p.detach().flatten().double() for p in self._parameters])

    def _put(self, values: Tensor) -> None:
        with torch.no_grad():
            pieces = values.split([p.numel() for p in self._parameters])
            for parameter, piece in zip(self._parameters, pieces, strict=True):
                parameter.copy_(piece.view_as(parameter))
