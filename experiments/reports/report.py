"""Rows of results.json, and the table that people read."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.estimators import ESTIMATORS, in_order
from evidence.experiments.setup.labels import shortened
from evidence.experiments.setup.preprocessing import bits_per_dim
from evidence.experiments.storage.numbers import json_number
from evidence.experiments.storage.results import ESTIMATED, Row
from evidence.inference import Evidence, History

_REASONS_SHOWN = 3


def training_row(assembly: Assembly, history: History, *, label: str) -> Row:
    """What is known once a pair is trained; the estimates are still to come."""
    config = assembly.config
    model, guide = Spec.parse(config.model), Spec.parse(config.guide)
    sizes = {
        role: sum(parameter.numel() for parameter in module.parameters())
        for role, module in (("model", assembly.model), ("guide", assembly.guide))
    }
    return {
        "model": model.name,
        "guide": guide.name,
        "data": config.data,
        "split": config.split,
        "binarize": config.binarize,
        "seed": config.seed,
        "data_seed": config.data_seed,
        "num_parameters": sum(sizes.values()),
        "train_seconds": history.seconds,
        "steps_per_second": history.steps_per_second,
        **dict.fromkeys(ESTIMATED),
        "estimates": [],
        "label": label,
        "model_options": model.plain_options(),
        "guide_options": guide.plain_options(),
        "decoder": "joint" if config.frozen_model is None else "frozen",
        "elbo": config.elbo,
        "num_epochs": len(history.epochs),
        "unit": assembly.unit,
        "num_train": len(assembly.x_train),
        "num_model_parameters": sizes["model"],
        "num_guide_parameters": sizes["guide"],
        "history": history.to_rows(),
        "weights_sha256": assembly.weights_sha256(),
        "evaluations": [],
        **assembly.fingerprint(),
    }


def with_estimates(row: Row, records: Sequence[Evidence], assembly: Assembly) -> Row:
    """The row with its estimates, k̂ and ESS filled in."""
    filled = row | {"estimates": [_estimate(record, assembly) for record in records]}
    weighted = [record for record in records if record.estimator in ("elbo", "iw")]
    if weighted:  # by the guide: both have the same weights
        iw = weighted[-1]
        filled["k_hat"] = {
            "median": json_number(iw.k_hat.median().item()),
            "share_bad": json_number(iw.share_bad),
            "threshold": iw.k_hat_threshold,
        }
        filled["ess"] = {"median": json_number(iw.ess.median().item())}
    return filled


def _estimate(record: Evidence, assembly: Assembly) -> dict[str, Any]:
    reason = record.not_reliable
    estimate = {
        "estimator": record.estimator,
        "nats": json_number(record.mean),
        "unit": record.unit,
        "reliable": reason is None,
        "reason": reason,
        "mc_se": json_number(record.mc_se) if reason is None else None,
        "data_se": json_number(record.data_se),
        "num_particles": record.num_particles,
        "num_data": record.data_set_size or record.num_data,
        "dtype": None if record.dtype is None else str(record.dtype).removeprefix("torch."),
    }
    if record.particles is not None:
        estimate["mean_num_particles"] = record.particles.double().mean().item()
    levels = assembly.dataset.num_levels
    if assembly.config.binarize == "none" and levels is not None and record.unit == "datum":
        estimate["bits_per_dim"] = bits_per_dim(
            record.mean,
            data_dim=assembly.dataset.data_dim,
            num_levels=levels,
            dequantized=assembly.model.pixels != "levels",
        )
    return estimate


def table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows, under a line that says what its numbers are.

    Below it stands which numbers are not reliable, and whose ELBO was still rising at the end.

    Args:
        rows: one per guide; of several fits, the row over all of them.
    """
    short = shortened(row["label"] for row in rows)
    lines = [cells(row) | {"guide": short[row["label"]]} for row in rows]
    notes = [*_not_reliable(rows), *_still_rising(rows)]
    return "\n\n".join([caption(rows), markdown(_in_order(lines)), *notes])


def _in_order(lines: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """All cells of every line, headers that come later in one line placed as in the others."""
    longest = max(lines, key=len)
    headers = dict.fromkeys([*longest, *(name for line in lines for name in line)])
    return [{name: line.get(name, "") for name in headers} for line in lines]


def _not_reliable(rows: Sequence[Row]) -> list[str]:
    """The reasons why numbers of the table are not reliable, of very many the first."""
    short = shortened(row["label"] for row in rows)
    notes = [
        f"NOT RELIABLE, {_heading(estimate)} of {short[row['label']]}: {estimate['reason']}"
        for row in rows
        for estimate in row["estimates"]
        if not estimate["reliable"]
    ]
    rest = len(notes) - _REASONS_SHOWN
    more = [f"{rest} more reasons are in results.json."] if rest > 0 else []
    return notes[:_REASONS_SHOWN] + more


def _still_rising(rows: Sequence[Row]) -> list[str]:
    gains = {
        row["label"]: History.from_rows(row["history"]).still_rising
        for row in rows
        if row.get("history")
    }
    return [
        f"{label}: the ELBO was still rising when training ended, by {gain:.2g} nats per datum "
        "over the last half of its epochs: train longer, or without --num_epochs until it is flat."
        for label, gain in gains.items()
        if gain is not None
    ]


def markdown(lines: Sequence[Mapping[str, str]], *, left: Sequence[str] = ()) -> str:
    """A Markdown table of lines that give cells by header.

    Args:
        lines: cells that a line lacks stay empty.
        left: headers of columns that are aligned left, besides the first.
    """
    headers = list(dict.fromkeys(name for line in lines for name in line))
    body = [[line.get(name, "") for name in headers] for line in lines]
    align = ["left" if name in (headers[0], *left) else "right" for name in headers]
    return tabulate(body, headers, tablefmt="github", colalign=align, disable_numparse=True)


def caption(rows: Sequence[Row]) -> str:
    """What the numbers of the table are."""
    first = rows[0]
    options = ", ".join(
        f"{name}={first['model_options'][name]}"
        for name in ("latent_dim", "hidden_dims", "likelihood")
        if name in first["model_options"]
    )
    pixels = {"none": ""}.get(first["binarize"], f", {first['binarize']} binarization")
    num_data = {estimate["num_data"] for row in rows for estimate in row["estimates"]}
    count = f" ({', '.join(f'{n:,}' for n in sorted(num_data))} data)" if num_data else ""
    model = f"{first['model']}({options})" if options else first["model"]
    return (
        f"{model} on {first['data']}, {first['split']} split{count}{pixels}, "
        f"decoder {first['decoder']}, {_epochs(rows)} epochs. {_unit(rows)}, larger is better; "
        f"± Monte Carlo SE{'' if is_of_data_set(first) else ' ± data SE'}{_fits(first)}."
        f"{_annealing(rows)}"
    )


def is_of_data_set(row: Row) -> bool:
    """Whether estimates are of the data set, whose latents are shared, and not means over data."""
    return row.get("unit") == "data set"


def _unit(rows: Sequence[Row]) -> str:
    if not is_of_data_set(rows[0]):
        return "Nats per datum"
    return f"Log evidence of the data set, {rows[0]['num_train']:,} data, in nats"


def _epochs(rows: Sequence[Row]) -> str:
    counts = sorted({row["num_epochs"] for row in rows})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _fits(row: Row) -> str:
    count = row.get("num_fits", 1)
    return f" ± fit SE, means over {count} fits" if count > 1 else ""


def _annealing(rows: Sequence[Row]) -> str:
    """How the AIS column was made, and what it is."""
    found = next((row["annealing"] for row in rows if row.get("annealing")), None)
    if found is None:
        return ""
    return f" AIS, a lower bound in expectation: {annealing_words(found)}."


def annealing_words(found: Mapping[str, Any]) -> str:
    """How something was annealed."""
    return (
        f"from the {found['start']}, {found['num_chains']} chains, {found['num_temperatures']:,} "
        f"temperatures, {found['num_leapfrog_steps']} leapfrog steps"
    )


def cells(row: Row) -> dict[str, str]:
    """The cells of one row by column header."""
    filled, single = {"guide": row["label"]}, is_of_data_set(row)
    for estimate in in_order(row["estimates"]):
        filled[_heading(estimate)] = _with_errors(estimate)
        if "mean_num_particles" in estimate:
            filled["particles"] = f"{estimate['mean_num_particles']:,.0f}"
        if "bits_per_dim" in estimate:
            filled[f"{_heading(estimate)} bits/dim"] = f"{estimate['bits_per_dim']:.3f}"
    if row["k_hat"] is not None and row["k_hat"]["median"] is not None:
        filled["k̂" if single else "k̂ median"] = f"{row['k_hat']['median']:.2f}"
        adaptive = any("mean_num_particles" in estimate for estimate in row["estimates"])
        limit = "its limit" if adaptive else f"{row['k_hat']['threshold']:.2f}"
        is_bad = "yes" if row["k_hat"]["share_bad"] else "no"
        share = is_bad if single else f"{100 * row['k_hat']['share_bad']:.1f}%"
        filled[f"k̂ > {limit}"] = share
    if row["ess"] is not None and row["ess"]["median"] is not None:
        filled["ESS" if single else "ESS median"] = f"{row['ess']['median']:,.0f}"
    if row["divergences"] is not None:
        for name, heading in (("forward", "KL(p ‖ q)"), ("reverse", "KL(q ‖ p)")):
            nats = row["divergences"][name]
            filled[heading] = "?" if nats is None else f"{nats:.3f}"
    if row["active_units"] is not None:
        filled["active units"] = f"{row['active_units']['count']:.3g}/{row['active_units']['of']}"
    if not row["estimates"] and row["history"]:
        size = row["num_train"] if is_of_data_set(row) else 1
        filled["final training loss"] = f"{size * row['history'][-1]['train_loss']:.2f}"
    filled["parameters"] = f"{row['num_parameters']:,}"
    filled["training"] = f"{row['train_seconds']:.0f} s"
    filled["steps/s"] = f"{row['steps_per_second']:.0f}"
    return filled


def _heading(estimate: Mapping[str, Any]) -> str:
    return ESTIMATORS[estimate["estimator"]].column(estimate)


def _with_errors(estimate: Mapping[str, Any]) -> str:
    names = ["nats"] if ESTIMATORS[estimate["estimator"]].is_exact else ["nats", "mc_se"]
    names += [] if estimate.get("unit") == "data set" else ["data_se"]
    names += ["fit_se"] if "fit_se" in estimate else []
    numbers = ["?" if estimate[n] is None else f"{estimate[n]:.3f}" for n in names]
    return " ± ".join(numbers) if estimate["reliable"] else f"NOT RELIABLE {numbers[0]}"
