"""One torch optimizer for all parameters, where Pyro's own keeps one per parameter."""

from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor


class JointOptim(PyroOptim):
    """Fused Adam over all named parameters at once, behind Pyro's interface.

    Pyro builds a torch optimizer for each parameter, which costs about a quarter of a training
    step, and clips each gradient by its own norm; here there is one update and one joint norm.

    Reference: D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015,
    https://arxiv.org/abs/1412.6980.

    Args:
        parameters: unconstrained leaf tensors by name.
        lr: learning rate.
        clip_norm: largest joint gradient norm, or None for no clipping.
    """

    def __init__(
        self, parameters: dict[str, Tensor], *, lr: float, clip_norm: float | None = None
    ) -> None:
        super().__init__(torch.optim.Adam, {})
        self.parameters = parameters
        self.clip_norm = clip_norm
        self.adam = torch.optim.Adam(list(parameters.values()), lr=lr, fused=True)

    def __call__(self, params: Any = (), *args: Any, **kwargs: Any) -> None:
        """Update every parameter that has a gradient, then drop the gradients.

        Raises:
            FloatingPointError: the joint gradient norm is not finite; nothing was updated.
        """
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            self.zero_grad()
            raise FloatingPointError(f"the gradient norm is {norm.item()}")
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters.values(), self.clip_norm, norm)
        self.adam.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.adam.zero_grad(set_to_none=True)

    def set_lr(self, lr: float) -> None:
        """Change the learning rate from the next update on."""
        for group in self.adam.param_groups:
            group["lr"] = lr

    def get_state(self) -> dict[str, Tensor]:
        """Adam's moments and step counts as `"<parameter>/<moment>" -> tensor`."""
        return {
            f"{name}/{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self.adam.state[parameter].items()
        }

    def set_state(self, state_dict: dict[str, Tensor]) -> None:
        """Restore what `get_state` returned."""
        for key, value in state_dict.items():
            name, moment = key.rsplit("/", 1)
            self.adam.state[self.parameters[name]][moment] = value.clone()
