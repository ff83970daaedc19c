"""The table of guides beside draws from the posterior."""

from typing import Any

from evidence.experiments.reports.report import markdown, plus_minus
from evidence.experiments.setup.labels import shortened

CLEAR = 5.0  # standard errors from which a difference is one
KL = "KL(p ‖ q)"
_MOST_MODES = 4  # whose shares are printed


def reference_table(document: dict[str, Any]) -> str:
    """The Markdown table of the guides, under a line that says what its numbers are."""
    short = shortened(one["label"] for one in document["guides"])
    lines = [_cells(one | {"label": short[one["label"]]}) for one in document["guides"]]
    return f"{_caption(document)}\n\n{markdown(lines)}"


def _caption(document: dict[str, Any]) -> str:
    nuts, rows = document["nuts"], ", ".join(map(str, document["rows"]))
    of_one = document["unit"] == "data set"
    which = f"all {document['num_data']:,}" if of_one else f"rows {rows} of the {document['split']}"
    per = "" if of_one else " per datum"
    return (
        f"{document['model_name']}, {which} data of {document['data']}; NUTS, "
        f"{nuts['num_chains']} chains of {nuts['num_samples']:,} draws, "
        f"{nuts['num_independent']:,} of them about independent. Mean and sd: the worst latent's "
        "difference, guide − NUTS, in standard errors, and beside it in posterior sds. W₁: the "
        "largest Wasserstein distance of a latent's marginal in posterior sds, and what it is for "
        "two samples of the posterior; sliced Wasserstein likewise, in units of z. C2ST "
        f"({document['classifier']}): 0.5 is no difference. EUBO: log p(x, z) − log q(z | x) at "
        f"the draws of NUTS, nats{per}, above log p(x) by {KL}, smaller is better."
        f"{_of_modes(document)} Told apart: by more than {CLEAR:g} SE."
    )


def _of_modes(document: dict[str, Any]) -> str:
    """Of what the column of modes is, with the exact numbers."""
    modes = document["guides"][0]["modes"]
    if modes is None:
        return ""
    exact = _few(modes["exact"][0])
    return (
        f" Modes: the guide's share in each ± SE, exactly {exact}, and how unlike the exact ones "
        "all shares are, by the Jensen-Shannon divergence (nats, 0 to 0.693)."
    )


def _cells(guide: dict[str, Any]) -> dict[str, str]:
    by = guide["told_apart_by"]
    distance, floor = guide["sliced_wasserstein"], guide["sliced_wasserstein_floor"]
    marginal = guide["wasserstein"]
    modes = {} if guide["modes"] is None else {"modes": _shares(guide["modes"]["guide"])}
    return {
        "guide": guide["label"],
        "mean": _in_errors(guide["mean"]),
        "sd": _in_errors(guide["sd"]),
        "W₁": f"{marginal['worst']:.3f} (floor {marginal['floor']:.3f}, {marginal['latent']})",
        "sliced Wasserstein": f"{distance:.3f} (floor {floor:.3f})",
        "C2ST accuracy": plus_minus(guide["c2st"]["mean"], guide["c2st"]["se"]),
        "EUBO": plus_minus(guide["eubo"]["mean"], guide["eubo"]["se"]),
        KL: _divergence(guide["forward_kl"]),
        **modes,
        "told apart by": "NOT CONVERGED" if by is None else ", ".join(by) or "nothing",
    }


def _in_errors(worst: dict[str, Any]) -> str:
    return f"{worst['standard_errors']:+.1f} SE ({worst['of_the_posterior_sd']:+.2f})"


def _divergence(kl: dict[str, Any]) -> str:
    if kl["caveat"] is None or kl["mean"] is None:
        return plus_minus(kl["mean"], kl["se"])
    return f"NOT RELIABLE {kl['mean']:.3f}"


def _shares(found: dict[str, Any]) -> str:
    """Of the first datum, and the divergence over all."""
    shares, errors = found["shares"][0], found["se"][0]
    parts = [f"{s:.3f} ± {e:.3f}" for s, e in zip(shares, errors, strict=True)]
    few = ", ".join(parts[:_MOST_MODES]) + (", …" if len(parts) > _MOST_MODES else "")
    return f"{few} (JS {found['jensen_shannon']['mean']:.3f})"


def _few(values: list[float]) -> str:
    few = ", ".join(f"{value:.3f}" for value in values[:_MOST_MODES])
    return few + (", …" if len(values) > _MOST_MODES else "")
