"""`evidence gaps`: what of the ELBO's shortfall is the family's, and what the encoder's."""

import sys
from collections.abc import Sequence
from contextlib import ExitStack

import torch

from evidence.experiments.commands.estimates import exact
from evidence.experiments.commands.evaluate import chosen_rows, row_so_far
from evidence.experiments.config import Gaps
from evidence.experiments.reports import plots, plots_comparison
from evidence.experiments.reports.report import markdown, plus_minus
from evidence.experiments.setup.assembly import Assembly, expect_evidence
from evidence.experiments.setup.labels import shortened
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage.records import GapsRecord, Judge, Part, Row
from evidence.experiments.storage.runs import RunFolder
from evidence.inference import Difference, inference_gaps
from evidence.inference.programs.data import Batch
from evidence.inference.programs.random_state import isolated_rng

_PARTS = ("approximation", "amortization", "total")


def gaps(config: Gaps) -> None:
    """Measure the gaps of every run, write them into its results.json, print and draw them."""
    folders = [RunFolder(run) for run in config.runs]
    if len({folder.path.resolve() for folder in folders}) < len(folders):
        raise ValueError(f"expected different runs, got {' '.join(config.runs)}")
    rows, unwritten = [], None
    with ExitStack() as locks:
        for folder in folders:
            locks.enter_context(folder.locked())
        for folder in folders:
            rows.append(gaps_run(folder, config))
            try:
                folder.write_results("gaps", [rows[-1]])
            except OSError as error:  # what is measured is printed all the same
                unwritten = error
        print(gaps_table(rows), flush=True)
        if unwritten is not None:
            raise unwritten
        picture = folders[0].path / "gaps.png"
        plots.save(plots_comparison.gap_bars(rows), picture)
    print(f"\nwrote {picture} and the results.json of every run")


def gaps_run(folder: RunFolder, config: Gaps) -> Row:
    """Measure the gaps of a run on its evaluation data; returns its row of results.json."""
    assembly, snapshot = load_run(folder, config)
    _expect_encoder(assembly)
    chosen = chosen_rows(len(assembly.x_test), config.num_data, assembly.config.data_seed)
    before = row_so_far(folder, assembly, snapshot)
    x = assembly.x_test[chosen.to(assembly.x_test.device)]
    options = {name: getattr(config, name) for name in ("num_data", "num_particles", "max_steps")}
    found = {"gaps": _measure(assembly, x, config)}
    return before.with_evaluation({"command": "gaps", **options}, found)


def _expect_encoder(assembly: Assembly) -> None:
    expect_evidence(assembly.model, assembly.guide, assembly.few)
    if assembly.is_joint:
        raise ValueError(
            f"{assembly.config.guide} has one λ for the data set, which training itself optimizes, "
            "so there is no amortization gap: the approximation gap is log p(x) − ELBO, which "
            "`evidence evaluate` and `compare` show"
        )
    if not assembly.is_amortized:
        raise ValueError(
            f"{assembly.config.guide} has no encoder, so it has no amortization gap: name the run "
            "of the guide inside"
        )


def _measure(assembly: Assembly, x: Batch, config: Gaps) -> GapsRecord:
    """The gaps as results.json has them."""
    with isolated_rng(assembly.config.seed, x.device):
        found = inference_gaps(
            assembly.model,
            assembly.guide,
            x,
            num_particles=config.num_particles,
            max_steps=config.max_steps,
            evidence=exact(assembly, x),
            progress=sys.stderr.isatty(),
        )
    return GapsRecord(
        **{part: _difference(getattr(found, part)) for part in _PARTS},
        evidence=Judge(
            estimator=found.evidence.estimator,
            nats=found.evidence.mean,
            reliable=found.evidence.not_reliable is None,
            reason=found.evidence.not_reliable,
        ),
        share_bad=found.evidence.share_bad,
        num_data=len(x),
        num_particles=config.num_particles,
        num_steps=found.num_steps,
        converged=found.converged,
    )


@torch.no_grad()
def _difference(found: Difference) -> Part:
    return Part(nats=found.mean, mc_se=found.mc_se, data_se=found.data_se)


def gaps_table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows' gaps, under a line that says what its numbers are."""
    short = shortened(row.label for row in rows)
    found = [(short[row.label], row.gaps) for row in rows if row.gaps is not None]
    lines = [_cells(label, record) for label, record in found]
    return f"{_caption(found[0][1])}\n\n{markdown(lines)}"


def _cells(label: str, found: GapsRecord) -> dict[str, str]:
    cells = {"guide": label, "log p(x)": _evidence(found)}
    cells |= {f"{part} gap": _with_errors(getattr(found, part)) for part in _PARTS}
    if found.share_bad is not None:
        cells["bad k̂ of log p(x)"] = f"{100 * found.share_bad:.1f}%"
    done = "yes" if found.converged else f"no, {found.num_steps:,} steps"
    return cells | {"search converged": done}


def _caption(found: GapsRecord) -> str:
    return (
        f"{found.num_data} data. Nats per datum; ± Monte Carlo SE ± data SE. Approximation: "
        "what a richer family could gain; amortization: what a better encoder could gain. An "
        "importance-weighted log p(x) is a lower bound, and with it the approximation gap."
    )


def _evidence(found: GapsRecord) -> str:
    name = {"exact": "exact", "iw": f"IW-{found.num_particles}"}[found.evidence.estimator]
    doubt = "" if found.evidence.reliable else "NOT RELIABLE "
    return f"{doubt}{found.evidence.nats:.3f} ({name})"


def _with_errors(part: Part) -> str:
    return plus_minus(part.nats, part.mc_se, part.data_se, digits=4)
