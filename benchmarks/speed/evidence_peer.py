"""This suite, eager and compiled."""

import torch
from pyro.infer import Trace_ELBO

from benchmarks.speed.alternation import Turn
from evidence.experiments.setup.catalogue import Spec, build_guide
from evidence.inference import Compiled, fit
from evidence.inference.estimation.evidence import from_log_weights
from evidence.inference.programs.compiled_terms import CompiledTerms
from evidence.inference.programs.weights import unchecked_log_weights
from evidence.models import VAE


def pair(data_dim, latent_dim, hidden_dims, likelihood, guide="MeanField"):
    model = VAE(data_dim, latent_dim, hidden_dims=hidden_dims, likelihood=likelihood)
    return model, build_guide(Spec.parse(guide), model, torch.zeros(2, data_dim))[0]


def trainer(model, guide, x, batch, steps, *, compiled):
    """`fit`, all of it, its checks too; every turn goes on from the snapshot of the last one."""
    objective = Compiled(Trace_ELBO()) if compiled else Trace_ELBO()
    x = x[: len(x) // batch * batch]
    epochs, snapshots, number = max(1, steps * batch // len(x)), [None], 0

    def turn():
        nonlocal number
        number += 1
        history = fit(
            model,
            guide,
            x,
            num_epochs=number * epochs,
            batch_size=batch,
            objective=objective,
            compile=False,
            progress=False,
            resume_from=snapshots[-1],
            on_snapshot=snapshots.append,
            snapshot_every=10**9,
        )
        del snapshots[:-1]
        return Turn(epochs * len(x), history.epochs[-1].train_loss)

    return turn


def weigher(model, guide, x, num_particles, *, compiled):
    """Log-weights, their mean, its error bar and k̂."""
    terms = CompiledTerms(compiled, len(x) * num_particles)

    def turn():
        log_w = unchecked_log_weights(model, guide, x, num_particles, compiled=terms)
        return Turn(len(x) * num_particles, -from_log_weights(log_w)["iw"].mean)

    return turn


def logistic_trainer(model, guide, data, steps, *, compiled):
    objective = Compiled(Trace_ELBO()) if compiled else Trace_ELBO()
    num_data = len(data[0])

    def turn():
        options = {"num_steps": steps, "batch_size": num_data, "lr": 0.01, "compile": False}
        history = fit(model, guide, data, objective=objective, progress=False, **options)
        losses = [epoch.train_loss for epoch in history.epochs[-steps // 4 :]]
        return Turn(steps, sum(losses) / len(losses))

    return turn
