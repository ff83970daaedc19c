"""`evidence evaluate`: the ELBO and the importance-weighted evidence of a trained run."""

import sys

import torch
from pyro import poutine
from tqdm import tqdm

from experiments.assembly import Assembly, load_run
from experiments.config import Evaluate
from experiments.report import Row, table, training_row, with_estimates
from experiments.runs import RunFolder
from guides import AbstractGuide
from inference import Evidence, History, Snapshot, estimate_evidence
from inference.checks import check_density
from inference.random_state import isolated_rng
from models import AbstractModel, Autoencoder, LinearGaussian


def evaluate(config: Evaluate) -> None:
    """Estimate, write results.json and print the table."""
    row = evaluate_run(config)
    print(table([row]))
    print(f"\nwrote {config.run}/results.json")


def evaluate_run(config: Evaluate) -> Row:
    """Estimate the evidence of a run on its evaluation data; returns its row of results.json."""
    if config.num_particles < 1:
        raise ValueError(f"expected --num_particles of at least 1, got {config.num_particles}")
    folder = RunFolder(config.run)
    assembly, snapshot = load_run(folder, device=config.device, data_root=config.data_root)
    row = _row_so_far(folder, assembly, snapshot)
    row = with_estimates(row, estimate(assembly, config.num_particles), assembly)
    folder.write_results("evaluate", [row])
    return row


@torch.no_grad()
def estimate(assembly: Assembly, num_particles: int) -> list[Evidence]:
    """The records of a trained pair: ELBO, IW evidence and, where there is one, the exact one."""
    expect_evidence(assembly.model, assembly.guide)
    num_data = len(assembly.x_test)
    with (
        isolated_rng(assembly.config.seed, assembly.x_test.device),
        tqdm(total=num_data, unit="datum", disable=not sys.stderr.isatty()) as bar,
    ):
        bar.set_description(f"{num_particles} particles")
        records = estimate_evidence(
            assembly.model, assembly.guide, assembly.x_test, num_particles, progress=bar.update
        )
    exact = (
        [Evidence.exact(assembly.model.log_evidence(assembly.x_test))]
        if isinstance(assembly.model, LinearGaussian)
        else []
    )
    return [records["elbo"], records["iw"], *exact]


@torch.no_grad()
def expect_evidence(model: AbstractModel, guide: AbstractGuide) -> None:
    """Check that the pair defines importance weights at all.

    Raises:
        ValueError: the model has no prior, or the guide no density.
    """
    if isinstance(model, Autoencoder):
        raise ValueError(
            "Autoencoder has no prior p(z), so there is no log p(x) to estimate: its squared error "
            "is in the results.json of its training"
        )
    x = next(guide.parameters()).new_zeros(1, guide.data_dim)
    check_density(poutine.trace(guide).get_trace(x))


def _row_so_far(folder: RunFolder, assembly: Assembly, snapshot: Snapshot) -> Row:
    document = folder.read_results()
    history = History.from_rows(snapshot.meta["position"]["history"])
    label = document["rows"][0]["label"] if document else assembly.config.guide
    row = training_row(assembly, history, label=label)
    row["folder"] = str(folder.path)
    return row
