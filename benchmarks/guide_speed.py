"""What a training step costs with each guide, beside that of MeanField, alternated in one run.

    .venv/bin/python benchmarks/guide_speed.py

Binary noise of MNIST's size through the 784-200-200-50 Bernoulli VAE, batch 128. Every guide takes
so many steps in turn, round after round; a row is the median over the rounds. Draws and log q at
other z, which evaluation and grids need, are timed likewise.
"""

import statistics
import time

import torch
from tabulate import tabulate

from evidence.experiments.setup.catalogue import Spec, build_guide
from evidence.guides import AbstractPosterior
from evidence.inference import fit
from evidence.models import VAE

GUIDES = (
    "MeanField",
    "LowRank(rank=5)",
    "FullRank",
    "Householder",
    "Mixture(num_components=4)",
    "Planar",
    "Radial",
    "Sylvester",
    "Sylvester(kind='householder')",
    "IAF",
    "MAF",
    "RealNVP",
    "NeuralSpline(kind='coupling')",
    "NeuralSpline",
    "Refined(guide=MeanField, num_steps=2, num_particles=1)",
)
ROUNDS, STEPS, BATCH = 5, 10, 128


def main() -> None:
    """Measure and print the table."""
    torch.manual_seed(0)
    x = torch.rand(STEPS * BATCH, 784).bernoulli()
    pairs = {name: _pair(name) for name in GUIDES}
    for model, guide in pairs.values():  # first steps are slow
        fit(model, guide, x[:BATCH], num_epochs=2, progress=False)
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in GUIDES}
    for _ in range(ROUNDS):
        for name, (model, guide) in pairs.items():
            times[name].append((_step(model, guide, x), *_draw_and_score(guide, x[:BATCH])))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in times.items()
    }
    base = medians["MeanField"][0]
    lines = [
        [name, f"{step:.1f}", f"{step / base:.1f}", f"{draw:.2f}", f"{score:.2f}"]
        for name, (step, draw, score) in medians.items()
    ]
    headers = [
        "guide",
        "ms per step",
        "MeanField = 1",
        "ms per 128 draws",
        "ms to score 128 other z",
    ]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(tabulate(lines, headers, tablefmt="github", disable_numparse=True))


def _pair(name: str) -> tuple[VAE, AbstractPosterior]:
    model = VAE(784, latent_dim=50, hidden_dims=(200, 200))
    return model, build_guide(Spec.parse(name), model, torch.zeros(2, 784))[0]


def _step(model: VAE, guide: AbstractPosterior, x: torch.Tensor) -> float:
    """Milliseconds of one training step."""
    history = fit(model, guide, x, num_epochs=1, batch_size=BATCH, progress=False)
    return 1000 / history.steps_per_second


@torch.no_grad()
def _draw_and_score(guide: AbstractPosterior, x: torch.Tensor) -> tuple[float, float]:
    """Milliseconds of a draw for each datum, and of log q at z that the guide did not draw."""
    posterior = guide.posterior(x)
    start = time.perf_counter()
    z = posterior.sample()
    middle = time.perf_counter()
    guide.posterior(x).log_prob(z.clone())
    return 1000 * (middle - start), 1000 * (time.perf_counter() - middle)


if __name__ == "__main__":
    main()
