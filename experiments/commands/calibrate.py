"""`evidence calibrate`: simulation-based calibration of a trained run."""

import sys
import warnings
from typing import Any

import numpy as np

from evidence.experiments.config import Calibrate
from evidence.experiments.reports import plots, plots_posterior
from evidence.experiments.reports.report import markdown
from evidence.experiments.setup.assembly import Assembly, expect_evidence
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.loading import load_run
from evidence.experiments.setup.one_model import run_label
from evidence.experiments.storage.runs import RunFolder
from evidence.inference.diagnostics.calibration import (
    LOG_P_X,
    LOG_Q_Z,
    Calibration,
    simulation_based_calibration,
)

CALIBRATION_VERSION = 1
NAME = "calibration.json"
PICTURE = "calibration.png"
OF_DATA = (LOG_P_X, LOG_Q_Z)  # what depends on the data, beside the latents

_LEVEL = 0.99  # of all bands together: an exact guide has a quantity outside once in a hundred runs
_CENTRAL = (0.5, 0.9)
_FEWEST_DRAWS = 19  # they have a central interval of 90%
_TABLED = 12  # latents at the most
_CLEAR = 3.0  # standard errors from which a sentence names over- or underconfidence

Quantity = dict[str, Any]


def calibrate(config: Calibrate) -> None:
    """Rank, write calibration.json and calibration.png, and print table and verdict."""
    if config.num_draws < _FEWEST_DRAWS:
        raise ValueError(
            f"expected --num_draws of at least {_FEWEST_DRAWS}, got {config.num_draws}"
        )
    folder = RunFolder(config.run)
    with folder.locked():
        assembly, _ = load_run(folder, config)
        _expect_any_data(assembly)
        found = simulation_based_calibration(
            assembly.model,
            assembly.guide,
            num_simulations=config.num_simulations,
            num_draws=config.num_draws,
            seed=config.seed,
            progress=sys.stderr.isatty(),
        )
        document = _document(found, assembly, config, label=run_label(folder, assembly))
        print(calibration_table(document), flush=True)
        try:
            figure = plots_posterior.calibration(found, document)
            plots.save_with(figure, PICTURE, folder, NAME, document)
            print(f"\nwrote {folder.path}: {NAME}, {PICTURE}")
        finally:
            print(f"\n{document['verdict']}")


def _expect_any_data(assembly: Assembly) -> None:
    expect_evidence(assembly.model, assembly.guide, assembly.few)
    if not assembly.is_amortized:
        raise ValueError(
            f"{assembly.config.guide} knows no other data than its own, and calibration needs "
            "simulated ones: name the run of a guide with an encoder"
        )


def _document(
    found: Calibration, assembly: Assembly, config: Calibrate, *, label: str
) -> dict[str, Any]:
    """Everything that was found, as calibration.json has it."""
    level = 1 - (1 - _LEVEL) / len(found.ranks)
    document = {
        "version": CALIBRATION_VERSION,
        "command": "calibrate",
        "label": label,
        "model_name": Spec.parse(assembly.config.model).name,
        "model": assembly.config.model,
        "guide": assembly.config.guide,
        "data": assembly.config.data,
        "num_simulations": found.num_simulations,
        "num_draws": found.num_draws,
        "seed": config.seed,
        "level": _LEVEL,
        "level_of_each": level,
        "quantities": _quantities(found, level),
        "coverage": _coverage(found),
        **assembly.fingerprint(),
    }
    return document | {"verdict": _verdict(document)}


def _quantities(found: Calibration, level: float) -> list[Quantity]:
    """Every quantity, the worst latent first, and behind the latents those of the data."""
    lower, upper = found.band(level)
    uniform = np.arange(1, found.num_draws + 1) / (found.num_draws + 1)
    with warnings.catch_warnings():  # of quantiles at tails as small as ranks all at one end have
        warnings.simplefilter("ignore", RuntimeWarning)
        p_values = found.p_values
    quantities: list[Quantity] = []
    for name, ranks in found.ranks.items():
        ecdf = found.ecdf(name)
        off = ecdf - uniform
        ratios = off / np.where(off > 0, upper - uniform, lower - uniform)
        place = int(ratios.argmax())
        quantities.append(
            {
                "quantity": name,
                "largest_deviation": float(off[place]),
                "at_ranks_below": place + 1,
                "band": [float((end - uniform)[place]) for end in (lower, upper)],
                "of_the_band": float(ratios[place]),
                "p_value": p_values[name],
                "inside": bool(((lower <= ecdf) & (ecdf <= upper)).all()),
                "central_coverage": [_central(ranks.numpy(), found.num_draws, m) for m in _CENTRAL],
                "rank_counts": np.bincount(ranks.numpy(), minlength=found.num_draws + 1).tolist(),
            }
        )
    latents = [q for q in quantities if q["quantity"] not in OF_DATA]
    latents.sort(key=lambda q: -q["of_the_band"])
    return latents + [q for q in quantities if q["quantity"] in OF_DATA]


def _central(ranks: np.ndarray, num_draws: int, mass: float) -> dict[str, float]:
    """How often the truth is in the middle of the draws, in an interval of about this mass.

    It leaves out as many ranks at either end; its mass, a multiple of 1 / (L + 1), is exact.
    """
    cells = num_draws + 1
    tail = round(cells * (1 - mass) / 2)
    nominal = 1 - 2 * tail / cells
    inside = ((ranks >= tail) & (ranks < cells - tail)).mean()
    error = np.sqrt(nominal * (1 - nominal) / len(ranks))
    return {"nominal": nominal, "estimate": float(inside), "se": float(error)}


def _coverage(found: Calibration) -> list[dict[str, float]]:
    """Of the guide's regions of highest density."""
    if LOG_Q_Z not in found.ranks:
        return []
    coverage = found.coverage((0.5, 0.8, 0.9, 0.95))
    columns = (coverage.nominal, coverage.estimate, coverage.se)
    return [
        dict(zip(("nominal", "estimate", "se"), map(float, row), strict=True))
        for row in zip(*columns, strict=True)
    ]


def _verdict(document: dict[str, Any]) -> str:
    """One sentence."""
    quantities = document["quantities"]
    outside = [q["quantity"] for q in quantities if not q["inside"]]
    simulations = f"{document['num_simulations']:,} simulations"
    if not outside:
        return (
            f"{document['label']}: no miscalibration found in {simulations}: all "
            f"{len(quantities)} quantities are inside their bands"
        )
    few = ", ".join(outside[:3]) + (", …" if len(outside) > 3 else "")
    text = (
        f"{document['label']}: NOT CALIBRATED in {simulations}: {len(outside)} of "
        f"{len(quantities)} quantities are outside their bands ({few})"
    )
    return f"{text}; {_direction(document, outside)}"


def _direction(document: dict[str, Any], outside: list[str]) -> str:
    """What kind of error the coverage tells of."""
    if outside == [LOG_P_X]:
        return "the latents alone look right, but the draws do not fit their data as they should"
    if not document["coverage"]:
        return "the regions of highest density are unknown"
    worst = max(document["coverage"], key=lambda row: abs(row["estimate"] - row["nominal"]))
    z_score = (worst["estimate"] - worst["nominal"]) / worst["se"]
    if abs(z_score) < _CLEAR:
        return "the posteriors are off in place or shape, not in size"
    kind = "too narrow or misplaced" if z_score < 0 else "too wide"
    return (
        f"the posteriors are {kind}: regions of {worst['nominal']:.0%} hold the truth in "
        f"{worst['estimate']:.1%} of the simulations"
    )


def calibration_table(document: dict[str, Any]) -> str:
    """The Markdown table of the quantities, under a line that says what its numbers are."""
    latents = [q for q in document["quantities"] if q["quantity"] not in OF_DATA]
    shown = latents[:_TABLED] + document["quantities"][len(latents) :]
    lines = [_cells(quantity, document["coverage"]) for quantity in shown]
    rest = ""
    if len(latents) > _TABLED:
        count = sum(not q["inside"] for q in latents)
        rest = (
            f" The worst {_TABLED} of {len(latents)} latents, {count} of which are outside; all "
            f"are in {NAME}."
        )
    return f"{_caption(document)}{rest}\n\n{markdown(lines)}"


def _caption(document: dict[str, Any]) -> str:
    errors = [part["se"] for part in document["quantities"][0]["central_coverage"]]
    simulated = f"{document['num_simulations']:,} data simulated from {document['model_name']}"
    return (
        f"{document['label']}, calibrated on {simulated}, {document['num_draws']} draws each. "
        "Deviation: of the share of ranks below a value from the uniform share, where it is the "
        "largest part of the band there; an exact guide is inside all bands with a probability of "
        f"{document['level']:.0%} or more. Coverage: how often the truth is in the central "
        "interval, of log q(z | x) in the region of highest density; if calibrated, "
        f"± {errors[0]:.3f} and ± {errors[1]:.3f}."
    )


def _cells(quantity: Quantity, coverage: list[dict[str, float]]) -> dict[str, str]:
    low, high = quantity["band"]
    parts = quantity["central_coverage"]
    if quantity["quantity"] == LOG_Q_Z:
        parts = [min(coverage, key=lambda row: abs(row["nominal"] - mass)) for mass in _CENTRAL]
    cells = {
        "quantity": quantity["quantity"].replace("|", "\\|"),
        "largest deviation": f"{quantity['largest_deviation']:+.3f}",
        "band there": f"{low:+.3f} to {high:+.3f}",
        "inside": "yes" if quantity["inside"] else "NO",
    }
    for mass, part in zip(_CENTRAL, parts, strict=True):
        off = abs(part["nominal"] - mass) > 0.005
        cells[f"covered at {mass:.0%}"] = f"{part['estimate']:.3f}" + (
            f" (at {part['nominal']:.0%})" if off else ""
        )
    return cells
