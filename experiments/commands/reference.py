"""`evidence reference`: the guides of trained runs beside NUTS, on a few chosen data."""

import math
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from evidence.experiments.config import Reference
from evidence.experiments.reports import plots
from evidence.experiments.reports.pictures_joint import draw_joint, entry_names
from evidence.experiments.reports.pictures_posterior import draw_reference
from evidence.experiments.reports.reference import CLEAR, KL, reference_table
from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.one_model import load_runs
from evidence.experiments.storage.numbers import finite
from evidence.experiments.storage.runs import RunFolder
from evidence.inference.diagnostics.discrepancy import (
    Discrepancy,
    compare_to_reference,
    over_data,
)
from evidence.inference.diagnostics.mode_coverage import ModeCoverage
from evidence.inference.paths.reference import Reference as Draws
from evidence.inference.paths.reference import nuts_reference
from evidence.inference.programs.data import Batch
from evidence.models import AbstractModel

REFERENCE_VERSION = 1
NAME = "reference.json"
PICTURE = "reference.png"

_LEAST_NATS = 1e-3  # of a divergence that is more than rounding
_FEWEST = 20  # independent draws that anything can be compared with


def reference(config: Reference) -> None:
    """Draw by NUTS, compare, write reference.json and reference.png, and print the table."""
    folder = RunFolder(_folder(config))
    with folder.locked() if folder.path.exists() else nullcontext():
        document, figure = compared(config)
        print(reference_table(document), flush=True)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            plots.save_with(figure, PICTURE, folder, NAME, document)
            print(f"\nwrote {folder.path}: {NAME}, {PICTURE}")
        finally:
            print(f"\n{document['verdict']}")


def compared(config: Reference) -> tuple[dict[str, Any], Figure]:
    """What reference.json and reference.png hold.

    Raises:
        ValueError: bad options, runs of different models, or too few independent draws.
    """
    pairs = load_runs(config.runs, config)
    first = next(iter(pairs.values()))
    rows = _rows(first, config)
    x = first.x_test if first.is_joint else first.x_test[torch.tensor(rows, device=first.device)]
    draws, seconds = _draw(first, x, config)
    modes = None
    if isinstance(first.model, AbstractModel) and isinstance(x, Tensor):
        modes = first.model.modes(x)
    found = {
        label: compare_to_reference(
            first.model,
            pair.guide,
            draws,
            modes=modes,
            classifier=config.classifier,
            seed=config.seed,
        )
        for label, pair in pairs.items()
    }
    document = _document(first, config, draws, found) | {"nuts_seconds": seconds}
    if first.is_joint:
        return document, draw_joint(pairs, draws, seed=config.seed)
    guides = {label: pair.guide for label, pair in pairs.items()}
    return document, draw_reference(first.model, guides, draws, rows, seed=config.seed)


def _folder(config: Reference) -> Path:
    """Where to write, before anything is drawn.

    Raises:
        ValueError: --out is no folder.
    """
    if config.out is None:
        return RunFolder(config.runs[0]).path
    path = Path(config.out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"--out {path} is a file: expected a folder")
    return path


def _rows(pair: Assembly, config: Reference) -> list[int]:
    """The rows of the evaluation data; none where they are one data set, which is meant.

    Raises:
        ValueError: a row that is not there, or is named twice.
    """
    rows, size = config.rows, len(pair.x_test)
    if pair.is_joint:
        if rows != [0]:
            raise ValueError(
                f"{pair.config.model} has latents that its {size} data share, and no posterior for "
                "a row: leave out --rows"
            )
        return []
    if not rows or len(set(rows)) < len(rows):
        raise ValueError(f"expected one or more different --rows, got {rows}")
    if wrong := [row for row in rows if not 0 <= row < size]:
        raise ValueError(f"expected --rows between 0 and {size - 1}, got {wrong[0]}")
    return rows


def _draw(pair: Assembly, x: Batch, config: Reference) -> tuple[Draws, float]:
    """The reference, and the seconds it took.

    Raises:
        ValueError: a bad option, or too few independent draws to compare anything with.
    """
    for name, least in (("num_samples", 4), ("num_warmup", 1), ("num_chains", 2)):
        if getattr(config, name) < least:
            raise ValueError(f"expected --{name} of at least {least}, got {getattr(config, name)}")
    if not 0 < config.target_accept_prob < 1:
        raise ValueError(
            f"expected --target_accept_prob between 0 and 1, got {config.target_accept_prob}"
        )
    pair.model.requires_grad_(False)  # or their gradients would be taken at every step
    start = time.perf_counter()
    try:
        draws = nuts_reference(
            pair.model,
            x,
            num_samples=config.num_samples,
            num_warmup=config.num_warmup,
            num_chains=config.num_chains,
            target_accept_prob=config.target_accept_prob,
            seed=config.seed,
            progress=sys.stderr.isatty(),
        )
    except NotImplementedError as error:  # a support that no smooth map leads to
        raise ValueError(f"NUTS cannot move the latents of {pair.config.model}: {error}") from None
    seconds = time.perf_counter() - start
    ess = draws.ess.min().item()
    if not math.isfinite(ess) or len(draws.independent_draws) < _FEWEST:
        raise ValueError(
            f"NUTS has NOT CONVERGED, R̂ up to {draws.r_hat.max():.3f} and ESS from {ess:.0f}, and "
            "there is nothing to compare with: raise --num_warmup and --num_samples"
        )
    return draws, seconds


def _document(
    pair: Assembly, config: Reference, draws: Draws, found: Mapping[str, Discrepancy]
) -> dict[str, Any]:
    """Everything that was found, as reference.json has it."""
    folders = dict(zip(found, config.runs, strict=True))
    names, rows = latent_names(pair, draws), [] if pair.is_joint else config.rows
    document = {
        "version": REFERENCE_VERSION,
        "command": "reference",
        "model_name": Spec.parse(pair.config.model).name,
        "model": pair.config.model,
        "data": pair.config.data,
        "split": pair.config.split,
        "unit": pair.unit,
        "num_data": len(pair.x_test) if pair.is_joint else len(rows),
        "rows": rows,
        "seed": config.seed,
        "nuts": {
            "num_chains": config.num_chains,
            "num_samples": config.num_samples,
            "num_warmup": config.num_warmup,
            "target_accept_prob": config.target_accept_prob,
            "r_hat_max": draws.r_hat.max().item(),
            "ess_min": draws.ess.min().item(),
            "num_divergences": draws.num_divergences,
            "num_independent": len(draws.independent_draws),
            "converged": draws.converged,
        },
        "latents": names,
        "classifier": config.classifier,
        "guides": [
            {"label": label, "folder": folders[label], **_of_guide(one, names, draws, rows)}
            for label, one in found.items()
        ],
        **pair.fingerprint(),
    }
    document = finite(document)
    return document | {"verdict": _verdict(document)}


def in_brief(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What results.json says of every guide: the distances, if the reference is one."""
    keys = ("label", "eubo", "forward_kl", "wasserstein", "modes", "told_apart_by")
    converged = {"converged": document["nuts"]["converged"]}
    return [{key: guide[key] for key in keys} | converged for guide in document["guides"]]


def latent_names(pair: Assembly, draws: Draws) -> list[str]:
    """One name per entry of z, such as "z[0]"."""
    if pair.is_joint:
        return entry_names({name: value.shape[1:] for name, value in draws.site_values.items()})
    return [f"{site}[{i}]" for site, entries in draws.sites.items() for i in range(entries)]


def _of_guide(one: Discrepancy, names: list[str], draws: Draws, rows: list[int]) -> dict[str, Any]:
    """What is known of one guide: the worst entry, means over the data, and every datum."""
    sd = draws.draws.flatten(0, 1).std(0)
    mean = _worst(one.mean_difference, one.mean_se, sd, names, rows)
    spread = _worst(one.sd_difference, one.sd_se, sd, names, rows)
    kl = _mean(one.forward_kl, one.forward_kl_se)
    per_datum = {
        "c2st_accuracy": one.accuracy.mean,
        "c2st_se": one.accuracy.se,
        "sliced_wasserstein": one.sliced_wasserstein,
        "sliced_wasserstein_floor": one.sliced_wasserstein_floor,
        "log_q_z": one.log_q_z,
        "log_q_z_se": one.log_q_z_se,
        "eubo": one.eubo,
        "eubo_se": one.eubo_se,
        "forward_kl": one.forward_kl,
        "forward_kl_se": one.forward_kl_se,
        "wasserstein": one.wasserstein,
        "wasserstein_floor": one.wasserstein_floor,
    }
    return {
        "mean": mean,
        "sd": spread,
        "sliced_wasserstein": one.sliced_wasserstein.mean().item(),
        "sliced_wasserstein_floor": one.sliced_wasserstein_floor.mean().item(),
        "wasserstein": _farthest(one, names, rows),
        "c2st": _mean(*one.accuracy),
        "log_q_z": _mean(one.log_q_z, one.log_q_z_se),
        "eubo": _mean(one.eubo, one.eubo_se),
        "forward_kl": {**kl, "caveat": one.caveat},
        "modes": None if one.modes is None else _modes(*one.modes),
        "told_apart_by": _told_apart_by(one, mean, spread, kl) if draws.converged else None,
        "per_datum": {n: t.tolist() for n, t in per_datum.items()},
    }


def _worst(
    difference: Tensor, se: Tensor, sd: Tensor, names: list[str], rows: list[int]
) -> dict[str, Any]:
    """The entry `[B, Z]` whose difference is most standard errors."""
    z_scores = (difference / se).nan_to_num()
    datum, entry = divmod(int(z_scores.abs().argmax()), len(names))
    return {
        "standard_errors": z_scores[datum, entry].item(),
        "difference": difference[datum, entry].item(),
        "of_the_posterior_sd": (difference / sd)[datum, entry].item(),
        "latent": names[entry],
        "row": rows[datum] if rows else None,
    }


def _farthest(one: Discrepancy, names: list[str], rows: list[int]) -> dict[str, Any]:
    """The marginal `[B, Z]` that is farthest off, beside how far the farthest is by chance."""
    datum, entry = divmod(int((one.wasserstein - one.wasserstein_floor).argmax()), len(names))
    return {
        "worst": one.worst_wasserstein.between.mean().item(),
        "floor": one.worst_wasserstein.floor.mean().item(),
        "latent": names[entry],
        "row": rows[datum] if rows else None,
    }


def _modes(guide: ModeCoverage, reference: ModeCoverage) -> dict[str, Any]:
    """The shares of guide and reference in every known mode, for each datum."""
    return {
        "exact": guide.exact.tolist(),
        "exact_entropy": guide.exact_entropy.tolist(),
        "guide": _coverage(guide),
        "reference": _coverage(reference),
    }


def _coverage(found: ModeCoverage) -> dict[str, Any]:
    return {
        "shares": found.shares.tolist(),
        "se": found.se.tolist(),
        "entropy": _mean(*found.entropy),
        "jensen_shannon": _mean(*found.jensen_shannon),
    }


def _mean(values: Tensor, errors: Tensor) -> dict[str, float | None]:
    """Over the data, whose draws are independent."""
    mean, se = over_data(values, errors)
    return {"mean": mean.item(), "se": se.item()}


def _told_apart_by(
    one: Discrepancy, mean: Mapping[str, Any], sd: Mapping[str, Any], kl: Mapping[str, Any]
) -> list[str]:
    """By which statistics the guide is clearly not the posterior."""
    of_all = over_data(*one.accuracy)
    classified = torch.cat(
        [
            (one.accuracy.mean - 0.5) / one.accuracy.se,
            ((of_all.mean - 0.5) / of_all.se).unsqueeze(0),
        ]
    )
    is_divergent = one.caveat is None and kl["mean"] > _LEAST_NATS
    scores = {
        "mean": abs(mean["standard_errors"]),
        "sd": abs(sd["standard_errors"]),
        "C2ST": classified.max().item(),
        KL: kl["mean"] / kl["se"] if is_divergent else 0.0,
    }
    return [name for name, score in scores.items() if score > CLEAR]


def _verdict(document: dict[str, Any]) -> str:
    """One sentence."""
    nuts = document["nuts"]
    diagnostics = (
        f"R̂ up to {nuts['r_hat_max']:.3f}, ESS from {nuts['ess_min']:,.0f}, "
        f"{nuts['num_divergences']} divergences"
    )
    if not nuts["converged"]:
        return (
            f"NUTS has NOT CONVERGED ({diagnostics}), so there is no reference and the table says "
            "nothing: raise --num_warmup and --num_samples, or --target_accept_prob"
        )
    parts = [
        f"{guide['label']} is told apart by {', '.join(guide['told_apart_by'])}"
        if guide["told_apart_by"]
        else f"{guide['label']} is not told apart"
        for guide in document["guides"]
    ]
    return f"NUTS has converged ({diagnostics}); from its draws {'; '.join(parts)}"
