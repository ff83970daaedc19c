"""Rows of results.json, and the table that people read."""

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from experiments.assembly import Assembly
from experiments.catalogue import Spec
from experiments.numbers import json_number
from experiments.preprocessing import bits_per_dim
from experiments.results import ESTIMATED, Row
from inference import Evidence, History


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
    estimate = {
        "estimator": record.estimator,
        "nats": json_number(record.mean),
        "mc_se": json_number(record.mc_se),
        "data_se": json_number(record.data_se),
        "num_particles": record.num_particles,
        "num_data": record.num_data,
    }
    if record.particles is not None:
        estimate["mean_num_particles"] = record.particles.double().mean().item()
    levels = assembly.dataset.num_levels
    if assembly.config.binarize == "none" and levels is not None:
        estimate["bits_per_dim"] = bits_per_dim(
            record.mean,
            data_dim=assembly.dataset.data_dim,
            num_levels=levels,
            dequantized=assembly.model.pixels != "levels",
        )
    return estimate


def table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows, under a line that says what its numbers are."""
    return f"{caption(rows)}\n\n{markdown([cells(row) for row in rows])}"


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
    return (
        f"{first['model']}({options}) on {first['data']}, {first['split']} split{count}{pixels}, "
        f"decoder {first['decoder']}, {first['num_epochs']} epochs. Nats per datum, larger is "
        f"better; ± Monte Carlo SE ± data SE.{_annealing(rows)}"
    )


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
    filled = {"guide": row["label"]}
    for estimate in row["estimates"]:
        filled[_heading(estimate)] = _with_errors(estimate)
        if "mean_num_particles" in estimate:
            filled["particles"] = f"{estimate['mean_num_particles']:,.0f}"
        if "bits_per_dim" in estimate:
            filled[f"{_heading(estimate)} bits/dim"] = f"{estimate['bits_per_dim']:.3f}"
    if row["k_hat"] is not None and row["k_hat"]["median"] is not None:
        filled["k̂ median"] = f"{row['k_hat']['median']:.2f}"
        adaptive = any("mean_num_particles" in estimate for estimate in row["estimates"])
        limit = "its limit" if adaptive else f"{row['k_hat']['threshold']:.2f}"
        filled[f"k̂ > {limit}"] = f"{100 * row['k_hat']['share_bad']:.1f}%"
    if row["ess"] is not None and row["ess"]["median"] is not None:
        filled["ESS median"] = f"{row['ess']['median']:,.0f}"
    if row["divergences"] is not None:
        for name, heading in (("forward", "KL(p ‖ q)"), ("reverse", "KL(q ‖ p)")):
            nats = row["divergences"][name]
            filled[heading] = "?" if nats is None else f"{nats:.3f}"
    if row["active_units"] is not None:
        filled["active units"] = f"{row['active_units']['count']}/{row['active_units']['of']}"
    if not row["estimates"] and row["history"]:
        filled["final training loss"] = f"{row['history'][-1]['train_loss']:.2f}"
    filled["parameters"] = f"{row['num_parameters']:,}"
    filled["training"] = f"{row['train_seconds']:.0f} s"
    filled["steps/s"] = f"{row['steps_per_second']:.0f}"
    return filled


def _heading(estimate: Mapping[str, Any]) -> str:
    adaptive = "mean_num_particles" in estimate
    return {
        "elbo": "ELBO",
        "iw": "IW, adaptive" if adaptive else f"IW-{estimate['num_particles']}",
        "ais": "AIS lower bound",
        "exact": "exact",
    }[estimate["estimator"]]


def _with_errors(estimate: Mapping[str, Any]) -> str:
    numbers = [estimate["nats"], estimate["mc_se"], estimate["data_se"]]
    nats, mc_se, data_se = ("?" if n is None else f"{n:.3f}" for n in numbers)
    if estimate["estimator"] == "exact":
        return f"{nats} ± {data_se}"
    return f"{nats} ± {mc_se} ± {data_se}"
