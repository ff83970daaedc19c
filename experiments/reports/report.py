"""Rows of results.json, and the table that people read."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from evidence.experiments.setup.assembly import Assembly
from evidence.experiments.setup.catalogue import Spec
from evidence.experiments.setup.estimators import ESTIMATORS, in_order
from evidence.experiments.setup.labels import shortened
from evidence.experiments.setup.preprocessing import bits_per_dim
from evidence.experiments.storage.records import Estimate, Median, Row, Weights
from evidence.inference import Evidence, History

_REASONS_SHOWN = 3


def training_row(pair: Assembly, history: History, folder: Path, *, label: str) -> Row:
    """What is known once a pair is trained; the estimates are still to come."""
    config = pair.config
    model, guide = Spec.parse(config.model), Spec.parse(config.guide)
    sizes = [
        sum(parameter.numel() for parameter in module.parameters())
        for module in (pair.model, pair.guide)
    ]
    return Row(
        label=label,
        model=model.name,
        guide=guide.name,
        data=config.data,
        split=config.split,
        binarize=config.binarize,
        decoder="joint" if config.frozen_model is None else "frozen",
        objective=config.objective,
        folder=str(folder),
        seed=config.seed,
        data_seed=config.data_seed,
        unit=pair.unit,
        num_train=len(pair.x_train),
        num_epochs=len(history.epochs),
        num_parameters=sum(sizes),
        num_model_parameters=sizes[0],
        num_guide_parameters=sizes[1],
        train_seconds=history.seconds,
        steps_per_second=history.steps_per_second,
        model_options=model.plain_options(),
        guide_options=guide.plain_options(),
        weights_sha256=pair.weights_sha256(),
        history=history.to_rows(),
        **pair.fingerprint(),
    )


def estimated(records: Sequence[Evidence], pair: Assembly) -> dict[str, Any]:
    """What estimates say of a row: they themselves, k̂ and ESS."""
    found: dict[str, Any] = {"estimates": [_estimate(record, pair) for record in records]}
    weighted = [record for record in records if record.estimator in ("elbo", "iw")]
    if weighted:  # by the guide: both have the same weights
        iw = weighted[-1]
        found["k_hat"] = Weights(
            median=iw.k_hat.median().item(),
            share_bad=iw.share_bad,
            threshold=iw.k_hat_threshold,
        )
        found["ess"] = Median(median=iw.ess.median().item())
    return found


def _estimate(record: Evidence, pair: Assembly) -> Estimate:
    reason = record.not_reliable
    adaptive, levels = record.particles, pair.dataset.num_levels
    bits = None
    if pair.config.binarize == "none" and levels is not None and record.unit == "datum":
        bits = bits_per_dim(
            record.mean,
            data_dim=pair.dataset.data_dim,
            num_levels=levels,
            dequantized=pair.model.pixels != "levels",
        )
    return Estimate(
        estimator=record.estimator,
        nats=record.mean,
        unit=record.unit,
        reliable=reason is None,
        reason=reason,
        mc_se=record.mc_se if reason is None else None,
        data_se=record.data_se,
        num_particles=record.num_particles,
        num_data=record.data_set_size or record.num_data,
        dtype=None if record.dtype is None else str(record.dtype).removeprefix("torch."),
        mean_num_particles=None if adaptive is None else adaptive.double().mean().item(),
        bits_per_dim=bits,
        num_evaluations=record.num_evaluations,
    )


def table(rows: Sequence[Row]) -> str:
    """The Markdown table of the rows, under a line that says what its numbers are.

    Below it stands which numbers are not reliable, and whose training ended too early.

    Args:
        rows: one per guide; of several fits, the row over all of them.
    """
    short = shortened(row.label for row in rows)
    lines = [cells(row) | {"guide": short[row.label]} for row in rows]
    notes = [*_not_reliable(rows), *_not_trained_enough(rows)]
    return "\n\n".join([caption(rows), markdown(_in_order(lines)), *notes])


def _in_order(lines: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """All cells of every line, headers that come later in one line placed as in the others."""
    longest = max(lines, key=len)
    headers = dict.fromkeys([*longest, *(name for line in lines for name in line)])
    return [{name: line.get(name, "") for name in headers} for line in lines]


def _not_reliable(rows: Sequence[Row]) -> list[str]:
    """The reasons why numbers of the table are not reliable, of very many the first."""
    short = shortened(row.label for row in rows)
    notes = [
        f"NOT RELIABLE, {_heading(estimate)} of {short[row.label]}: {estimate.reason}"
        for row in rows
        for estimate in row.estimates
        if not estimate.reliable
    ]
    rest = len(notes) - _REASONS_SHOWN
    more = [f"{rest} more reasons are in results.json."] if rest > 0 else []
    return notes[:_REASONS_SHOWN] + more


def _not_trained_enough(rows: Sequence[Row]) -> list[str]:
    """Whose training ended too early, and what to do."""
    short = shortened(row.label for row in rows)
    histories = {short[row.label]: History.from_rows(row.history) for row in rows if row.history}
    notes = []
    for label, history in histories.items():
        if history.not_converged is not None:
            notes.append(f"{label}: {history.not_converged}.")
        elif (gain := history.still_rising) is not None:
            notes.append(
                f"{label}: the ELBO was still rising when training ended, by {gain:.2g} nats per "
                "datum over the last half of its epochs: train longer, or without --num_epochs "
                "until it is flat."
            )
    return notes


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


def plus_minus(*numbers: float | None, digits: int = 3) -> str:
    """A number and its errors; what is not known, or not finite, is a question mark."""
    known = [number is not None and math.isfinite(number) for number in numbers]
    return " ± ".join(f"{n:.{digits}f}" if k else "?" for n, k in zip(numbers, known, strict=True))


def caption(rows: Sequence[Row]) -> str:
    """What the numbers of the table are."""
    first = rows[0]
    options = ", ".join(
        f"{name}={first.model_options[name]}"
        for name in ("latent_dim", "hidden_dims", "likelihood")
        if name in first.model_options
    )
    pixels = {"none": ""}.get(first.binarize, f", {first.binarize} binarization")
    num_data = {estimate.num_data for row in rows for estimate in row.estimates}
    count = f" ({', '.join(f'{n:,}' for n in sorted(num_data))} data)" if num_data else ""
    model = f"{first.model}({options})" if options else first.model
    return (
        f"{model} on {first.data}, {first.split} split{count}{pixels}, "
        f"decoder {first.decoder}, {_epochs(rows)} epochs. {_unit(rows)}, larger is better; "
        f"± Monte Carlo SE{'' if first.is_of_data_set else ' ± data SE'}{_fits(first)}."
        f"{_notes(rows)}"
    )


def _unit(rows: Sequence[Row]) -> str:
    if not rows[0].is_of_data_set:
        return "Nats per datum"
    return f"Log evidence of the data set, {rows[0].num_train:,} data, in nats"


def _epochs(rows: Sequence[Row]) -> str:
    counts = sorted({row.num_epochs for row in rows})
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _fits(row: Row) -> str:
    count = row.num_fits
    return f" ± fit SE, means over {count} fits" if count > 1 else ""


def _notes(rows: Sequence[Row]) -> str:
    """How the columns beside the guide's weights were made, and what they are."""
    found = {}
    for row in rows:
        how = row.annealing.words if row.annealing else ""
        start = (row.evaluation or {}).get("start")
        for estimate in row.estimates:
            note = ESTIMATORS[estimate.estimator].note
            found[estimate.estimator] = note and " " + note.format(how=how, start=start)
    return "".join(found.values())


def cells(row: Row) -> dict[str, str]:
    """The cells of one row by column header."""
    filled, single = {"guide": row.label}, row.is_of_data_set
    for estimate in in_order(row.estimates):
        filled[_heading(estimate)] = _with_errors(estimate)
        if estimate.mean_num_particles is not None:
            filled["particles"] = f"{estimate.mean_num_particles:,.0f}"
        if estimate.bits_per_dim is not None:
            filled[f"{_heading(estimate)} bits/dim"] = f"{estimate.bits_per_dim:.3f}"
        if ESTIMATORS[estimate.estimator].note and estimate.num_evaluations is not None:
            filled["evaluations"] = f"{estimate.num_evaluations:,.0f}"
    if row.k_hat is not None and row.k_hat.median is not None:
        filled["k̂" if single else "k̂ median"] = f"{row.k_hat.median:.2f}"
        adaptive = any(estimate.mean_num_particles is not None for estimate in row.estimates)
        limit = "its limit" if adaptive else f"{row.k_hat.threshold:.2f}"
        is_bad = "yes" if row.k_hat.share_bad else "no"
        share = is_bad if single else f"{100 * (row.k_hat.share_bad or 0.0):.1f}%"
        filled[f"k̂ > {limit}"] = share
    if row.ess is not None and row.ess.median is not None:
        filled["ESS" if single else "ESS median"] = f"{row.ess.median:,.0f}"
    if row.divergences is not None:
        for name, heading in (("forward", "KL(p ‖ q)"), ("reverse", "KL(q ‖ p)")):
            nats = getattr(row.divergences, name)
            filled[heading] = "?" if nats is None else f"{nats:.3f}"
    if row.active_units is not None:
        filled["active units"] = f"{row.active_units.count:.3g}/{row.active_units.of}"
    if not row.estimates and row.history:
        size = row.num_train if row.is_of_data_set else 1
        filled["final training loss"] = f"{size * row.history[-1]['train_loss']:.2f}"
    filled["parameters"] = f"{row.num_parameters:,}"
    filled["training"] = f"{row.train_seconds:.0f} s"
    filled["steps/s"] = f"{row.steps_per_second:.0f}"
    return filled


def _heading(estimate: Estimate) -> str:
    return ESTIMATORS[estimate.estimator].column(estimate)


def _with_errors(estimate: Estimate) -> str:
    names = ["nats"] if ESTIMATORS[estimate.estimator].is_exact else ["nats", "mc_se"]
    names += [] if estimate.unit == "data set" else ["data_se"]
    names += ["fit_se"] if estimate.num_fits > 1 else []
    names = names if estimate.reliable else names[:1]
    doubt = "" if estimate.reliable else "NOT RELIABLE "
    return doubt + plus_minus(*(getattr(estimate, name) for name in names))
