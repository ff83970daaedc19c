"""The guide zoo beside known posteriors.

    python -m evidence.experiments.zoo [PART ...] [--out FOLDER]

    planar   planar flows with 2, 8 and 32 layers on the energies U1 to U4 (Rezende & Mohamed 2015,
             figure 3): ELBO beside ln Z, and a picture
    plane    both directions of KL, on a grid, of every guide on five densities in the plane
    noise    signal-to-noise of the guide's gradient against the number of particles (Rainforth et
             al. 2018, https://arxiv.org/abs/1802.04537; Tucker et al. 2018,
             https://arxiv.org/abs/1810.04152), on a linear Gaussian model

Fits go on if they were interrupted; tables are Markdown.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from pyro.infer import ELBO, Trace_ELBO

from evidence.experiments.commands.compare import compare
from evidence.experiments.config import Compare
from evidence.experiments.reports import plots
from evidence.experiments.reports.plane import plane_of
from evidence.experiments.reports.report import cells, markdown
from evidence.experiments.reports.shortfall import shortfalls
from evidence.experiments.setup.loading import load_run
from evidence.experiments.storage.records import Row
from evidence.experiments.storage.runs import RunFolder
from evidence.guides import FullRank
from evidence.inference import IWAE, STL, DReG, fit, gradient_signal_to_noise
from evidence.inference.programs.random_state import isolated_rng
from evidence.models import LinearGaussian

ENERGIES = ("U1", "U2", "U3", "U4")
PLANAR = tuple(f"Planar(num_flows={k})" for k in (2, 8, 32))
GUIDES = (
    "MeanField",
    "LowRank(rank=1)",
    "FullRank",
    "Householder",
    "Mixture(num_components=4)",
    "Planar(num_flows=16)",
    "Radial(num_flows=16)",
    "Sylvester(num_flows=16)",
    "RealNVP(num_flows=8)",
    "IAF(num_flows=4)",
    "MAF(num_flows=4)",
    "NeuralSpline(kind='coupling')",
    "NeuralSpline",
    "Refined(guide=FullRank)",
)
PICTURED = (
    "MeanField",
    "FullRank",
    "Mixture(num_components=4)",
    "Planar(num_flows=16)",
    "RealNVP(num_flows=8)",
    "NeuralSpline",
)
# One minibatch holds 256 draws of the one density; the likelihood warms up, or modes are missed.
FIT: dict[str, Any] = {"batch_size": 256, "num_particles": 5000, "num_data": 20, "clip_norm": 5.0}
PLANAR_FIT = FIT | {"num_epochs": 40, "likelihood_warmup_epochs": 15.0, "lr": 0.03, "lr_decay": 0.9}
PLANE_FIT = FIT | {"num_epochs": 12, "likelihood_warmup_epochs": 5.0, "lr": 0.01, "lr_decay": 0.8}
MIXTURE_FIT = FIT | {"num_epochs": 60, "lr": 0.005, "lr_decay": 0.95}
PARTICLES = (1, 4, 16, 64, 256)
OBJECTIVES: tuple[type[ELBO], ...] = (Trace_ELBO, STL, IWAE, DReG)
_DRAWS = 4000  # gradients for one ratio


def planar(out: Path) -> None:
    """Figure 3 of the paper, and how far each ELBO stays below ln Z."""
    rows, lines = {}, list[dict[str, str]]()
    for energy in ENERGIES:
        results = _compare(
            out / "planar" / energy, f"Energy2D(energy={energy!r})", PLANAR, PLANAR_FIT
        )
        rows[energy] = _densities(results)
        lines.append({"energy": energy, **_shortfalls(results)})
    _finish(out / "planar", markdown(lines))
    title = "exp(−U) and planar flows; lines hold 50% and 90% of the mass"
    plots.save(plots.densities(rows, (-4.0, 4.0), title=title), out / "planar" / "planar.png")


def plane(out: Path) -> None:
    """The divergences of every guide on densities in the plane."""
    targets = {energy: f"Energy2D(energy={energy!r})" for energy in ENERGIES}
    lines = [{"KL(q ‖ p) / KL(p ‖ q), nats": guide} for guide in GUIDES]
    rows = {}
    for name, model in targets.items():
        results = _compare(out / "plane" / name, model, GUIDES, PLANE_FIT)
        _add_divergences(lines, name, results)
        rows[name] = _densities([row for row in results if row.label in PICTURED])
    results = _compare(
        out / "plane" / "mixture", "GaussianMixture2D", GUIDES, MIXTURE_FIT, data="simulated"
    )
    _add_divergences(lines, "mixture", results)
    _finish(out / "plane", markdown(lines))
    title = "densities and guides; lines hold 50% and 90% of the mass"
    plots.save(plots.densities(rows, (-4.0, 4.0), title=title), out / "plane" / "plane.png")


def noise(out: Path) -> None:
    """Which objectives keep their signal as particles are added: a table and a picture."""
    ratios = {}
    for kind in OBJECTIVES:
        with isolated_rng(0):  # the same model, guide and datum for all
            ratios[kind.__name__] = _ratios(kind)
    lines = [
        {"median SNR ± SE": name}
        | {f"K = {k}": f"{snr:.3f} ± {se:.3f}" for k, (snr, se) in zip(PARTICLES, row, strict=True)}
        for name, row in ratios.items()
    ]
    _finish(out / "noise", markdown(lines))
    plots.save(plots.signal_to_noise(PARTICLES, ratios), out / "noise" / "noise.png")


def _ratios(kind: type[ELBO]) -> list[tuple[float, float]]:
    """Median signal-to-noise of the entries of the location's weights, and its SE, by K."""
    model = LinearGaussian(10, 3).double().requires_grad_(False)
    guide = FullRank(3, 10, hidden_dims=()).double()
    x = model(None, size=2000)
    fit(model, guide, x, num_epochs=40, lr=0.01, progress=False)
    # Near the optimum, not at it, nor so far that the weights' variance could be infinite.
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    found = []
    for k in PARTICLES:
        noise = gradient_signal_to_noise(
            kind(num_particles=k),
            model,
            guide,
            x[:1],
            parameters=list(guide.parameters()),
            num_draws=_DRAWS,
        )
        places = noise.snr.nan_to_num(0.0).argsort()
        middle = places[len(places) // 2]
        found.append((noise.snr[middle].item(), noise.snr_se[middle].item()))
    return found


def _compare(
    out: Path, model: str, guides: Sequence[str], fit: Mapping[str, Any], data: str = "none"
) -> list[Row]:
    """Run a comparison into a folder; its rows."""
    compare(Compare(model=model, guides=list(guides), data=data, out=str(out), **fit))
    document = RunFolder(out).read_results()
    return document.rows if document else []


def _densities(results: Sequence[Row]) -> dict[str, Any]:
    """Log-densities by panel: the truth, then every guide's."""
    panels = {}
    for row in results:
        assembly, _ = load_run(RunFolder(row.folder))
        assert assembly.of_the_suite is not None
        model, guide, x = assembly.of_the_suite
        found = plane_of(model, guide, x[:1])
        panels.setdefault("posterior", found.log_p_xz.squeeze(1))
        panels[row.label] = found.log_q_z.squeeze(1)
    return panels


def _shortfalls(results: Sequence[Row]) -> dict[str, str]:
    log_z = next(e.nats for e in results[0].estimates if e.estimator == "exact")
    gaps = {
        f"ln Z − ELBO, {row.label}": f"{one.nats:.3f} ± {one.mc_se:.3f}"
        for row, one in zip(results, shortfalls(results) or (), strict=True)
    }
    return {"ln Z": f"{log_z:.4f}", **gaps}


def _add_divergences(lines: Sequence[dict[str, str]], name: str, results: Sequence[Row]) -> None:
    """The column of one density: what the ELBO lacks, and the other direction."""
    for line, row in zip(lines, results, strict=True):
        found = cells(row)
        line[name] = f"{found['KL(q ‖ p)']} / {found['KL(p ‖ q)']}"


def _finish(out: Path, text: str) -> None:
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    RunFolder(out).write_text("table.md", text + "\n")


PARTS: dict[str, Callable[[Path], None]] = {"planar": planar, "plane": plane, "noise": noise}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts named, or all."""
    parser = ArgumentParser(prog="python -m evidence.experiments.zoo", description=__doc__)
    parser.add_argument("parts", nargs="*", help="some of planar, plane, noise [default: all].")
    parser.add_argument("--out", default="runs/zoo", help="folder for all parts.")
    arguments = parser.parse_args(argv)
    parts = arguments.parts or list(PARTS)
    if unknown := sorted(set(parts) - PARTS.keys()):
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(unknown)}")
    for part in parts:
        PARTS[part](Path(arguments.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
