"""`results.json`: what a row of it holds, and reading it back."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from evidence.experiments.storage.schema import (
    MAX_DOCUMENT_BYTES,
    expect_type,
    parse_signed,
    read_bytes,
)

Row = dict[str, Any]

# What evaluations add to the row of a training.
ESTIMATED = (
    "estimates",
    "k_hat",
    "ess",
    "active_units",
    "latents",
    "divergences",
    "evaluation",
    "annealing",
    "per_datum_sha256",
    "bracket",
    "gaps",
)

_Object = dict[str, Any]
_DOCUMENT = {"version": int, "command": str, "rows": list[_Object]}
_ROW = {
    **dict.fromkeys(("label", "model", "guide", "data", "split", "binarize", "decoder"), str),
    **dict.fromkeys(("elbo", "folder", "data_sha256", "test_sha256", "weights_sha256"), str),
    **dict.fromkeys(("seed", "data_seed", "num_epochs", "num_parameters"), int),
    **dict.fromkeys(("num_model_parameters", "num_guide_parameters"), int),
    **dict.fromkeys(("train_seconds", "steps_per_second"), float),
    **dict.fromkeys(("model_options", "guide_options"), _Object),
    **dict.fromkeys(("k_hat", "ess", "active_units", "latents", "divergences"), _Object | None),
    **dict.fromkeys(("evaluation", "annealing", "bracket", "gaps"), _Object | None),
    "per_datum_sha256": str | None,
    **dict.fromkeys(("history", "estimates", "evaluations"), list[_Object]),
}
_NUMBER = float | None
_ESTIMATE = {
    "estimator": Literal["elbo", "iw", "ais", "exact"],
    **dict.fromkeys(("nats", "mc_se", "data_se"), _NUMBER),
    **dict.fromkeys(("num_particles", "num_data"), int),
    "reliable": bool,
    "reason": str | None,
}


def read(path: Path) -> dict[str, Any] | None:
    """The document, or None if there is none.

    Raises:
        ValueError: it is damaged, or not what was written.
    """
    try:
        document = parse_signed(read_bytes(path, MAX_DOCUMENT_BYTES))
        _expect(_DOCUMENT, document)
        if not document["rows"]:
            raise ValueError("it has no rows")
        for row in document["rows"]:
            _expect(_ROW, row)
            for estimate in row["estimates"]:
                _expect(_ESTIMATE, estimate)
            for evaluation in row["evaluations"]:
                _expect({"made_by": _Object}, evaluation)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be trusted: {error}: move it away to go on without it"
        ) from None
    return document


def _expect(hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    for name, hint in hints.items():
        if name not in values:
            raise ValueError(f"{name} is missing")
        expect_type(name, values[name], hint)


def is_of_weights(before: Row, row: Row) -> bool:
    """Whether a row is of the same weights as another, and of the same evaluation data."""
    same = all(before[name] == row[name] for name in ("weights_sha256", "test_sha256"))
    return same and before.get("sources", {}) == row.get("sources", {})  # a user's model, too


def remembering(row: Row, before: Row | None) -> Row:
    """The row of a training with what was found out about these very weights before."""
    if before is None or not is_of_weights(before, row):
        return row
    kept = (*ESTIMATED, "evaluations")
    return row | {"label": before["label"]} | {name: before[name] for name in kept}


def with_evaluation(row: Row, made_by: Mapping[str, Any], found: Mapping[str, Any]) -> Row:
    """The row with an evaluation more, in place of an earlier one that was made in the same way.

    Args:
        row: of results.json; what was found last is in the row itself, too.
        made_by: command and options that decide the numbers.
        found: the numbers, by their names in a row.
    """
    names = ("split", "seed", "data_seed", "data_sha256", "test_sha256", "weights_sha256")
    key = {**made_by, **{name: row[name] for name in names}}
    others = [one for one in row["evaluations"] if one["made_by"] != key]
    return row | {**found, "evaluations": [*others, {"made_by": key, **found}]}
