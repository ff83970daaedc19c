"""One torch optimizer for all parameters, where Pyro's own keeps one per parameter."""

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

MakeOptimizer = Callable[..., Optimizer]  # called with the parameters and lr=
MakeScheduler = Callable[[Optimizer], LRScheduler]

fused_adam = functools.partial(torch.optim.Adam, fused=True)


class JointOptim(PyroOptim):
    """One torch optimizer over all named parameters at once, behind Pyro's interface.

    Pyro builds a torch optimizer for each parameter, which costs about a quarter of a training
    step, and clips each gradient by its own norm; here there is one update and one joint norm.

    Args:
        parameters: unconstrained leaf tensors by name.
        lr: learning rate.
        make: makes the optimizer, as torch's classes do: `make(tensors, lr=lr)`.
        clip_norm: largest joint gradient norm, or None for no clipping.
        divisors: by what to divide the learning rate of some parameters, by name. An update of Adam
            moves what a layer makes by up to the rate times the number of its inputs.

    Reference: G. Yang et al., "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot
    Hyperparameter Transfer", 2022, https://arxiv.org/abs/2203.03466, table 3.

    Raises:
        ValueError: an optimizer that evaluates the loss by itself.
    """

    def __init__(
        self,
        parameters: dict[str, Tensor],
        *,
        lr: float,
        make: MakeOptimizer = fused_adam,
        clip_norm: float | None = None,
        divisors: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(torch.optim.Adam, {})
        self.parameters = parameters
        self.clip_norm = clip_norm
        self._make = functools.partial(make, lr=lr)
        groups: dict[int, list[Tensor]] = {1: []}
        for name, parameter in parameters.items():
            groups.setdefault((divisors or {}).get(name, 1), []).append(parameter)
        self._group_divisors = [divisor for divisor, members in groups.items() if members]
        apart = [{"params": groups[d], "lr": lr / d} for d in self._group_divisors]
        self.optimizer = self._make(apart if divisors else list(parameters.values()))
        closure = inspect.signature(self.optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise ValueError(
                f"expected an optimizer that takes gradients, got {type(self.optimizer).__name__}, "
                "which evaluates the loss by itself: choose another, such as torch.optim.Adam"
            )

    def __call__(self, params: Any = (), *args: Any, **kwargs: Any) -> None:
        """Update every parameter that has a gradient, then drop the gradients.

        Raises:
            FloatingPointError: the joint gradient norm is not finite; nothing was updated.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = joint_norm(gradients)
        if not math.isfinite(value := norm.item()):
            self.zero_grad()
            raise FloatingPointError(f"the gradient norm is {value}")
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip_norm, norm)
        self.optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def set_lr(self, lr: float) -> None:
        """Change the learning rate from the next update on."""
        groups = self.optimizer.param_groups
        for group, divisor in zip(groups, self._group_divisors, strict=True):
            group["lr"] = lr / divisor

    @property
    def lr(self) -> float:
        """The learning rate of the next update, of what is not divided."""
        return float(self.optimizer.param_groups[0]["lr"]) * self._group_divisors[0]

    def get_state(self) -> dict[str, Tensor]:
        """The optimizer's moments and step counts as `"<parameter>/<moment>" -> tensor`.

        Raises:
            ValueError: the optimizer keeps something that is no tensor.
        """
        return _moments(self.optimizer, self.parameters)

    def set_state(self, state_dict: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned.

        Raises:
            ValueError: the names, shapes or types are not those of this optimizer's state, which is
                left as it was.
        """
        expected = self._state_after_a_step()
        with_state = {name.rsplit("/", 1)[0] for name in state_dict}
        wanted = {name for name in expected if name.rsplit("/", 1)[0] in with_state}
        if odd := sorted(wanted ^ state_dict.keys()):
            raise ValueError(f"the snapshot is of another optimizer: {odd[0]} is on one side only")
        for name, value in state_dict.items():
            expect_like(name, value, expected[name], of="optimizer")
        for name, value in state_dict.items():
            parameter, moment = name.rsplit("/", 1)
            state = self.optimizer.state[self.parameters[parameter]]
            state[moment] = value.clone().to(expected[name].device)

    def _state_after_a_step(self) -> dict[str, Tensor]:
        """What such an optimizer holds for parameters like these."""
        likes = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        for like in likes.values():
            like.grad = torch.zeros_like(like)
        optimizer = self._make(list(likes.values()))
        optimizer.step()
        return _moments(optimizer, likes)


class Schedule:
    """A torch learning-rate scheduler, stepped after each epoch.

    Its state is what the losses of the epochs before make it: a resumed run steps it anew.

    Args:
        optim: whose learning rate it sets.
        make: makes the scheduler for an optimizer.
    """

    def __init__(self, optim: JointOptim, make: MakeScheduler) -> None:
        self._scheduler = make(optim.optimizer)

    def step(self, loss: float) -> None:
        """Go on by an epoch that had this loss."""
        with warnings.catch_warnings():
            # On resumption there has been no update yet, which torch warns of.
            warnings.filterwarnings("ignore", "Detected call of .lr_scheduler.step")
            if isinstance(self._scheduler, ReduceLROnPlateau):
                self._scheduler.step(loss)
            else:
                self._scheduler.step()


@torch.no_grad()
def joint_norm(tensors: list[Tensor]) -> Tensor:
    """The Euclidean norm of all entries of these tensors, bit for bit as torch takes it.

    Torch sorts them by device and type first, which takes longer than the norm of small ones.
    """
    if len({(tensor.device, tensor.dtype) for tensor in tensors}) != 1:
        return torch.nn.utils.get_total_norm(tensors)
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def expect_like(name: str, ours: Tensor, theirs: Tensor, *, of: str = "model or guide") -> Tensor:
    """A tensor of a snapshot, if it has the shape and the type that are wanted.

    Raises:
        ValueError: it has not.
    """
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ValueError(
            f"the snapshot is of another {of}: expected {name} of shape "
            f"{tuple(theirs.shape)} and {theirs.dtype}, got {tuple(ours.shape)} and {ours.dtype}"
        )
    return ours


def describe_maker(make: Callable[..., Any] | None) -> str | None:
    """What makes an optimizer or a scheduler, and with which options, as far as it tells."""
    if isinstance(make, functools.partial):
        options = [*map(repr, make.args), *(f"{k}={v!r}" for k, v in make.keywords.items())]
        return f"{describe_maker(make.func)}({', '.join(options)})"
    return None if make is None else getattr(make, "__qualname__", type(make).__qualname__)


def _moments(optimizer: Optimizer, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    moments = {
        f"{name}/{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    _expect_tensors(type(optimizer).__name__, moments.items())
    return moments


def _expect_tensors(optimizer: str, moments: Iterable[tuple[str, Any]]) -> None:
    for name, value in moments:
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{optimizer} keeps {name} as {type(value).__name__}, and only tensors are saved: "
                "choose another optimizer, or train without snapshots"
            )
