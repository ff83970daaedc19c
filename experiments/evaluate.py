"""`evidence evaluate`: the ELBO and the evidence of a trained run."""

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from experiments import per_datum
from experiments.assembly import Assembly, load_run
from experiments.bracket import NUM_SIMULATED, bracket, bracket_table
from experiments.config import ANNEALING, Evaluate
from experiments.durations import evaluation_seconds, told
from experiments.estimates import estimate
from experiments.plane import mean_divergences
from experiments.report import ESTIMATED, Row, table, training_row, with_estimates
from experiments.runs import RunFolder
from guides import AbstractPosterior
from inference import History, Snapshot, latent_diagnostics
from inference.checks import check_density
from models import AbstractModel, Autoencoder

_DIAGNOSED = 2000  # data at the most, whose draws are held together
_DRAWS = 100  # per datum, to diagnose the latents


def evaluate(config: Evaluate) -> None:
    """Estimate, write results.json and print the table."""
    if config.estimator == "bdmc":
        row = bracket_run(config, announced=True)
        print(bracket_table([row]))
    else:
        row = evaluate_run(config, announced=True)
        print(table([row]))
        if row["latents"] is not None and row["latents"]["warning"]:
            print(f"\n{row['latents']['warning']}")
    print(f"\nwrote {config.run}/results.json")


def evaluate_run(config: Evaluate, *, announced: bool = False) -> Row:
    """Estimate the evidence of a run on its evaluation data; returns its row of results.json.

    Args:
        config: the run and the options.
        announced: say beforehand about how long it will take.
    """
    folder, assembly, snapshot = _loaded(config)
    rows = chosen_rows(len(assembly.x_test), config.num_data, assembly.config.data_seed)
    x = assembly.x_test[rows.to(assembly.x_test.device)]
    if announced:
        _announce(assembly, x, config)
    records, details = estimate(assembly, x, config, folder, snapshot)
    row = with_estimates(row_so_far(folder, assembly, snapshot), records, assembly)
    latents = _latents(assembly, x)
    row |= {
        "active_units": latents and {"count": latents["active"], "of": latents["of"]},
        "latents": latents,
        "divergences": mean_divergences(assembly.model, assembly.guide, x),
        "evaluation": settings(config),
        "annealing": details,
    }
    folder.write_text(per_datum.NAME, per_datum.to_csv(rows, records))
    folder.write_results("evaluate", [row])
    return row


def bracket_run(config: Evaluate, *, announced: bool = False) -> Row:
    """Bracket the evidence of data simulated from a run's model; returns its row."""
    folder, assembly, snapshot = _loaded(config)
    if announced:
        size = config.num_data or NUM_SIMULATED
        _announce(assembly, assembly.x_test[torch.arange(size) % len(assembly.x_test)], config)
    row = row_so_far(folder, assembly, snapshot)
    row["bracket"] = bracket(assembly, config, folder, snapshot)
    folder.write_results("evaluate", [row])
    return row


def _announce(assembly: Assembly, x: Tensor, config: Evaluate) -> None:
    """Say about how long it will take."""
    seconds = evaluation_seconds(assembly.model, assembly.guide, x, config)
    print(told(f"evaluating {len(x):,} data", seconds), flush=True)


def _loaded(config: Evaluate) -> tuple[RunFolder, Assembly, Snapshot]:
    """The run, once the options and the pair are known to be fit for it.

    Raises:
        ValueError: they are not.
    """
    _check_options(config)
    folder = RunFolder(config.run)
    assembly, snapshot = load_run(folder, device=config.device, data_root=config.data_root)
    expect_evidence(assembly.model, assembly.guide, assembly.x_test[:1])
    return folder, assembly, snapshot


def _check_options(config: Evaluate) -> None:
    counts = ("num_particles", "num_data", "num_chains", "num_temperatures", "num_leapfrog_steps")
    for name in counts:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"expected --{name} of at least 1, got {value}")
    if config.target_se is not None and config.estimator == "elbo":
        raise ValueError(
            "--target_se adds importance weights, and --estimator elbo has none: leave out one"
        )


def settings(config: Evaluate) -> dict[str, Any]:
    """What makes one evaluation of a run another than the next."""
    names = ["estimator", "num_particles", "num_data"]
    if config.target_se is not None:
        names += ["target_se", "max_particles"]
    if config.estimator == "ais":
        names += ANNEALING
    return {name: getattr(config, name) for name in names}


def chosen_rows(size: int, num_data: int | None, seed: int) -> Tensor:
    """So many of `size` rows, drawn without replacement, in order (MNIST's come easy first)."""
    if num_data is None or num_data >= size:
        return torch.arange(size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[:num_data].sort().values


def _latents(assembly: Assembly, x: Tensor) -> dict[str, Any] | None:
    """What the latents do, as JSON; None if all data are the same."""
    if (x == x[0]).all():
        return None
    found = latent_diagnostics(
        assembly.model,
        assembly.guide,
        x[:_DIAGNOSED],
        num_draws=_DRAWS,
        seed=assembly.config.seed,
    )
    return {
        "active": found.num_active,
        "of": found.num_latents,
        "kl": {name: kl.tolist() for name, kl in found.kl.items()},
        "kl_se": {name: se.tolist() for name, se in found.kl_se.items()},
        "ks": {name: distance.tolist() for name, distance in found.ks.items()},
        "warning": found.collapse_warning,
    }


@torch.no_grad()
def expect_evidence(model: AbstractModel, guide: AbstractPosterior, x: Tensor) -> None:
    """Check on a datum or more, `[B, D]`, that the pair defines importance weights at all.

    Raises:
        ValueError: the model has no prior, or the guide no density.
    """
    if isinstance(model, Autoencoder):
        raise ValueError(
            "Autoencoder has no prior p(z), so there is no log p(x) to estimate: its squared error "
            "is in the results.json of its training"
        )
    check_density(poutine.trace(guide).get_trace(x))


def row_so_far(folder: RunFolder, assembly: Assembly, snapshot: Snapshot) -> Row:
    """The row of the training, with what was found out about these weights before."""
    document = folder.read_results()
    history = History.from_rows(snapshot.meta["position"]["history"])
    before = document["rows"][0] if document else {}
    row = training_row(assembly, history, label=before.get("label", assembly.config.guide))
    row["folder"] = str(folder.path)
    if before.get("num_epochs") == row["num_epochs"]:
        row |= {name: before.get(name, row[name]) for name in ESTIMATED}
    return row
