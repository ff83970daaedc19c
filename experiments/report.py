"""Rows of results.json, and the table that people read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from experiments.assembly import Assembly
from experiments.catalogue import Spec
from experiments.preprocessing import bits_per_dim
from inference import Evidence, History

Row = dict[str, Any]


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
        "estimates": [],
        "k_hat": None,
        "ess": None,
        "active_units": None,
        "divergences": None,
        "label": label,
        "model_options": model.plain_options(),
        "guide_options": guide.plain_options(),
        "decoder": "joint" if config.frozen_model is None else "frozen",
        "elbo": config.elbo,
        "num_epochs": len(history.epochs),
        "num_model_parameters": sizes["model"],
        "num_guide_parameters": sizes["guide"],
        "history": history.to_rows(),
        **assembly.fingerprint(),
    }


def with_estimates(row: Row, records: Sequence[Evidence], assembly: Assembly) -> Row:
    """The row with its estimates, k̂ and ESS filled in."""
    weighted = [record for record in records if record.num_particles > 0]
    filled = row | {"estimates": [_estimate(record, assembly) for record in records]}
    if weighted:
        iw = weighted[-1]
        filled["k_hat"] = {
            "median": _json_number(iw.k_hat.median().item()),
            "share_bad": _json_number(iw.share_bad),
            "threshold": iw.k_hat_threshold,
        }
        filled["ess"] = {"median": _json_number(iw.ess.median().item())}
    return filled


def _estimate(record: Evidence, assembly: Assembly) -> dict[str, Any]:
    estimate = {
        "estimator": record.estimator,
        "nats": _json_number(record.mean),
        "mc_se": _json_number(record.mc_se),
        "data_se": _json_number(record.data_se),
        "num_particles": record.num_particles,
        "num_data": record.num_data,
    }
    levels = assembly.dataset.num_levels
    if assembly.config.binarize == "none" and levels is not None:
        estimate["bits_per_dim"] = bits_per_dim(
            record.mean,
            data_dim=assembly.dataset.data_dim,
            num_levels=levels,
            dequantized=assembly.model.pixels != "levels",
        )
    return estimate


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows, under a line that says what its numbers are."""
    columns = [cells(row) for row in rows]
    headers = list(dict.fromkeys(name for column in columns for name in column))
    body = [[column.get(name, "") for name in headers] for column in columns]
    align = ("left", *("right" for _ in headers[1:]))
    text = tabulate(body, headers, tablefmt="github", colalign=align, disable_numparse=True)
    return f"{caption(rows)}\n\n{text}"


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
        "better; ± Monte Carlo SE ± data SE."
    )


def cells(row: Row) -> dict[str, str]:
    """The cells of one row by column header."""
    filled = {"guide": row["label"]}
    for estimate in row["estimates"]:
        filled[_heading(estimate)] = _with_errors(estimate)
        if "bits_per_dim" in estimate:
            filled[f"{_heading(estimate)} bits/dim"] = f"{estimate['bits_per_dim']:.3f}"
    if row["k_hat"] is not None and row["k_hat"]["median"] is not None:
        filled["k̂ median"] = f"{row['k_hat']['median']:.2f}"
        filled[f"k̂ > {row['k_hat']['threshold']:.2f}"] = f"{100 * row['k_hat']['share_bad']:.1f}%"
    if row["ess"] is not None and row["ess"]["median"] is not None:
        filled["ESS median"] = f"{row['ess']['median']:,.0f}"
    if row["divergences"] is not None:
        filled["KL(p ‖ q)"] = f"{row['divergences']['forward']:.3f}"
        filled["KL(q ‖ p)"] = f"{row['divergences']['reverse']:.3f}"
    if row["active_units"] is not None:
        filled["active units"] = f"{row['active_units']['count']}/{row['active_units']['of']}"
    if not row["estimates"] and row["history"]:
        filled["final training loss"] = f"{row['history'][-1]['train_loss']:.2f}"
    filled["parameters"] = f"{row['num_parameters']:,}"
    filled["training"] = f"{row['train_seconds']:.0f} s"
    filled["steps/s"] = f"{row['steps_per_second']:.0f}"
    return filled


def _heading(estimate: Mapping[str, Any]) -> str:
    return {"elbo": "ELBO", "iw": f"IW-{estimate['num_particles']}", "exact": "exact"}[
        estimate["estimator"]
    ]


def _with_errors(estimate: Mapping[str, Any]) -> str:
    numbers = [estimate["nats"], estimate["mc_se"], estimate["data_se"]]
    nats, mc_se, data_se = ("?" if n is None else f"{n:.3f}" for n in numbers)
    if estimate["estimator"] == "exact":
        return f"{nats} ± {data_se}"
    return f"{nats} ± {mc_se} ± {data_se}"
