"""Data simulated from any Pyro model, and the latents that made them."""

import torch
from pyro import poutine
from pyro.poutine import Trace
from torch import Tensor

from evidence.inference.programs.data import Batch, tensors_in, with_replaced
from evidence.inference.programs.evaluation import evaluation_mode, modules_of
from evidence.inference.programs.traces import Program, random_sites


@torch.no_grad()
def simulate(model: Program, size: int | None, like: Batch | None = None) -> tuple[Trace, Batch]:
    """The trace of a simulation of `size` data from the model, and these data.

    Args:
        model: called as `model(None, size=N)`; or, given `like`, with a batch.
        size: N; by default as many as `like` has.
        like: a batch to simulate another one like; its rows are used in turn, and what is observed
            of them is drawn anew.

    Raises:
        ValueError: the model cannot be simulated so.
    """
    if size is not None and size < 1:
        raise ValueError(f"expected a size of at least 1, got {size}")
    with evaluation_mode(model):
        if like is None:
            if size is None:
                raise ValueError("expected a size or a batch to simulate another one like")
            return _simulated_alone(model, size)
        if size is not None:
            like = like[torch.arange(size, device=like.device) % len(like)]
        trace = poutine.trace(poutine.uncondition(model)).get_trace(like)
    return trace, observed_like(trace, like)


def _simulated_alone(model: Program, size: int) -> tuple[Trace, Tensor]:
    try:
        trace = poutine.trace(model).get_trace(None, size=size)
    except TypeError as error:
        raise ValueError(
            f"the model cannot be called as model(None, size=N) ({error}): pass a batch to "
            "simulate another one like"
        ) from error
    data = trace.nodes["_RETURN"]["value"]
    if not isinstance(data, Tensor) or data.shape[:1] != (size,):
        raise ValueError(
            f"expected model(None, size={size}) to return data of shape ({size}, ...), got "
            f"{tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__}"
        )
    return trace, data


def observed_like(trace: Trace, like: Batch) -> Batch:
    """The data in which every tensor that a site observes is what was drawn there.

    Raises:
        ValueError: no site observes any of the tensors as it is, or several the same.
    """
    tensors = {id(tensor): tensor.shape for tensor in tensors_in(like)}
    sites = [
        site
        for site in random_sites(trace).values()
        if site["infer"].get("was_observed") or site["infer"].get("obs") is not None
    ]
    drawn = {id(site["infer"].get("obs")): site["value"] for site in sites}
    as_it_is = [obs for obs, value in drawn.items() if tensors.get(obs) == value.shape]
    if not as_it_is or len(as_it_is) < len(sites):
        raise ValueError(
            f"expected one site that observes x as it is, got {len(as_it_is)} of {len(sites)} "
            "observed sites: give the model a form model(None, size=N) that returns data"
        )
    return with_replaced(like, drawn)


def device_of(model: Program, x: Batch | None) -> torch.device | None:
    """Where the batch is, or else the model's parameters."""
    if x is not None:
        return x.device
    return next((p.device for module in modules_of(model) for p in module.parameters()), None)
