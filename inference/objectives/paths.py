"""What gradients flow through draws: all of it, a weighted part, or none."""

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from evidence.inference.programs.sites import Site, is_subsample, sites_of
from evidence.inference.programs.traces import Layout


class PathScale:
    """Multiplies gradients with respect to draws by weights that are known only afterwards.

    A gradient that has passed one of these is on its way through the guide's sampling, so each path
    from the model to the guide's parameters is scaled once, however many latent sites it visits.
    """

    def __init__(self) -> None:
        self._weights: Tensor | None = None
        self._layout: Layout | None = None
        self._num_runs = 0

    def show(self, guide_trace: Trace) -> Trace:
        """The trace with draws whose gradients will be scaled."""
        run, self._num_runs = self._num_runs, self._num_runs + 1

        def scaled(site: Site) -> Tensor:
            value = site["value"]
            if not (torch.is_tensor(value) and value.requires_grad):
                return value
            value = value.clone()
            value.register_hook(lambda gradient: gradient * self._aligned(run, site))
            return value

        return subset(guide_trace, lambda _: True, scaled)

    def set_weights(self, weights: Tensor, layout: Layout) -> None:
        """The weights `[K, M]`, before any gradient is taken."""
        self._weights, self._layout = weights.detach(), layout

    def _aligned(self, run: int, site: Site) -> Tensor:
        """The weights in the shape of the values of a site, with ones where they differ."""
        assert self._weights is not None  # see `set_weights`
        assert self._layout is not None
        weights, event_dim = self._weights.chunk(self._num_runs)[run], site["fn"].event_dim
        aligned = self._layout.align(weights, site["value"].ndim - event_dim)
        return aligned.reshape(aligned.shape + (1,) * event_dim)


class DetachDraws(Messenger):
    """Cut draws off their parameters.

    Unlike a draw without gradients, the draw is then a number like any other to a flow, which has
    to invert it as a function of its parameters.
    """

    def _pyro_post_sample(self, msg: Site) -> None:
        if not msg["is_observed"] and not isinstance(msg["fn"], _Subsample):
            msg["value"] = detached(msg["value"])


def gradient_only(value: Tensor) -> Tensor:
    """Zero, with the gradient of `value`."""
    return value - value.detach()


def subset(trace: Trace, keep: Callable[[Site], bool], value: Callable[[Site], Any]) -> Trace:
    """Those draws of a trace that are to be kept, with other values; subsamples stay."""
    subset = Trace()
    for name, site in sites_of(trace).items():
        if site["type"] != "sample" or site["is_observed"]:
            continue
        if is_subsample(site):
            subset.add_node(name, **site)
        elif keep(site):
            subset.add_node(name, **{**site, "value": value(site)})
    return subset


def detached(value: Any) -> Any:
    """A value without gradients, if it is a tensor."""
    return value.detach() if torch.is_tensor(value) else value
