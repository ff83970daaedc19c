"""All data against the support of the likelihood, whatever a model makes of them first."""

import torch
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from torch import Tensor

from evidence.inference.programs.checks import (
    check_site_support,
    check_support,
    has_fixed_support,
)
from evidence.inference.programs.data import Batch
from evidence.inference.programs.evaluation import no_training
from evidence.inference.programs.random_state import isolated_rng
from evidence.inference.programs.sites import Site, is_deterministic, observed_sites
from evidence.inference.programs.traces import Program, trace_pair


class CheckSupport(Messenger):
    """Check every value that is observed inside it.

    Raises:
        ValueError: as `check_support`.
    """

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["is_observed"] and not is_deterministic(msg):
            check_site_support(msg["name"], msg["fn"], msg["value"])


@torch.no_grad()
def check_all_data(
    model: Program, guide: Program, x: Batch, *, batch: Batch, model_trace: Trace
) -> None:
    """Check that what the model observes of any of the data `x` lies in its support.

    Where the trace shows that the model observes the batch itself, one look at `x` will do; else
    the pair is run on all of it, in batches as in training, without gradients.

    Args:
        model: called with a batch; scores it.
        guide: called with a batch; samples every latent of the model.
        x: data `[N, *data_shape]`.
        batch: the first rows of `x`, as many as in a training step.
        model_trace: of the model on that batch.

    Raises:
        ValueError: as `check_support`.
    """
    observed = observed_sites(model_trace).values()
    if isinstance(x, Tensor) and all(
        site["value"] is batch and has_fixed_support(site["fn"]) for site in observed
    ):
        for site in observed:
            check_site_support(site["name"], site["fn"], x)
        return
    with isolated_rng(device=x.device), no_training(model, guide):
        for rows in x.split(len(batch)):

            def run(rows: Batch = rows) -> Trace:
                return trace_pair(model, guide, rows).model

            check_support(run(), run)
